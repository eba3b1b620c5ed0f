"""The report and the summary say what `evaluation.json` says, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from part4_sft.report import (
    MEASURES,
    controls_verdict,
    describe_epoch,
    print_summary,
    save_report,
    verdict,
)

SCORES = {
    "pretrained": dict.fromkeys(MEASURES, 0.1234),
    "sft": dict.fromkeys(MEASURES, 0.5678),
    "ceiling": {"bleu": 0.6, "rouge_l": 0.7, "rating": 5.0, "rated_4_or_more": 1.0},
    "likeliest_ideal": {"bleu": 0.75, "rouge_l": 0.8, "rating": 5.0, "rated_4_or_more": 1.0},
}


RECIPE = {"schedule": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "keep": "last", "chat_template": "none"}
SOURCES = {"model": "checkpoints/pretrained.pt", "data": None}
POINT = ("threshold", "coverage", "rated_4_or_more")
CURVE = [(0.0, 1.0, 0.7), (0.5, 0.9, 0.8)]
PUSHES = ("pushed_1_token", "pushed_4_tokens", "pushed_sentence", "first_tokens_forbidden")


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """What a run of 5 epochs might come to."""
    by_epoch: list[dict[str, Any]] = []
    for epoch in range(6):
        losses = {"train_loss": 2.0 - 0.25 * epoch if epoch else None, "validation_loss": 2.125 - 0.25 * epoch}
        scores = {"bleu": 0.01 * epoch, "rouge_l": 0.02 * epoch, "rated_4_or_more": 0.1 * epoch}
        by_epoch.append({"epoch": epoch} | losses | scores)
    comparison = {"difference": 0.3333, "ci95": [0.2222, 0.4444], "p_value": 0.0001}
    texts = {"pretrained": "Noted.\nNext.", "sft": "I am sorry.", "sft_rating": 4.5, "reference": "I am very sorry."}
    worst = {"context": "Hi.", "text": "No.", "rating": 1.0, "faults": ["no item", "no resolution"]}
    errors = {"account": {"replies": 30, "rated_below_4": 0.01}, "payment": {"replies": 20, "rated_below_4": 0.05}}
    return {
        "config": {
            "epochs": 5,
            "learning_rate": 5e-5,
            "batch_size": 8,
            "seed": 0,
            "temperature": 0.7,
            **RECIPE,
            **SOURCES,
        }
        | {"hand_over": None},
        "environment": {"parameters": 1234567},
        "dataset": {"sft_dataset": 5000, "sft_test": 200, "trained_on": 500},
        **SCORES,
        "samples": {"contexts": 200, "per_context": 3, "spread": {"sft": {"bleu": 0.0071, "rouge_l": 0.0082}}},
        "robustness": {"one_typo": SCORES, "unknown_product": SCORES},
        "worst_replies": [worst, {"context": "Hello.", "text": "Yes.", "rating": 4.0, "faults": []}],
        "errors_by_category": errors,
        "comparison": dict.fromkeys(("bleu", "rouge_l", "rating"), comparison),
        "resampled": {"contexts": 200, "intents": 66},
        "facts": {
            "training_responses": 500,
            "reference": {"repeats_fact": 0.75, "invents_fact": 0.25},
            "known": {"pretrained": 0.0, "sft": 0.1, "reference": 0.2},
            "by_kind": {
                author: {"number": {"repeated": share, "known": 0.1, "invented": share / 2}}
                for author, share in (("pretrained", 0.1), ("sft", 0.6), ("reference", 0.8))
            },
            "inventions": [{"context": "Where is 48213?", "text": "48214\n*is* late.", "invented": ["48214", "*is*"]}],
        },
        "unseen_wording": SCORES,
        "unseen_phrase": {author: SCORES[author] for author in ("pretrained", "sft")},
        "controls": {
            **dict.fromkeys(PUSHES, SCORES["pretrained"]),
            **dict.fromkeys(("best_of_16", "few_shot", "shuffled_responses", "ten_pairs"), SCORES["pretrained"]),
            "intents_not_fine_tuned": {author: SCORES[author] for author in ("pretrained", "sft")},
            "likelihood": {
                "first_token": {"pretrained": 0.5, "sft": 0.25},
                "rest": {"pretrained": 100.0, "sft": 8.0},
            },
        },
        "hand_over": {
            "threshold": 0.5,
            "curve": [dict(zip(POINT, (0.0, 1.0, 0.7))), dict(zip(POINT, (0.5, 0.9, 0.8)))],
        },
        "baselines": dict.fromkeys(("nearest_pair", "most_common_reply"), SCORES["pretrained"]),
        "by_epoch": by_epoch,
        "best_epoch": 5,
        "kept_epoch": 5,
        "examples": [{"context": f"My desk number {number} is late.", **texts} for number in range(2)],
    }


@pytest.fixture
def report(evaluation: dict[str, Any], tmp_path: Path) -> Callable[..., str]:
    """Returns the report of the evaluation as it is when called, or one of its sections."""

    def render(section: str | None = None) -> str:
        save_report(tmp_path / "report.md", evaluation)
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        return text if section is None else text.split(f"\n## {section}\n")[1].split("\n## ")[0]

    return render


def test_the_report_is_the_page_beside_this_file(report: Callable[..., str]) -> None:
    assert report() == Path(__file__).with_name("report.md").read_text(encoding="utf-8")


def test_the_verdict_is_what_the_interval_shows() -> None:
    assert verdict(0.0006, 0.2, contexts=40) == "the fine-tuned model is better"
    assert verdict(-0.2, -0.0006, contexts=40, intents=20) == "the fine-tuned model is worse"
    for low, high in ((-0.1, 0.2), (0.0004, 0.0004), (-0.0004, -0.0004)):  # the last two are printed as 0.000
        assert verdict(low, high, contexts=40) == "this does not show that either model is better"


def test_there_is_no_verdict_where_intervals_are_too_narrow() -> None:
    assert verdict(0.1, 0.2, contexts=39) == "39 test contexts are too few to tell (40 at least)"
    assert verdict(0.1, 0.2, contexts=39, intents=39) == "39 test contexts are too few to tell (40 at least)"
    assert (
        verdict(0.1, 0.2, contexts=200, intents=19)
        == "19 intents among the test contexts are too few to tell (20 at least)"
    )


def test_the_report_names_the_best_epoch_and_a_look_up_as_good_and_escapes_markdown(
    evaluation: dict[str, Any], report: Callable[..., str]
) -> None:
    evaluation["by_epoch"][4]["validation_loss"] = 0.5
    assert (
        " The validation loss is lowest after epoch 4. Tested and saved is the model as it was after epoch 5 "
        in report("Epoch by epoch")
    )
    evaluation["baselines"]["nearest_pair"] = SCORES["pretrained"] | {"bleu": 0.5678, "rouge_l": 0.5677}
    warning = " **A look-up does as well as the fine-tuned model, or better: nearest pair in BLEU.**\n"
    assert warning in report("Could a look-up do it?")
    evaluation["examples"][0] |= {"pretrained": "", "sft": "<b>*now*</b>\n# [x](y) `z` | ~ _\\"}
    escaped = r"\<b\>\*now\*\</b\> / \# \[x\](y) \`z\` \| \~ \_\\"
    assert f"- **Pretrained**: (nothing)\n- **SFT** (4.5): {escaped}\n" in report("Side by side")


def test_the_controls_can_show_that_fine_tuning_taught_something_or_not(evaluation: dict[str, Any]) -> None:
    before, after = (SCORES[author]["rated_4_or_more"] for author in ("pretrained", "sft"))
    taught = "The behaviour was not in the pretrained model, and right pairs taught it "
    not_shown = "The controls do not show that the pairs taught anything: "
    controls = dict(evaluation["controls"])
    for name, share, expected in [
        ("ten_pairs", 0.49, taught + "(a few are not enough): "),
        ("ten_pairs", 0.51, taught + "(a few are enough for most of it): "),
        ("shuffled_responses", 0.49, taught),
        ("shuffled_responses", 0.51, not_shown),
        ("few_shot", 0.49, taught),
        ("few_shot", 0.51, not_shown),
    ]:
        gained = SCORES["pretrained"] | {"rated_4_or_more": before + share * (after - before)}
        evaluation["controls"] = controls | {name: gained}
        assert controls_verdict(evaluation).startswith(expected), name
        assert f"{share:.0%}" in controls_verdict(evaluation)
    evaluation["sft"] = SCORES["pretrained"]
    assert controls_verdict(evaluation).startswith("The controls prove nothing: there is no gain to explain (")


def test_a_report_on_other_contexts_does_without_the_rubric(
    evaluation: dict[str, Any], report: Callable[..., str]
) -> None:
    for key in (
        "ceiling",
        "likeliest_ideal",
        "robustness",
        "worst_replies",
        "errors_by_category",
        "unseen_wording",
        "unseen_phrase",
        "controls",
        "hand_over",
        "facts",
    ):
        del evaluation[key]
    for entry in evaluation["by_epoch"]:
        assert describe_epoch(entry).endswith(f", rated 4.0 or more {entry.pop('rated_4_or_more'):.1%}")
    assert describe_epoch(evaluation["by_epoch"][3]) == "epoch 3: validation loss 1.375, BLEU 0.030, ROUGE-L 0.060"
    scores = {"bleu": 0.1, "rouge_l": 0.2}
    evaluation |= {"pretrained": scores, "sft": scores, "baselines": {"nearest_pair": scores}}
    evaluation["samples"] = {"contexts": 200, "per_context": 1, "spread": {}}
    evaluation["resampled"] = {"contexts": 39}
    assert "(95% interval): 39 test contexts are too few to tell (40 at least).\n" in report("Is the difference real?")
    assert "p = " not in report("Is the difference real?")
    assert "resamples of the test contexts." in report("Is the difference real?")
    headings = re.findall("^## (.+)$", report(), flags=re.MULTILINE)
    assert headings[-3:] == ["Epoch by epoch", "Could a look-up do it?", "Side by side"] and len(headings) == 6
    assert "assignment" not in report() and "ideal" not in report() and "intent" not in report()
    assert re.findall(r"^\| (\S+) +\| 0", report("Before and after"), flags=re.MULTILINE) == ["BLEU", "ROUGE-L"]
    assert report("Before and after").endswith("\n\nEvery model wrote one reply to each context.\n")
    assert "| validation loss | ROUGE-L | BLEU  |" in report("Epoch by epoch")


def test_the_report_names_the_recipe_and_how_many_of_the_contexts_were_answered(
    evaluation: dict[str, Any], report: Callable[..., str]
) -> None:
    evaluation["config"] |= {"schedule": "cosine", "warmup_steps": 9, "max_grad_norm": 1.0}
    evaluation["samples"]["contexts"] = 40
    introduction = report().splitlines()[2]
    recipe = (
        "learning rate 5e-05 (cosine after 9 steps of warm-up), gradients scaled down to a norm of 1, batch size 8,"
    )
    assert recipe in introduction and "answered 40 of 200 contexts that are not in the training data" in introduction


def test_without_replies_the_report_tells_of_losses_alone(
    evaluation: dict[str, Any], report: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that went on with --evaluate none after an epoch with replies keeps what is known of that."""
    kept = ("config", "environment", "dataset", "by_epoch", "best_epoch", "kept_epoch")
    without = {key: evaluation[key] for key in kept} | {"samples": {"contexts": 0, "per_context": 0, "spread": {}}}
    without |= {author: {"perplexity": SCORES[author]["perplexity"]} for author in ("pretrained", "sft")}
    evaluation.clear()
    evaluation |= without | {"examples": []}
    for entry in evaluation["by_epoch"][1:]:
        for key in ("bleu", "rouge_l", "rated_4_or_more"):
            del entry[key]
    headings = re.findall("^## (.+)$", report(), flags=re.MULTILINE)
    assert headings == ["Before and after", "Loss", "Epoch by epoch"]
    assert "Neither it nor the model it started from wrote any reply (`--evaluate none`)." in report().splitlines()[2]
    assert re.findall(r"^\| (\S+) +\| 0", report("Before and after"), flags=re.MULTILINE) == ["perplexity"]
    assert re.search(r"^\| 1 +\| 1.750 +\| 1.875 +\| - +\| - +\| - +\|$", report("Epoch by epoch"), flags=re.MULTILINE)
    for key in ("bleu", "rouge_l", "rated_4_or_more"):
        del evaluation["by_epoch"][0][key]
    assert "Measured on validation pairs." in report("Epoch by epoch")
    assert describe_epoch(evaluation["by_epoch"][3]) == "epoch 3: validation loss 1.375"
    print_summary(evaluation, [])
    assert capsys.readouterr().out.split()[-5:] == ["perplexity", "pretrained", "0.12", "SFT", "0.57"]


@pytest.mark.parametrize(("pairs", "others"), [(5000, " (the others have high_quality 0)"), (500, "")])
def test_the_summary_names_the_files_and_both_models(
    evaluation: dict[str, Any], capsys: pytest.CaptureFixture[str], pairs: int, others: str
) -> None:
    evaluation["dataset"]["sft_dataset"] = pairs
    evaluation["resampled"] = {"contexts": 39, "intents": 30}
    print_summary(evaluation, [Path("checkpoints/sft_model.pt"), Path("outputs/evaluation.json")])
    heading, files, table, comparison = capsys.readouterr().out.strip().split("\n\n")
    assert heading == f"trained on 500 of {pairs:,} pairs{others}"
    assert files == "written:\n  checkpoints/sft_model.pt\n  outputs/evaluation.json"
    assert [re.split("  +", line.strip()) for line in table.splitlines()] == [
        ["BLEU", "ROUGE-L", "rated 4.0 or more"],
        ["pretrained", "0.123", "0.123", "12.3%"],
        ["SFT", "0.568", "0.568", "56.8%"],
    ]
    assert comparison.startswith(
        "BLEU +0.333 (+0.222 to +0.444): 39 test contexts are too few to tell (40 at least)\nROUGE-L +"
    )
    assert comparison.endswith(controls_verdict(evaluation))
