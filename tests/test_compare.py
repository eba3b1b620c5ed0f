"""The blind test, in a real pseudo-terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from part4_sft import compare
from part4_sft.compare import wilson
from tests.conftest import Command, Terminal

MODULE = "part4_sft.compare"
Start = Callable[..., Terminal]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Replies of two models to 12 contexts, to one of which they say the same."""
    replies = [
        {"context": f"question {number}", "pretrained": f"poor {number}", "sft": f"good {number}"}
        for number in range(12)
    ]
    replies[3]["sft"] = replies[3]["pretrained"]
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(replies))
    return path


def test_whoever_prefers_one_model_lets_it_win(terminal: Start, run_main: Command, path: Path) -> None:
    voting = terminal(MODULE, path, "--annotator", "anna")
    voting.wait_for("question 0")
    first = ""
    for number in [0, 1, 2, *range(4, 12)]:
        voting.wait_for(f"question {number}\n")
        assert "sft" not in voting.text.lower() and "pretrained" not in voting.text.lower()
        lines = voting.text.split("\n")
        good_one = lines[lines.index(f"good {number}") - 1].lower()
        first += good_one
        voting.press("t" if number == 5 else {"a": "b", "b": "a"}[good_one] if number == 6 else good_one)
    voting.wait_for("That was the last one")
    voting.press("q")
    assert voting.end() == 0 and {*first} == {"a", "b"}  # each stands first now and then
    status, printed, _ = run_main(compare.main, path, "--report")
    assert status == 0
    assert printed == ("anna: the fine-tuned model won 9 of 10 votes, 90.0% (95% interval 59.6% to 98.2%); 1 ties\n")


def test_votes_are_kept_and_can_be_undone(terminal: Start, path: Path) -> None:
    voting = terminal(MODULE, path, "--annotator", "anna")
    voting.wait_for("question 0")
    voting.press("aabu")
    voting.wait_for("question 2")
    voting.process.kill()
    again = terminal(MODULE, path, "--annotator", "anna")
    again.wait_for("question 2")
    assert "2 of 11 compared" in again.text
    again.press("aq")
    assert again.end() == 0 and "of 3 votes" in again.last_words


def test_votes_of_all_are_added_up(terminal: Start, run_main: Command, path: Path) -> None:
    for annotator, keys in (("anna", "aaaaaq"), ("ben", "bbtq")):
        voting = terminal(MODULE, path, "--annotator", annotator)
        voting.wait_for("question 0")
        voting.press(keys)
        assert voting.end() == 0
    _, printed, _ = run_main(compare.main, path, "--report")
    anna, ben, together = printed.splitlines()
    assert "of 5 votes" in anna and "of 2 votes" in ben and "1 ties" in ben
    assert together.startswith("all: ") and "of 7 votes" in together


@pytest.mark.parametrize(
    ("wins", "votes", "low", "high"),
    # scipy 1.15: binomtest(wins, votes).proportion_ci(method="wilson")
    [
        (0, 10, 0.0, 0.2775327998628892),
        (9, 10, 0.5958499732047615, 0.9821237869049271),
        (1, 1, 0.20654931437723745, 1.0),
        (50, 100, 0.4038315303659956, 0.5961684696340044),
    ],
)
def test_the_interval_is_wilsons(wins: int, votes: int, low: float, high: float) -> None:
    assert wilson(wins, votes) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(
    "content", [None, "{", "[]", "[1]", '[{"context": "a"}]', '[{"context": "a", "pretrained": 1, "sft": "b"}]']
)
def test_mistakes_end_in_one_line(content: str | None, run_main: Command, tmp_path: Path) -> None:
    path = tmp_path / "replies.json"
    if content is not None:
        path.write_text(content)
    status, _, complained = run_main(compare.main, path, "--report")
    assert status == 2 and complained.startswith("error: ") and complained.count("\n") == 1
