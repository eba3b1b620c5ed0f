"""What a person reads after a run: the loss curve and the written report. Every number comes from `evaluation.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend is chosen first, so that no display is needed)

from part3_pretrain.files import written_whole  # noqa: E402

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind (Okabe and Ito 2008)


def save_loss_curve(path: Path, losses: list[float], by_epoch: list[dict[str, Any]]) -> None:
    """Draws the training loss of every step, smoothed too, and the validation loss after every epoch.

    Args:
        losses: one for each optimizer step, in nats per response token.
        by_epoch: the entries of `evaluation.json`; epoch 0 is the model before fine-tuning.
    """
    steps = range(1, len(losses) + 1)
    steps_per_epoch = len(losses) / max(1, len(by_epoch) - 1)
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training, each step")
    axes.plot(steps, smoothed(losses), color=BLUE, linewidth=2, label="training, smoothed")
    validated = [entry for entry in by_epoch if entry["validation_loss"] is not None]
    axes.plot(
        [entry["epoch"] * steps_per_epoch for entry in validated],
        [entry["validation_loss"] for entry in validated],
        "o--", color=ORANGE, label="validation, each epoch",
    )  # fmt: skip
    axes.set(
        title="Supervised fine-tuning: loss over response tokens",
        xlabel="optimizer step",
        ylabel="cross-entropy (nats per response token)",
        ylim=(0, None),
    )
    epochs = axes.secondary_xaxis("top", functions=(lambda x: x / steps_per_epoch, lambda x: x * steps_per_epoch))
    epochs.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    axes.legend()
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def smoothed(losses: list[float], decay: float = 0.95) -> list[float]:
    """Exponential moving average with the bias of its start removed, as in Adam (Kingma and Ba 2015, section 3)."""
    average, curve = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        curve.append(average / (1 - decay**step))
    return curve
