"""What a person reads after a run: the loss curve and the written report. Every number comes from `evaluation.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from part3_pretrain.runtime.files import atomic_write

SHOWN = {"rated_4_or_more": "share rated 4.0 or more", "rouge_l": "ROUGE-L", "bleu": "BLEU"}  # epoch by epoch
# Of `MEASURES`, those that a terminal and `by_epoch` show.
PRINTED = ("bleu", "rouge_l", "rated_4_or_more")
FEWEST_CONTEXTS = 20  # of fewer, resampling knows too little of what other contexts would be like
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind (Okabe and Ito 2008)


def save_loss_curve(path: Path, losses: list[float], by_epoch: list[dict[str, Any]]) -> None:
    """Draws the loss of every step, smoothed too, with the validation loss, and below it how well replies are.

    Args:
        losses: one for each optimizer step, in nats per response token.
        by_epoch: the entries of `evaluation.json`; epoch 0 is the model before fine-tuning.
    """
    import matplotlib  # takes as long to import as a dozen steps, and is needed after the last of them

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    epochs = [entry["epoch"] for entry in by_epoch]
    steps_per_epoch = len(losses) / max(1, epochs[-1])
    when = [step / steps_per_epoch for step in range(1, len(losses) + 1)]
    figure, (upper, lower) = plt.subplots(2, 1, figsize=(8, 7), sharex=True, layout="constrained")
    upper.plot(when, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training, each step")
    upper.plot(when, smoothed(losses), color=BLUE, linewidth=2, label="training, smoothed")
    validation = [entry["validation_loss"] for entry in by_epoch]
    upper.plot(epochs, validation, "o--", color=ORANGE, label="validation, each epoch")
    upper.set(
        title="Supervised fine-tuning: loss over response tokens",
        ylabel="cross-entropy (nats per response token)",
        ylim=(0, None),
    )
    steps = upper.secondary_xaxis("top", functions=(lambda x: x * steps_per_epoch, lambda x: x / steps_per_epoch))
    steps.set_xlabel("optimizer step")
    for (measure, name), style, color in zip(SHOWN.items(), ("o-", "s-", "^-"), (BLUE, ORANGE, GREEN)):
        if measure in by_epoch[0]:
            lower.plot(epochs, [entry[measure] for entry in by_epoch], style, color=color, label=name)
    lower.set(
        title="Replies really generated to validation contexts", xlabel="epoch", ylabel="score (0 to 1)", ylim=(0, 1.05)
    )
    for axes in (upper, lower):
        for epoch, note in {3: "first setting", 5: "default"}.items():
            if epoch in epochs and "rated_4_or_more" in by_epoch[0]:  # the assignment's, on its own data
                axes.axvline(epoch, color="0.4", linestyle=":", linewidth=1.2)
                axes.annotate(note, (epoch, 0.03), (-4, 0), ("data", "axes fraction"), "offset points", ha="right")
        axes.grid(alpha=0.3)
    upper.legend()
    lower.legend(loc=(0.27, 0.1))
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def smoothed(losses: list[float], decay: float = 0.95) -> list[float]:
    """Exponential moving average with the bias of its start removed, as in Adam (Kingma and Ba 2015, section 3)."""
    average, curve = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        curve.append(average / (1 - decay**step))
    return curve


# ---------------------------------------------------------------------------------------------------- text

MEASURES = {  # key in `evaluation.json`: (name, how it is written, which way is better, what it means)
    "bleu": ("BLEU", "{:.3f}", "higher", "mean sentence BLEU against the reference reply, smoothed"),
    "corpus_bleu": ("corpus BLEU", "{:.3f}", "higher", "BLEU of all n-grams counted together"),
    "rouge_l": ("ROUGE-L", "{:.3f}", "higher", "mean F1 of the longest common subsequence with that reply"),
    "rating": ("rating", "{:.2f}", "higher", "mean rating by the rubric, 1.0 to 5.0"),
    "rated_4_or_more": ("rated 4.0 or more", "{:.1%}", "higher", "share of replies that count as high quality"),
    "right_item": ("right item", "{:.1%}", "higher", "names the customer's item, letter for letter"),
    "wrong_item": ("wrong item", "{:.1%}", "lower", "names another item of the catalogue"),
    "right_resolution": ("right resolution", "{:.1%}", "higher", "gives what the policy prescribes, and nothing else"),
    "right_order_number": ("right order number", "{:.1%}", "higher", "cites it exactly, of the contexts that give one"),
    "both_problems_resolved": ("both problems", "{:.1%}", "higher", "resolves both, of the contexts with two"),
    "stops_by_itself": ("stops by itself", "{:.1%}", "higher", "ends with `<EOS>` within the token limit"),
    "length_ratio": ("length ratio", "{:.2f}", "near 1", "words of the replies per word of the references"),
    "distinct_2": ("distinct-2", "{:.3f}", "near that of references", "different pairs of words among all pairs"),
    "perplexity": ("perplexity", "{:.2f}", "lower", "of the reference's tokens, given the context"),
}
AUTHORS = {"pretrained": "pretrained", "sft": "SFT", "ceiling": "ideal agent"}


def score_table(scores: dict[str, dict[str, float]], explained: bool = False) -> str:
    """A Markdown table with one measure a row and one author a column."""
    header = ["measure", *(AUTHORS.get(author, author.replace("_", " ")) for author in scores)]
    rows = []
    for key, (name, form, better, meaning) in MEASURES.items():
        values = [author_scores.get(key) for author_scores in scores.values()]
        if all(value is None for value in values):
            continue
        cells = ["-" if value is None else form.format(value) for value in values]
        rows.append([name, *cells, *([better, meaning] if explained else [])])
    return markdown_table(header + ["better", "meaning"] * explained, rows)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Cells in aligned columns, so that the source reads as well as the page."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def save_report(path: Path, evaluation: dict[str, Any]) -> None:
    """Writes the report of a run in Markdown; all of its numbers are those of `evaluation`."""
    config, data = evaluation["config"], evaluation["dataset"]
    by_author = {author: evaluation[author] for author in AUTHORS if author in evaluation}
    sections = [
        "# Supervised fine-tuning: what came out",
        f"A model with {evaluation['environment']['parameters']:,} parameters was fine-tuned for {config['epochs']} "
        f"epochs on {data['trained_on']} of {data['sft_dataset']:,} pairs: Adam, learning rate "
        f"{config['learning_rate']:g}, batch size {config['batch_size']}, loss over response tokens only, seed "
        f"{config['seed']}. Then it and the model it started from answered {data['sft_test']} contexts that neither "
        f"had seen, at temperature {config['temperature']:g}.",
        "## Before and after",
        score_table(by_author, explained=True),
        "The *ideal agent* is a second, independently written ideal reply to the same context, scored like a model's: "
        "two people who both do everything right still choose different words, so BLEU and ROUGE-L end about there."
        if "ceiling" in by_author
        else "",
        _spread_in_words(evaluation["samples"]),
        "## Is the difference real?",
        "\n".join(_in_words(name, found, data["sft_test"]) for name, found in evaluation["comparison"].items()),
        "The intervals come from 10,000 paired bootstrap resamples of the test contexts.",
        "## Loss",
        "![loss curve](loss_curve.png)",
        "## Epoch by epoch",
        "Measured on validation contexts, with really generated replies. Epoch 0 is the pretrained model"
        + (", epoch 3 the assignment's first setting, epoch 5 the default. " if "ceiling" in by_author else ". ")
        + _lowest_in_words(evaluation["by_epoch"]),
        _epoch_table(evaluation["by_epoch"]),
    ]
    for name, title, meaning in [
        ("unseen_wording", "Unseen wordings", "Sentence patterns that occur nowhere in the training of either model."),
        (
            "unseen_phrase",
            "Unseen phrases",
            "The problem is said with a phrase that occurs in pretraining alone, in messages that say a problem twice "
            "and that no agent answers. No reply to it was ever seen; its meaning had to be learnt from its company.",
        ),
    ]:
        if name in evaluation:
            sections += [f"## {title}", meaning, score_table(evaluation[name])]
    if "robustness" in evaluation:
        sections += [
            "## Untidy contexts",
            "The test contexts once more: with a random typo each, in lower case, and about a product whose name is in "
            "no catalogue. An item counts as named if it is spelled as in the catalogue or as the customer spells it. "
            "Share rated 4.0 or more:",
            _robustness_table(evaluation["robustness"]),
        ]
    sections += [
        "## Could a look-up do it?",
        "The reply to the training context with the most similar words (TF-IDF), and the most common training reply. "
        + _look_up_in_words(evaluation["sft"], evaluation["baselines"]),
        score_table({"sft": evaluation["sft"], **evaluation["baselines"]}),
    ]
    if "worst_replies" in evaluation:
        sections += [
            "## What goes wrong",
            "Fine-tuned replies by the category of what was asked for; a reply to two problems counts in both.",
            _category_table(evaluation["errors_by_category"]),
            f"The {len(evaluation['worst_replies'])} lowest rated replies of the fine-tuned model:",
            *(_worst(reply) for reply in evaluation["worst_replies"]),
        ]
    sections += [
        "## Side by side",
        "Where a text has several lines, ` / ` stands between them.",
        *(_example(entry) for entry in evaluation["examples"]),
    ]
    sections.insert(2, _contents(sections))
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(section for section in sections if section) + "\n", encoding="utf-8")


def _contents(sections: list[str]) -> str:
    """Links to all sections, as GitHub names them."""
    titles = [section.removeprefix("## ") for section in sections if section.startswith("## ")]
    return "\n".join(f"- [{title}](#{re.sub('[^a-z0-9 -]', '', title.lower()).replace(' ', '-')})" for title in titles)


def _in_words(name: str, found: dict[str, Any], contexts: int) -> str:
    low, high = found["ci95"]
    return (
        f"- **{MEASURES[name][0]}** changed by {found['difference']:+.3f}; on other contexts of this kind by "
        f"{low:+.3f} to {high:+.3f} (95% interval, p = {found['p_value']:.4f}): {verdict(found, contexts)}."
    )


def verdict(found: dict[str, Any], contexts: int) -> str:
    """What a comparison of so many test contexts says, as far as its digits are shown."""
    low, high = (round(bound, 3) for bound in found["ci95"])
    if contexts < FEWEST_CONTEXTS:
        return f"{contexts} test contexts are too few to tell"
    if low > 0:
        return "the fine-tuned model is better"
    return "the fine-tuned model is worse" if high < 0 else "this does not show that either model is better"


def _lowest_in_words(by_epoch: list[dict[str, Any]]) -> str:
    lowest, last = min(by_epoch, key=lambda entry: entry["validation_loss"])["epoch"], by_epoch[-1]["epoch"]
    advice = "; it was still falling, so more epochs may be better" if lowest == last else ""
    return f"The validation loss is lowest after epoch {lowest}{advice}."


def epoch_in_words(entry: dict[str, Any]) -> str:
    """An entry of `by_epoch` in a line."""
    scores = [f"{MEASURES[key][0]} {MEASURES[key][1].format(entry[key])}" for key in PRINTED if key in entry]
    return f"epoch {entry['epoch']}: validation loss {entry['validation_loss']:.3f}, {', '.join(scores)}"


def _epoch_table(by_epoch: list[dict[str, Any]]) -> str:
    forms = {"epoch": "{}", "train_loss": "{:.3f}", "validation_loss": "{:.3f}"}
    forms |= {key: MEASURES[key][1] for key in SHOWN if key in by_epoch[0]}
    header = [MEASURES[key][0] if key in MEASURES else key.replace("_", " ") for key in forms]
    cells = [["-" if row[key] is None else form.format(row[key]) for key, form in forms.items()] for row in by_epoch]
    return markdown_table(header, cells)


def _spread_in_words(samples: dict[str, Any]) -> str:
    if samples["per_context"] == 1:
        return "Every model wrote one reply to each context."
    spread = ", ".join(
        f"{scores['bleu']:.3f} for BLEU and {scores['rouge_l']:.3f} for ROUGE-L ({AUTHORS[author]})"
        for author, scores in samples["spread"].items()
    )
    return (
        f"Every model wrote {samples['per_context']} replies to each context, and its scores are their means. From one "
        f"set of replies to the next the scores have a standard deviation of {spread}."
    )


def _look_up_in_words(sft: dict[str, float], baselines: dict[str, dict[str, float]]) -> str:
    measures = ["bleu", "rouge_l", *(["rated_4_or_more"] if "rated_4_or_more" in sft else [])]
    as_good = [
        f"{name.replace('_', ' ')} in {MEASURES[measure][0]}"
        for name, scores in baselines.items()
        for measure in measures
        if scores[measure] >= sft[measure]
    ]
    if as_good:
        return f"**A look-up does as well as the fine-tuned model: {', '.join(as_good)}.**"
    return (
        "Neither does as well as the fine-tuned model in any of "
        + ", ".join(MEASURES[name][0] for name in measures)
        + "."
    )


def _robustness_table(robustness: dict[str, dict[str, dict[str, float]]]) -> str:
    return markdown_table(
        ["contexts", AUTHORS["pretrained"], AUTHORS["sft"]],
        [
            [name.replace("_", " "), *(f"{scores[author]['rated_4_or_more']:.1%}" for author in ("pretrained", "sft"))]
            for name, scores in robustness.items()
        ],
    )


def _category_table(errors: dict[str, dict[str, float]]) -> str:
    worst_first = sorted(errors.items(), key=lambda entry: -entry[1]["rated_below_4"])
    rows = [[category, str(found["replies"]), f"{found['rated_below_4']:.1%}"] for category, found in worst_first]
    return markdown_table(["category", "replies", "rated below 4.0"], rows)


def _worst(reply: dict[str, Any]) -> str:
    reasons = "; ".join(reply["faults"]) or "nothing is wrong with it"
    return f"> {_in_one_line(reply['context'])}\n\n- {reply['rating']:.1f}, {reasons}: {_in_one_line(reply['text'])}"


def _in_one_line(text: str) -> str:
    """Somebody's text in a paragraph of Markdown, where none of it means anything but itself."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", " / ".join(text.split("\n"))) or "(nothing)"


def _example(entry: dict[str, Any]) -> str:
    lines = [f"> {_in_one_line(entry['context'])}", ""]
    for author, name in {"pretrained": "Pretrained", "sft": "SFT", "reference": "Reference"}.items():
        rating = f" ({entry[f'{author}_rating']:.1f})" if f"{author}_rating" in entry else ""
        lines.append(f"- **{name}**{rating}: {_in_one_line(entry[author])}")
    return "\n".join(lines)


def print_summary(evaluation: dict[str, Any], written: list[Path]) -> None:
    """The last lines of a run: how many pairs trained, the files, and what fine-tuning changed."""
    data = evaluation["dataset"]
    others = data["sft_dataset"] - data["trained_on"]
    why = " (the others have high_quality 0)" if others else ""
    print(f"\ntrained on {data['trained_on']:,} of {data['sft_dataset']:,} pairs{why}\n\nwritten:")
    for path in written:
        print(f"  {path}")
    shown = {key: MEASURES[key] for key in PRINTED if key in evaluation["sft"]}
    names = [name for name, *_ in shown.values()]
    print("\n" + " " * 12 + "".join(f"{name:>20}" for name in names))
    for author in ("pretrained", "sft"):
        values = [form.format(evaluation[author][key]) for key, (_, form, *_) in shown.items()]
        print(f"{AUTHORS[author]:<12}" + "".join(f"{value:>20}" for value in values))
    print()
    for name, found in evaluation["comparison"].items():
        low, high = found["ci95"]
        change = f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"{MEASURES[name][0]} {change}: {verdict(found, data['sft_test'])}")
