"""The pictures of a run: its losses, what the model answers by itself, and the controls; the same bytes every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part3_pretrain.loss_curve import BLUE, GREEN, GREY, ORANGE, new_figure, plot_losses, save_figure, whole_numbers
from part4_sft.report import chosen_point, controlled_models

EPOCH_CURVES = {  # key in `by_epoch`: (label, marker and line, colour)
    "rated_4_or_more": ("share rated\n4.0 or more", "o-", BLUE),
    "rouge_l": ("ROUGE-L", "s-", ORANGE),
    "bleu": ("BLEU", "^-", GREEN),
}
SETTINGS = {3: ("epoch 3:\nfirst setting", ":"), 5: ("epoch 5:\ndefault", "-.")}  # of the assignment: label, line


def save_loss_curve(path: Path, losses: list[float], by_epoch: list[dict[str, Any]]) -> None:
    """Draw the loss of each step and of validation, in nats per response token; below, the scores after every epoch.

    `by_epoch` holds the entries of `evaluation.json`; epoch 0 is the model before fine-tuning.
    """
    epochs = [entry["epoch"] for entry in by_epoch]
    steps_per_epoch = len(losses) / epochs[-1]
    curves = {key: curve for key, curve in EPOCH_CURVES.items() if any(key in entry for entry in by_epoch)}
    figure = new_figure(9.5, 7 if curves else 4)
    panels = figure.subplots(2 if curves else 1, 1, sharex=True, squeeze=False)[:, 0]
    upper, lower = panels[0], panels[-1]
    plot_losses(upper, [step / steps_per_epoch for step in range(1, len(losses) + 1)], losses)
    validation = [entry["validation_loss"] for entry in by_epoch]
    upper.plot(epochs, validation, "o--", color=ORANGE, label="validation,\neach epoch")
    upper.set(title="Supervised fine-tuning: loss over response tokens", ylim=(0, None))
    upper.set_ylabel("cross-entropy (nats per response token)")
    steps = upper.secondary_xaxis("top", functions=(lambda x: x * steps_per_epoch, lambda x: x / steps_per_epoch))
    steps.xaxis.set_major_locator(whole_numbers())
    steps.set_xlabel("optimizer step")
    for key, (label, style, color) in curves.items():
        scores = [(entry["epoch"], entry[key]) for entry in by_epoch if key in entry]
        lower.plot(*zip(*scores), style, color=color, label=label)
    if curves:
        lower.set(title="Replies really generated to validation contexts", ylabel="score (0 to 1)", ylim=(0, 1.05))
    lower.set(xlabel="epoch")
    for epoch, (label, style) in SETTINGS.items():
        if epoch in epochs and "rated_4_or_more" in curves:  # on the assignment's own data
            upper.axvline(epoch, color=GREY, linestyle=style, linewidth=1.2)
            lower.axvline(epoch, color=GREY, linestyle=style, linewidth=1.2, label=label)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1))  # beside the panel, where no line can be
    save_figure(figure, path)


def save_coverage(path: Path, hand_over: dict[str, Any]) -> None:
    """Draw the share of test replies that the model gives by itself against the quality of these."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    curve, chosen = hand_over["curve"], chosen_point(hand_over)
    coverage, quality = ([point[key] for point in curve] for key in ("coverage", "rated_4_or_more"))
    axes.plot(coverage, quality, "o-", color=BLUE, label="each threshold of confidence")
    label = f"the threshold in use: {hand_over['threshold']:.3g}"
    axes.plot(chosen["coverage"], chosen["rated_4_or_more"], "o", color=ORANGE, markersize=10, label=label)
    axes.set(title="What the model answers by itself", xlabel="share of the test replies (the others go to a person)")
    axes.set_ylabel("share of these rated 4.0 or more")
    axes.set(xlim=_room(coverage), ylim=_room(quality))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_percent)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    save_figure(figure, path)


def _percent(share: float, place: float) -> str:
    """Return the label of a tick: 95%, or 95.5% where the ticks are close."""
    return f"{100 * share:.4g}%"


def _room(shares: list[float]) -> tuple[float, float]:
    """Return the ends of an axis on which all shares can be seen, however close together they lie."""
    span = max(max(shares) - min(shares), 0.04)
    low = max(max(shares) - span, 0.0)
    return low - 0.05 * span, low + 1.05 * span


def save_controls(path: Path, evaluation: dict[str, Any]) -> None:
    """Draw for both models and each control the share of their replies that are rated 4.0 or more."""
    shares = {name: scores["rated_4_or_more"] for name, scores in controlled_models(evaluation).items()}
    figure = new_figure(9, 4.5)
    axes = figure.subplots()
    colors = [{"pretrained": GREY, "SFT": ORANGE}.get(name, BLUE) for name in shares]
    bars = axes.barh([*shares], [*shares.values()], color=colors)
    axes.bar_label(bars, [f"{share:.1%}" for share in shares.values()], padding=3)
    axes.invert_yaxis()
    axes.set(title="Could less have done it?", xlabel="share of the replies to the test contexts rated 4.0 or more")
    axes.set_xlim(0, 1.1)  # with room for the figure at the end of a bar
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    axes.xaxis.set_major_formatter(_percent)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    save_figure(figure, path)
