"""What a person reads after a run: report and summary, both made from `evaluation.json`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from part3_pretrain.runtime.files import atomic_write
from part4_sft.metrics import HEADLINE_MEASURES


class Measure(NamedTuple):
    """How a measure is presented."""

    name: str
    meaning: str
    format: str = ".1%"
    better: str = "higher"


NEAR = "near that of references"
MEASURES = {
    "bleu": Measure("BLEU", "mean sentence BLEU against the reference reply, smoothed", ".3f"),
    "corpus_bleu": Measure("corpus BLEU", "BLEU of all n-grams counted together", ".3f"),
    "rouge_l": Measure("ROUGE-L", "mean F1 of the longest common subsequence with that reply", ".3f"),
    "rating": Measure("rating", "mean rating by the rubric, 1.0 to 5.0", ".2f"),
    "rated_4_or_more": Measure("rated 4.0 or more", "share of replies that count as high quality"),
    "invented": Measure("invented", "names or promises what neither customer nor policy gave", better="lower"),
    "repeats_fact": Measure("repeats a fact", "a number, amount, date, address or name of the context", better=NEAR),
    "invents_fact": Measure(
        "invents a fact", "one that stands neither there nor in two training responses", better="lower"
    ),
    "right_item": Measure("right item", "names the customer's item, letter for letter"),
    "wrong_item": Measure("wrong item", "names another item of the catalogue", better="lower"),
    "right_resolution": Measure("right resolution", "gives what the policy prescribes, and nothing else"),
    "right_order_number": Measure("right order number", "cites it exactly, of the contexts that give one"),
    "both_problems_resolved": Measure("both problems", "resolves both, of the contexts with two"),
    "stops_by_itself": Measure("stops by itself", "ends with `<EOS>` within the token limit"),
    "length_ratio": Measure("length ratio", "words of the replies per word of the references", ".2f", "near 1"),
    "distinct_2": Measure("distinct-2", "different pairs of words among all pairs", ".3f", NEAR),
    "perplexity": Measure("perplexity", "of the reference's tokens, given the context", ".2f", "lower"),
}
AUTHORS = {
    "pretrained": "pretrained",
    "sft": "SFT",
    "ceiling": "agreement of ideal agents",
    "likeliest_ideal": "likeliest ideal words",
    "reference": "references",
}
MODELS = ("pretrained", "sft")
UNSEEN_SETS = {  # key in `evaluation.json`: (title, what was not seen)
    "unseen_wording": ("Unseen wordings", "Sentence patterns that occur nowhere in the training of either model."),
    "unseen_phrase": (
        "Unseen phrases",
        "The problem is said with a phrase that occurs in pretraining alone, in messages that say a problem twice and "
        "that no agent answers. No reply to it was ever seen; its meaning had to be learnt from its company.",
    ),
}
CONTROLS = {  # key in `controls`: whose replies these are
    "pushed_1_token": "pretrained, given the reference's first token",
    "pushed_4_tokens": "pretrained, given its first four tokens",
    "pushed_sentence": "pretrained, given its whole first sentence",
    "first_tokens_forbidden": "pretrained, its five likeliest first tokens forbidden",
    "best_of": "pretrained, the best of all its samples",
    "few_shot": "pretrained, shown ideal pairs in the prompt",
    "shuffled_responses": "fine-tuned on the responses to other contexts",
    "ten_pairs": "fine-tuned on ten pairs, in as many steps",
}
CONTROL_MEASURES = ("rated_4_or_more", "right_item", "right_resolution", "bleu")
SMALLEST_GAIN = 0.05  # of the share rated 4.0 or more
MOST = 0.5  # of the gain
# Resampling fewer says too little about others. Of 40 contexts a 95% interval held the truth in 91 to 95% of 1,500
# simulations, of 20 in 88 to 95%, of 10 in 65 to 92%; BCa (Efron 1987) in 92 to 97%, 88 to 97% and 65 to 94%.
MIN_TEST_CONTEXTS, MIN_INTENTS = 40, 20


def save_report(path: Path, evaluation: dict[str, Any]) -> None:
    """Write the report of a run in Markdown, without sections about what was not measured."""
    sections = {"Before and after": _before_and_after(evaluation)}
    if "comparison" in evaluation:
        sections["Is the difference real?"] = _comparison(evaluation)
    sections["Loss"] = ["![loss curve](loss_curve.png)"]
    sections["Epoch by epoch"] = _epoch_by_epoch(evaluation)
    if "facts" in evaluation:
        sections["Repeated and invented"] = _facts(evaluation["facts"])
    for key, (title, meaning) in UNSEEN_SETS.items():
        if key in evaluation:
            sections[title] = [meaning, score_table(evaluation[key])]
    if "robustness" in evaluation:
        sections["Untidy contexts"] = _untidy_contexts(evaluation["robustness"])
    if "curve" in evaluation.get("hand_over", {}):
        sections["When does it not answer?"] = _hand_over(
            evaluation["hand_over"], evaluation["config"]["hand_over"] is None
        )
    if "controls" in evaluation:
        sections["Was it taught?"] = _controls(evaluation)
    if "baselines" in evaluation:
        sections["Could a look-up do it?"] = _look_up(evaluation["sft"], evaluation["baselines"])
    if "worst_replies" in evaluation:
        sections["What goes wrong"] = _what_goes_wrong(evaluation)
    if evaluation["examples"]:
        sections["Side by side"] = _side_by_side(evaluation["examples"])
    anchors = [re.sub("[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in sections]  # as GitHub makes them
    contents = "\n".join(f"- [{title}](#{anchor})" for title, anchor in zip(sections, anchors))
    report = ["# Supervised fine-tuning: what came out", _introduction(evaluation), contents]
    for title, paragraphs in sections.items():
        report += [f"## {title}", *paragraphs]
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(report) + "\n", encoding="utf-8")


def _introduction(evaluation: dict[str, Any]) -> str:
    config, data, answered = evaluation["config"], evaluation["dataset"], evaluation["samples"]["contexts"]
    recipe = f"learning rate {config['learning_rate']:g}"
    if config["schedule"] != "constant" or config["warmup_steps"]:
        recipe += f" ({config['schedule']} after {config['warmup_steps']} steps of warm-up)"
    if config["max_grad_norm"]:
        recipe += f", gradients scaled down to a norm of {config['max_grad_norm']:g}"
    learnt = "response tokens only"
    if config["chat_template"] == "model":
        learnt = f"what the assistant says ({config['train_on_turns']} turns) in the model's own chat template"
    share = f"{answered} of {data['sft_test']}" if answered < data["sft_test"] else str(answered)
    tested = (
        f"Then it and the model it started from answered {share} contexts that are not in the training data, "
        f"at temperature {config['temperature']:g}."
    )
    if not answered:
        tested = "Neither it nor the model it started from wrote any reply (`--evaluate none`)."
    source = f"pairs of `{Path(config['data']).name}`" if config["data"] else "synthetic retail pairs"
    return (
        f"`{config['model']}`, a model with {evaluation['environment']['parameters']:,} parameters, was fine-tuned for "
        f"{config['epochs']} epoch{'s' * (config['epochs'] > 1)} on {data['trained_on']} of {data['sft_dataset']:,} "
        f"{source}: Adam, {recipe}, batch size {config['batch_size']}, loss over {learnt}, seed {config['seed']}. "
        + tested
    )


def _before_and_after(evaluation: dict[str, Any]) -> list[str]:
    authors = evaluation | ({"reference": evaluation["facts"]["reference"]} if "facts" in evaluation else {})
    paragraphs = [score_table({name: authors[name] for name in AUTHORS if name in authors}, explained=True)]
    if "ceiling" in evaluation:
        paragraphs.append(
            "The *agreement of ideal agents* is what a second, independently written ideal reply to the same context "
            "scores: two people who both do everything right still choose different words. It is no ceiling. The "
            "*likeliest ideal words* are the upper bound: those of an ideal agent who always takes the words that "
            "others choose most often. No model can be expected to pass them in BLEU and ROUGE-L."
        )
    samples = evaluation["samples"]
    if not samples["contexts"]:
        return paragraphs
    if samples["per_context"] == 1:
        return [*paragraphs, "Every model wrote one reply to each context."]
    spread = ", ".join(
        f"{deviations['bleu']:.3f} for BLEU and {deviations['rouge_l']:.3f} for ROUGE-L ({AUTHORS[author]})"
        for author, deviations in samples["spread"].items()
    )
    paragraphs.append(
        f"Every model wrote {samples['per_context']} replies to each context, and its scores are their means. From one "
        f"set of replies to the next the scores have a standard deviation of {spread}."
    )
    return paragraphs


def _comparison(evaluation: dict[str, Any]) -> list[str]:
    lines = []
    for key, comparison in evaluation["comparison"].items():
        low, high = comparison["ci95"]
        p_value = "" if too_few(**evaluation["resampled"]) else f", p = {comparison['p_value']:.4f}"
        lines.append(
            f"- **{MEASURES[key].name}** changed by {comparison['difference']:+.3f}; on other contexts of this kind by "
            f"{low:+.3f} to {high:+.3f} (95% interval{p_value}): {verdict(low, high, **evaluation['resampled'])}."
        )
    drawn = "the test contexts"
    if "intents" in evaluation["resampled"]:
        drawn = f"the {evaluation['resampled']['intents']} intents and, within these, of the test contexts"
    return [
        "\n".join(lines),
        f"The intervals come from 10,000 paired bootstrap resamples of {drawn}. What another pretraining or another "
        "fine-tuning would change is not in them.",
    ]


def verdict(low: float, high: float, contexts: int, intents: int | None = None) -> str:
    """Say what the interval of a difference on so many test contexts shows, to the three digits that are printed."""
    if reason := too_few(contexts, intents):
        return reason
    if round(low, 3) > 0:
        return "the fine-tuned model is better"
    if round(high, 3) < 0:
        return "the fine-tuned model is worse"
    return "this does not show that either model is better"


def too_few(contexts: int, intents: int | None = None) -> str:
    """Say why an interval of so many test contexts is too narrow for a verdict; "" where it is not."""
    if contexts < MIN_TEST_CONTEXTS:
        return f"{contexts} test contexts are too few to tell ({MIN_TEST_CONTEXTS} at least)"
    if intents is not None and intents < MIN_INTENTS:
        return f"{intents} intents among the test contexts are too few to tell ({MIN_INTENTS} at least)"
    return ""


def _epoch_by_epoch(evaluation: dict[str, Any]) -> list[str]:
    by_epoch = evaluation["by_epoch"]
    settings = ", epoch 3 the assignment's first setting, epoch 5 the default" if "ceiling" in evaluation else ""
    best = min(by_epoch, key=lambda entry: entry["validation_loss"])
    advice = "; it was still falling, so more epochs may be better" if best is by_epoch[-1] else ""
    measures = {key: MEASURES[key] for key in reversed(HEADLINE_MEASURES) if any(key in entry for entry in by_epoch)}
    measured_on = "contexts, with really generated replies" if measures else "pairs"
    rows = []
    for entry in by_epoch:
        train_loss = "-" if entry["train_loss"] is None else f"{entry['train_loss']:.3f}"
        scores = [format(entry[key], one.format) if key in entry else "-" for key, one in measures.items()]
        rows.append([str(entry["epoch"]), train_loss, f"{entry['validation_loss']:.3f}", *scores])
    header = ["epoch", "train loss", "validation loss", *(measure.name for measure in measures.values())]
    return [
        f"Measured on validation {measured_on}. Epoch 0 is the pretrained model{settings}. The validation "
        f"loss is lowest after epoch {best['epoch']}{advice}. Tested and saved is the model as it was "
        f"after epoch {evaluation['kept_epoch']} (`--keep {evaluation['config']['keep']}`).",
        markdown_table(header, rows),
    ]


def _facts(facts: dict[str, Any]) -> list[str]:
    names = {author: AUTHORS[author] for author in (*MODELS, "reference")}
    by_kind = [facts["by_kind"][author] for author in names]
    rows = [
        [kind, *(f"{shares[kind][source]:.1%}" for source in ("repeated", "invented") for shares in by_kind)]
        for kind in by_kind[0]
    ]
    header = ["kind", *(f"{verb}: {name}" for verb in ("repeats", "invents") for name in names.values())]
    known = ", ".join(f"{facts['known'][author]:.1%} ({name})" for author, name in names.items())
    paragraphs = [
        "Share of replies that repeat a fact of the context, and that invent one, by the kind of fact. What at least "
        f"two of {facts['training_responses']:,} training responses say though their contexts do not, such as a "
        f"hotline, is not invented; {known} of the replies say such a thing. Where the references invent, the model "
        "learns to.",
        markdown_table(header, rows),
    ]
    for one in facts["inventions"]:
        invented = ", ".join(map(_escaped, one["invented"]))
        paragraphs += [f"> {_escaped(one['context'])}", f"- SFT invents **{invented}**: {_escaped(one['text'])}"]
    return paragraphs


def _untidy_contexts(robustness: dict[str, Any]) -> list[str]:
    rows = [
        [name.replace("_", " "), *(f"{scores[author]['rated_4_or_more']:.1%}" for author in MODELS)]
        for name, scores in robustness.items()
    ]
    return [
        "The test contexts once more: with a random typo each, in lower case, and about a product whose name is in "
        "no catalogue. An item counts as named if it is spelled as in the catalogue or as the customer spells it. Then "
        "messages as people type them that no training text holds, and messages about topics of which no training text "
        "speaks, and that no shop can answer. Share rated 4.0 or more:",
        markdown_table(["contexts", *(AUTHORS[author] for author in MODELS)], rows),
    ]


def _hand_over(hand_over: dict[str, Any], is_chosen: bool) -> list[str]:
    threshold, curve = hand_over["threshold"], hand_over["curve"]
    chosen = chosen_point(hand_over)
    source = "chosen on validation contexts" if is_chosen else "given by `--hand-over`"
    return [
        "A reply goes to a person, who reads the model's draft, where too few other replies that the model draws for "
        f"the same message claim the same. The threshold was {source}: "
        f"{threshold:.3g}. **On the test the model answers {chosen['coverage']:.1%} by itself, with "
        f"{chosen['rated_4_or_more']:.1%} rated 4.0 or more, and hands {1 - chosen['coverage']:.1%} to a person**; "
        f"without it, it would answer all with {curve[0]['rated_4_or_more']:.1%}.",
        "![Share of the test replies that the model gives by itself, and share of these rated 4.0 or more]"
        "(coverage.png)",
    ]


def chosen_point(hand_over: dict[str, Any]) -> dict[str, float]:
    """Return the point of the curve at the threshold; the last one where all are below it."""
    curve: list[dict[str, float]] = hand_over["curve"]
    return next((point for point in curve if point["threshold"] >= hand_over["threshold"]), curve[-1])


def _controls(evaluation: dict[str, Any]) -> list[str]:
    controls, share = evaluation["controls"], "rated_4_or_more"
    left_out = controls["intents_not_fine_tuned"]
    rows = [
        [name, *(format(scores[key], MEASURES[key].format) for key in CONTROL_MEASURES)]
        for name, scores in {
            **controlled_models(evaluation),
            "pretrained, on six intents": left_out["pretrained"],
            "fine-tuned without these six, on them": left_out["sft"],
        }.items()
    ]
    first, rest = controls["likelihood"]["first_token"], controls["likelihood"]["rest"]
    gain = first["pretrained"] - first["sft"]
    return [
        "Each row could have shown that fine-tuning taught nothing. What the pretrained model is given counts as its "
        f"own. **{controls_verdict(evaluation)}**",
        "![Share of replies rated 4.0 or more: pretrained, each control, fine-tuned](controls.png)",
        markdown_table(["model", *(MEASURES[key].name for key in CONTROL_MEASURES)], rows),
        f"Fine-tuned without six intents, whose resolutions stand in pretraining's policies alone, the model answers "
        f"them with {left_out['sft'][share]:.1%} rated 4.0 or more (pretrained {left_out['pretrained'][share]:.1%}). "
        f"A reference costs the pretrained model {first['pretrained'] + rest['pretrained']:.1f} nats and the "
        f"fine-tuned one {first['sft'] + rest['sft']:.1f}; {gain:.2f} of the difference lie in its first token.",
    ]


def controlled_models(evaluation: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the scores of the pretrained model, of each control and of the fine-tuned model, by what it is called."""
    controls = {CONTROLS[name]: scores for name, scores in _by_control(evaluation["controls"]).items()}
    return {"pretrained": evaluation["pretrained"], **controls, "SFT": evaluation["sft"]}


def _by_control(controls: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return the scores of the controls that answer the test contexts, best of 16 by the name "best_of"."""
    scores = {"best_of" if name.startswith("best_of") else name: each for name, each in controls.items()}
    return {name: scores[name] for name in CONTROLS}


def controls_verdict(evaluation: dict[str, Any]) -> str:
    """Say in a sentence how much of the gain in replies rated 4.0 or more a control gives too, and what that shows."""
    before, after = (evaluation[author]["rated_4_or_more"] for author in MODELS)
    if after - before < SMALLEST_GAIN:
        return f"The controls prove nothing: there is no gain to explain ({before:.1%} before, {after:.1%} after)."
    gains = {
        name: (scores["rated_4_or_more"] - before) / (after - before)
        for name, scores in _by_control(evaluation["controls"]).items()
    }
    shuffled, ten = max(gains.pop("shuffled_responses"), 0.0), max(gains.pop("ten_pairs"), 0.0)
    pushed = max(gains, key=lambda name: gains[name])
    result = (
        f"of all that the pretrained model is pushed with, the best gives {max(gains[pushed], 0.0):.0%} of the gain"
    )
    result += f" ({CONTROLS[pushed]}), shuffled responses give {shuffled:.0%}, ten pairs {ten:.0%}"
    if gains[pushed] > MOST or shuffled > MOST:
        return f"The controls do not show that the pairs taught anything: {result}."
    few = "(a few are enough for most of it)" if ten > MOST else "(a few are not enough)"
    return f"The behaviour was not in the pretrained model, and right pairs taught it {few}: {result}."


def _look_up(sft: dict[str, float], baselines: dict[str, dict[str, float]]) -> list[str]:
    names = {key: MEASURES[key].name for key in HEADLINE_MEASURES if key in sft}
    as_good = [
        f"{baseline.replace('_', ' ')} in {name}"
        for baseline, scores in baselines.items()
        for key, name in names.items()
        if scores[key] >= sft[key]
    ]
    result = f"Neither does as well as the fine-tuned model in any of {', '.join(names.values())}."
    if as_good:
        result = f"**A look-up does as well as the fine-tuned model, or better: {', '.join(as_good)}.**"
    text = "The reply to the training context with the most similar words (TF-IDF), and the most common training reply"
    return [f"{text}. {result}", score_table({"sft": sft, **baselines})]


def _what_goes_wrong(evaluation: dict[str, Any]) -> list[str]:
    worst_first = sorted(evaluation["errors_by_category"].items(), key=lambda entry: -entry[1]["rated_below_4"])
    rows = [[category, str(errors["replies"]), f"{errors['rated_below_4']:.1%}"] for category, errors in worst_first]
    paragraphs = [
        "Fine-tuned replies by the category of what was asked for; a reply to two problems counts in both.",
        markdown_table(["category", "replies", "rated below 4.0"], rows),
        f"The {len(evaluation['worst_replies'])} lowest rated replies of the fine-tuned model:",
    ]
    for reply in evaluation["worst_replies"]:
        reasons = "; ".join(reply["faults"]) or "nothing is wrong with it"
        text = f"- {reply['rating']:.1f}, {reasons}: {_escaped(reply['text'])}"
        paragraphs += [f"> {_escaped(reply['context'])}", text]
    return paragraphs


def _side_by_side(examples: list[dict[str, Any]]) -> list[str]:
    paragraphs = ["Where a text has several lines, ` / ` stands between them."]
    for example in examples:
        lines = []
        for author, name in {"pretrained": "Pretrained", "sft": "SFT", "reference": "Reference"}.items():
            rating = f" ({example[f'{author}_rating']:.1f})" if f"{author}_rating" in example else ""
            lines.append(f"- **{name}**{rating}: {_escaped(example[author])}")
        paragraphs += [f"> {_escaped(example['context'])}", "\n".join(lines)]
    return paragraphs


def _escaped(text: str) -> str:
    """Return a text in one line, in which nothing means anything in Markdown."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", text.replace("\n", " / ")) or "(nothing)"


def score_table(scores: dict[str, dict[str, float]], explained: bool = False) -> str:
    """Return a Markdown table with one measure a row and one author a column, and what each measure means."""
    header = ["measure", *(AUTHORS.get(author, author.replace("_", " ")) for author in scores)]
    rows = []
    for key, measure in MEASURES.items():
        values = [f"{of_author[key]:{measure.format}}" if key in of_author else "-" for of_author in scores.values()]
        if set(values) != {"-"}:
            rows.append([measure.name, *values, measure.better, measure.meaning])
    if not explained:
        return markdown_table(header, [row[:-2] for row in rows])
    return markdown_table([*header, "better", "meaning"], rows)


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table in aligned columns, so that the source reads as well as the page."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def describe_epoch(entry: dict[str, Any]) -> str:
    """Return an entry of `by_epoch` as one line."""
    scores = [f"{MEASURES[key].name} {entry[key]:{MEASURES[key].format}}" for key in HEADLINE_MEASURES if key in entry]
    return ", ".join([f"epoch {entry['epoch']}: validation loss {entry['validation_loss']:.3f}", *scores])


def print_summary(evaluation: dict[str, Any], written: list[Path]) -> None:
    """Print how many pairs trained, which files were written, and what fine-tuning changed."""
    data = evaluation["dataset"]
    others = " (the others have high_quality 0)" if data["trained_on"] < data["sft_dataset"] else ""
    print(f"\ntrained on {data['trained_on']:,} of {data['sft_dataset']:,} pairs{others}\n\nwritten:")
    for path in written:
        print(f"  {path}")
    measures = {key: MEASURES[key] for key in HEADLINE_MEASURES if key in evaluation["sft"]}
    measures = measures or {"perplexity": MEASURES["perplexity"]}
    print("\n" + " " * 12 + "".join(f"{measure.name:>20}" for measure in measures.values()))
    for author in MODELS:
        values = [format(evaluation[author][key], measure.format) for key, measure in measures.items()]
        print(f"{AUTHORS[author]:<12}" + "".join(f"{value:>20}" for value in values))
    print()
    for key, comparison in evaluation.get("comparison", {}).items():
        low, high = comparison["ci95"]
        change = f"{comparison['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
        print(f"{MEASURES[key].name} {change}: {verdict(low, high, **evaluation['resampled'])}")
    if "controls" in evaluation:
        print(controls_verdict(evaluation))
