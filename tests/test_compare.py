"""The blind test: questions that do not tell the author, and what votes come to."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from part4_sft import compare
from part4_sft.compare import load_questions, wilson_interval
from tests.conftest import Command, TypeKeys, assert_refused


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Replies of two models to 12 contexts, to one of which they say the same."""
    replies = [{"context": f"question {n}", "pretrained": f"poor {n}", "sft": f"good {n} "} for n in range(12)]
    replies[3]["sft"] = " poor  3"  # looks the same
    path = tmp_path / "replies.json"
    path.write_text(json.dumps(replies))
    return path


def test_each_model_is_a_now_and_then_and_always_the_same(path: Path) -> None:
    questions = load_questions(path)
    numbers = [n for n in range(12) if n != 3]
    for n, (item, models) in zip(numbers, questions.items(), strict=True):
        text_of = {"sft": f"good {n}", "pretrained": f"poor {n}"}
        assert item.parts == (("Customer", f"question {n}"), ("A", text_of[models["a"]]), ("B", text_of[models["b"]]))
        assert {models["a"], models["b"]} == set(text_of) and models["t"] == "tie"
    # Journals of people who have voted name these questions: the draw may never change.
    assert "".join("s" if keys["a"] == "sft" else "p" for keys in questions.values()) == "ssssspsspps"


def test_whoever_prefers_one_model_lets_it_win(path: Path, type_keys: TypeKeys) -> None:
    keys = [next(key for key, model in keys.items() if model == "sft") for keys in load_questions(path).values()]
    keys[4], keys[6] = "t", {"a": "b", "b": "a"}[keys[6]]
    printed, screens = type_keys(compare.main, "".join(keys) + "q", path, "--annotator", "anna")
    assert printed == "anna: the fine-tuned model won 9 of 10 votes, 90.0% (95% interval 59.6% to 98.2%); 1 ties\n"
    for number, screen in zip([0, 1, 2, *range(4, 12)], screens):
        assert f"question {number}\n" in screen
        assert re.search(rf"\nA +B\n(good|poor) {number} +(good|poor) {number}\n", screen)
        assert f"replies.json, anna, context {number + 1}" in screen
        assert "sft" not in screen.lower() and "pretrained" not in screen.lower()
    assert "Which reply is better? replies.json, anna" in screens[0] and "a A is better  b B is better" in screens[0]
    assert "11 of 11 compared" in screens[-1] and "That was the last one" in screens[-1]


def test_those_who_voted_on_the_same_replies_count_once(path: Path, run_main: Command, type_keys: TypeKeys) -> None:
    assert run_main(compare.main, path, "--report")[1] == f"nobody has voted on {path} yet\n"
    type_keys(compare.main, "tt", path, "--annotator", "cleo")
    assert run_main(compare.main, path, "--report")[1] == "cleo: 2 ties and nothing else\n"
    type_keys(compare.main, "aauaaa", path, "--annotator", "anna")
    type_keys(compare.main, "", path, "--annotator", "dora")  # has looked only
    printed, _ = type_keys(compare.main, "bbt", path, "--annotator", "ben")
    assert printed == "3 of 11 compared; which model is ahead is told once all are, or by --report\n"
    printed = run_main(compare.main, path, "--report")[1]
    found = re.findall(r"^(\w+): .+ of (\d+) votes, .+; (\d+) ties$", printed, re.MULTILINE)
    assert found == [("anna", "4", "0"), ("ben", "2", "1"), ("majority", "2", "2")] and len(printed.splitlines()) == 4
    assert "3 of 11 compared" in type_keys(compare.main, "", path, "--annotator", "ben")[1][0]


@pytest.mark.parametrize(
    ("wins", "votes", "low", "high"),  # scipy 1.15: binomtest(wins, votes).proportion_ci(method="wilson")
    [(0, 10, 0.0, 0.2775327998628892), (9, 10, 0.5958499732047615, 0.9821237869049271), (1, 1, 0.20654931437723745, 1)],
)
def test_the_interval_is_wilsons(wins: int, votes: int, low: float, high: float) -> None:
    assert wilson_interval(wins, votes) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "python -m part4_sft.sft writes it"),
        *((content, "does not hold replies") for content in ("{", "[1]", '[{"context": "a"}]', "[" * 100_000)),
        ('[{"context": "a", "pretrained": 1, "sft": "b"}]', "does not hold replies"),
        ('[{"context": "a", "pretrained": "b", "sft": "b"}]', "there is nothing to compare"),
    ],
)
def test_a_file_that_holds_no_replies_is_refused(
    content: str | None, complaint: str, run_main: Command, tmp_path: Path
) -> None:
    path = tmp_path / "replies.json"
    if content is not None:
        path.write_text(content)
    assert_refused(run_main(compare.main, path, "--report"), complaint)
