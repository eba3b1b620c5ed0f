from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from part4_sft.report import markdown_table, print_summary, save_loss_curve, save_report, score_table, smoothed

SCORES = {
    "pretrained": {"bleu": 0.1234, "rouge_l": 0.3, "rating": 2.5, "rated_4_or_more": 0.12, "stops_by_itself": 0.97},
    "sft": {"bleu": 0.4567, "rouge_l": 0.6, "rating": 4.5, "rated_4_or_more": 0.98, "stops_by_itself": 1.0},
    "ceiling": {"bleu": 0.4789, "rouge_l": 0.7, "rating": 5.0, "rated_4_or_more": 1.0, "stops_by_itself": 1.0},
}


@pytest.fixture
def evaluation() -> dict[str, Any]:
    """What a run of 5 epochs might have found."""
    by_epoch = [
        {
            "epoch": epoch,
            "train_loss": 2.0 - 0.25 * epoch if epoch else None,
            "validation_loss": 2.125 - 0.25 * epoch,
            "bleu": 0.01 * epoch,
            "rouge_l": 0.02 * epoch,
            "rated_4_or_more": 0.1 * epoch,
        }
        for epoch in range(6)
    ]
    example = {"pretrained": "Noted.\nNext.", "sft": "I am sorry | really.", "reference": "I am very sorry."}
    found = {"difference": 0.3333, "ci95": [0.2222, 0.4444], "p_value": 0.0001}
    return {
        "config": {"epochs": 5, "learning_rate": 5e-5, "batch_size": 8, "seed": 0, "temperature": 0.7},
        "environment": {"parameters": 1234567},
        "dataset": {"sft_dataset": 5000, "sft_test": 200, "trained_on": 500},
        **SCORES,
        "samples": {"per_context": 3, "spread": {"sft": {"bleu": 0.0071, "rouge_l": 0.0082}}},
        "robustness": {"one_typo": SCORES, "lower_case": SCORES, "unknown_product": SCORES},
        "worst_replies": [{"context": "Hi.", "text": "No.", "rating": 1.0, "faults": ["names another item"]}] * 10,
        "errors_by_category": {"payment": {"replies": 20, "rated_below_4": 0.05}},
        "comparison": {"bleu": found, "rouge_l": found, "rating": found},
        "unseen_wording": SCORES,
        "unseen_phrase": SCORES,
        "baselines": {"nearest_pair": SCORES["pretrained"], "most_common_reply": SCORES["pretrained"]},
        "by_epoch": by_epoch,
        "examples": [{"context": f"My desk number {number} is late.", **example} for number in range(8)],
    }


@pytest.fixture
def written(evaluation: dict[str, Any], tmp_path: Path) -> str:
    save_report(tmp_path / "report.md", evaluation)
    return (tmp_path / "report.md").read_text(encoding="utf-8")


def rows(text: str) -> list[list[str]]:
    """The cells of every line that is a row of a table."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("losses", [[2.0, 1.5, 1.0, 0.5], [2.0]], ids=["four steps", "one step"])
def test_the_loss_curve_is_a_picture(evaluation: dict[str, Any], tmp_path: Path, losses: list[float]) -> None:
    save_loss_curve(tmp_path / "loss_curve.png", losses, evaluation["by_epoch"][:2])
    picture = (tmp_path / "loss_curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 5_000
    assert [path.name for path in tmp_path.iterdir()] == ["loss_curve.png"]


def test_smoothing_keeps_a_constant_and_its_length() -> None:
    assert smoothed([3.0] * 10) == pytest.approx([3.0] * 10)
    assert smoothed([]) == []


def test_the_report_shows_before_and_after_with_all_measures(written: str) -> None:
    table = {row[0]: row[1:4] for row in rows(written.split("## ")[1])}
    assert table["measure"] == ["pretrained", "SFT", "ideal agent"]
    assert table["BLEU"] == ["0.123", "0.457", "0.479"]
    assert table["rating"] == ["2.50", "4.50", "5.00"]
    assert table["rated 4.0 or more"] == ["12.0%", "98.0%", "100.0%"]
    assert table["stops by itself"] == ["97.0%", "100.0%", "100.0%"]


def test_the_report_shows_every_epoch_the_picture_and_the_interval(written: str) -> None:
    assert "](loss_curve.png)" in written
    epochs = [row for row in rows(written) if row[0] in list("012345")]
    assert [row[:3] for row in epochs if row[0] in "035"] == [
        ["0", "-", "2.125"],
        ["3", "1.250", "1.375"],
        ["5", "0.750", "0.875"],
    ]
    assert len(epochs) == 6
    assert "+0.333" in written and "+0.222 to +0.444" in written
    assert "0.007 for BLEU and 0.008 for ROUGE-L (SFT)" in written


@pytest.mark.parametrize(
    ("ci95", "contexts", "said"),
    [
        ([0.0006, 0.2], 200, "the fine-tuned model is better"),
        ([-0.2, -0.0006], 200, "the fine-tuned model is worse"),
        ([-0.1, 0.2], 200, "this does not show that either model is better"),
        ([0.00001, 0.00002], 200, "this does not show that either model is better"),  # +0.000 to +0.000, as shown
        ([0.0, 0.0], 200, "this does not show that either model is better"),
        ([0.1, 0.2], 2, "2 test contexts are too few to tell"),
    ],
)
def test_the_verdict_is_what_the_interval_shows(
    evaluation: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ci95: list[float],
    contexts: int,
    said: str,
) -> None:
    for found in evaluation["comparison"].values():
        found["ci95"] = ci95
    evaluation["dataset"]["sft_test"] = contexts
    save_report(tmp_path / "report.md", evaluation)
    assert (tmp_path / "report.md").read_text(encoding="utf-8").count(f": {said}.\n") == 3
    print_summary(evaluation, [])
    assert capsys.readouterr().out.count(f": {said}\n") == 3


def test_the_report_tells_which_epoch_was_the_best(evaluation: dict[str, Any], tmp_path: Path) -> None:
    del evaluation["by_epoch"][5]
    for best, said in ((4, "lowest after epoch 4; it was still falling"), (2, "lowest after epoch 2.")):
        evaluation["by_epoch"][best]["validation_loss"] = 0.1 * best
        save_report(tmp_path / "report.md", evaluation)
        assert said in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_report_tells_what_goes_wrong_and_where(written: str) -> None:
    assert ["payment", "20", "5.0%"] in rows(written)
    assert written.count("1.0, names another item: No.") == 10
    assert [row for row in rows(written) if row[0] == "unknown product"] == [["unknown product", "12.0%", "98.0%"]]


def test_the_report_says_so_if_a_look_up_does_as_well(evaluation: dict[str, Any], tmp_path: Path) -> None:
    for bleu, said in [(0.45, "Neither does as well"), (0.46, "**A look-up does as well as the fine-tuned model")]:
        evaluation["baselines"]["nearest_pair"] = SCORES["pretrained"] | {"bleu": bleu}
        save_report(tmp_path / "report.md", evaluation)
        assert said in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_report_shows_eight_examples_of_all_three_texts(written: str) -> None:
    for number in range(8):
        assert f"My desk number {number} is late." in written
    assert written.count(r"I am sorry \| really.") == 8 and written.count("I am very sorry.") == 8


def test_the_contents_link_to_every_section(written: str) -> None:
    headings = re.findall("^## (.+)$", written, flags=re.MULTILINE)
    links = re.findall(r"^- \[(.+)\]\(#(.+)\)$", written, flags=re.MULTILINE)
    assert [title for title, _ in links] == headings and len(headings) > 8
    assert ("Is the difference real?", "is-the-difference-real") in links


def test_what_a_model_writes_means_nothing_in_markdown(evaluation: dict[str, Any], tmp_path: Path) -> None:
    evaluation["examples"][0]["sft"] = "<b>*now*</b>\n# [x](y) `z`"
    save_report(tmp_path / "report.md", evaluation)
    shown = r"- **SFT**: \<b\>\*now\*\</b\> / \# \[x\](y) \`z\`"
    assert shown in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()


def test_a_report_on_other_contexts_does_without_the_rubric(evaluation: dict[str, Any], tmp_path: Path) -> None:
    del evaluation["ceiling"], evaluation["comparison"]["rating"], evaluation["robustness"]
    del evaluation["worst_replies"], evaluation["errors_by_category"]
    for author in ("pretrained", "sft"):
        evaluation[author] = {"bleu": 0.1, "rouge_l": 0.2, "stops_by_itself": 1.0}
    evaluation["baselines"] = {"nearest_pair": evaluation["sft"], "most_common_reply": evaluation["sft"]}
    save_report(tmp_path / "report.md", evaluation)
    assert "assignment" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    before_and_after = rows((tmp_path / "report.md").read_text(encoding="utf-8").split("## ")[1])
    assert [row[0] for row in before_and_after if row[0].strip("-")] == [
        "measure",
        "BLEU",
        "ROUGE-L",
        "stops by itself",
    ]


def test_every_row_of_a_table_has_as_many_cells_as_its_header(written: str) -> None:
    for table in (
        markdown_table(["a", "b"], [["1", "long cell"], ["long cell", ""]]),
        score_table(SCORES),
        score_table({"sft": SCORES["sft"], "other": {"bleu": 0.1}}, explained=True),
        *(part for part in written.split("\n\n") if part.startswith("|")),
    ):
        assert len({len(row) for row in rows(table)}) == 1, table
        assert set("".join(rows(table)[1])) == {"-"}


def test_the_summary_names_the_files_and_both_models(
    evaluation: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(evaluation, [Path("checkpoints/sft_model.pt"), Path("outputs/evaluation.json")])
    printed = capsys.readouterr().out
    assert "checkpoints/sft_model.pt" in printed and "outputs/evaluation.json" in printed
    found = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if line.strip()}
    assert found["pretrained"] == ["0.123", "0.300", "12.0%"]
    assert found["SFT"] == ["0.457", "0.600", "98.0%"]
