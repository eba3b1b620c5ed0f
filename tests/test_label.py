"""Rating replies from the keyboard, in a real pseudo-terminal."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.metrics.agreement import AnnotationTask

from part4_sft import label
from part4_sft.dataset import Pair, save_pairs
from part4_sft.formats import load_pairs
from part4_sft.label import weighted_kappa
from tests.conftest import Command, Terminal

MODULE = "part4_sft.label"
Start = Callable[..., Terminal]


def entries(count: int = 6) -> list[dict[str, object]]:
    return [
        {"context": f"question {number}", "response": f"answer {number}", "high_quality": 0} for number in range(count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(entries()))
    return path


def qualities(path: Path) -> list[int]:
    return [pair.high_quality for pair in load_pairs(path)]


def session(start: Start, path: Path, keys: str, *, sees: str = "question", annotator: str = "anna") -> Terminal:
    """One sitting: all keys at once, as a slow line delivers them."""
    terminal = start(MODULE, path, "--annotator", annotator)
    terminal.wait_for(sees)
    terminal.press(keys)
    assert terminal.end() == 0
    return terminal


# ---------------------------------------------------------------------------------------------------- one person


def test_it_shows_a_pair_at_a_time_and_says_how_far_it_has_come(terminal: Start, path: Path) -> None:
    labelling = terminal(MODULE, path, "--annotator", "anna")
    for number, key in enumerate("5432"):
        labelling.wait_for(f"question {number}")
        assert f"answer {number}" in labelling.text and f"question {number + 1}" not in labelling.text
        assert f"{number} of 6 rated" in labelling.text
        labelling.press(key)
    labelling.wait_for("question 4")
    assert "4 of 6 rated, 2 of them 4 or 5" in labelling.text
    assert "a minute" in labelling.text and "min left" in labelling.text
    assert "1 wrong" in labelling.text and "u undo" in labelling.text and "space next page" in labelling.text
    labelling.press("q")
    assert labelling.end() == 0
    folded, summary = labelling.last_words.splitlines()
    assert folded == f"written: {path}; pairs that train (high_quality 1): 2; that do not (0): 4"
    assert summary == "anna: 4 of 6 rated, 2 of them 4 or 5"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ("q", [0, 0, 0, 0, 0, 0]),
        ("54321q", [1, 1, 0, 0, 0, 0]),
        ("5b1q", [0, 0, 0, 0, 0, 0]),  # back and another rating
        ("55uq", [1, 0, 0, 0, 0, 0]),  # undone
        ("5u4q", [1, 0, 0, 0, 0, 0]),
        ("5b1uq", [1, 0, 0, 0, 0, 0]),  # undone, so that the rating before counts
        ("s5q", [0, 1, 0, 0, 0, 0]),
        ("s111115q", [1, 0, 0, 0, 0, 0]),  # what was skipped comes again
        ("111111u5q", [0, 0, 0, 0, 0, 1]),  # undo at the end
        ("111111b5q", [0, 0, 0, 0, 0, 1]),  # and back
        ("x7\x1b[A\x1b[3~\x1bOB5q", [1, 0, 0, 0, 0, 0]),  # arrows, Delete and other keys do nothing
        ("uub5q", [1, 0, 0, 0, 0, 0]),  # nothing to undo, nothing before
    ],
)
def test_keys_come_to_labels(keys: str, wanted: list[int], terminal: Start, path: Path) -> None:
    session(terminal, path, keys)
    assert qualities(path) == wanted


def test_it_resumes_where_it_stopped(terminal: Start, path: Path) -> None:
    session(terminal, path, "5s4q")
    session(terminal, path, "4q", sees="question 3")
    assert qualities(path) == [1, 0, 1, 1, 0, 0]
    session(terminal, path, "ub1q", sees="question 4")  # what was folded in can be changed, but not undone
    assert qualities(path) == [1, 0, 1, 0, 0, 0]


def test_nothing_is_lost_when_the_process_is_killed(terminal: Start, path: Path) -> None:
    labelling = terminal(MODULE, path, "--annotator", "anna")
    labelling.wait_for("question 0")
    labelling.press("54")
    labelling.wait_for("question 2")
    labelling.process.kill()
    labelling.process.wait()
    assert qualities(path) == [0] * 6  # not folded in yet
    journal = path.with_name("pairs.json.anna.jsonl")
    assert [json.loads(line)["key"] for line in journal.read_text().splitlines()] == ["begin", "5", "4"]
    journal.write_text(journal.read_text() + '{"at": 1.0, "item": "12')  # a power cut in the midst of a line
    session(terminal, path, "u4q", sees="question 2")  # nothing to undo in this sitting
    assert qualities(path) == [1, 1, 1, 0, 0, 0]
    session(terminal, path, "4q", sees="question 3")
    assert qualities(path) == [1, 1, 1, 1, 0, 0]


def test_ctrl_c_keeps_the_ratings_and_gives_the_terminal_back(terminal: Start, path: Path) -> None:
    labelling = terminal(MODULE, path, "--annotator", "anna")
    labelling.wait_for("question 0")
    labelling.press("5")
    labelling.wait_for("question 1")
    labelling.press("\x03")
    assert labelling.end() == 130
    assert qualities(path) == [1, 0, 0, 0, 0, 0]
    journal = path.with_name("pairs.json.anna.jsonl")
    assert labelling.last_words.splitlines() == [
        f"written: {path}; pairs that train (high_quality 1): 1; that do not (0): 5",
        f"interrupted: {journal} holds what was answered; the same command goes on",
    ]


def test_ctrl_z_does_nothing_and_the_terminal_is_given_back_as_it_was(terminal: Start, path: Path) -> None:
    labelling = terminal(MODULE, path)
    before = termios.tcgetattr(labelling.master)
    labelling.wait_for("question 0")
    assert termios.tcgetattr(labelling.master)[6][termios.VSUSP] == b"\0" != before[6][termios.VSUSP]
    labelling.press("q")
    assert labelling.end() == 0 and termios.tcgetattr(labelling.master) == before


def test_ratings_belong_to_texts_and_not_to_places(terminal: Start, path: Path) -> None:
    session(terminal, path, "515q")
    path.write_text(json.dumps([*reversed(entries(3)), *entries(8)[6:]]))  # other order, some gone, some new
    session(terminal, path, "4q", sees="question 6")
    assert qualities(path) == [1, 0, 1, 1, 0]


def test_one_at_a_time_writes_to_a_journal(terminal: Start, path: Path) -> None:
    first = terminal(MODULE, path, "--annotator", "anna")
    first.wait_for("question 0")
    second = terminal(MODULE, path, "--annotator", "anna")
    assert second.end() == 2 and second.last_words.startswith("error: ") and "--annotator" in second.last_words
    first.press("5q")
    assert first.end() == 0 and qualities(path)[0] == 1


# ---------------------------------------------------------------------------------------------------- the screen


def test_long_texts_come_in_pages_that_fit_the_screen(terminal: Start, tmp_path: Path) -> None:
    path = tmp_path / "long.json"
    words = " ".join(f"word{number}" for number in range(700))
    path.write_text(json.dumps([{"context": words, "response": "short"}]))
    labelling = terminal(MODULE, path)
    labelling.wait_for("page 1 of")
    seen = labelling.text
    while "short" not in labelling.text:
        page = int(labelling.text.partition("page ")[2].split()[0])
        labelling.press(" ")
        labelling.wait_for(f"page {page + 1} of")
        seen += labelling.text
        assert "1 wrong" in labelling.text and "0 of 1 rated" in labelling.text
    assert all(f"word{number}" in seen.split() for number in range(700))


def test_texts_cannot_steer_the_terminal(terminal: Start, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([{"context": "red \x1b[31m \x07 \x9b2J", "response": "two\nlines"}]))
    labelling = terminal(MODULE, path)
    labelling.wait_for("red ?[31m ? ?2J")
    assert b"\x1b[31m" not in labelling.sent and b"\x07" not in labelling.sent
    assert "\ntwo\nlines\n" in labelling.text


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_is_honoured(no_color: str, terminal: Start, path: Path) -> None:
    labelling = terminal(MODULE, path, NO_COLOR=no_color)
    labelling.wait_for("question 0")
    assert (b"\x1b[1m" in labelling.sent) == (not no_color)


# ---------------------------------------------------------------------------------------------------- files


def test_a_file_keeps_its_layout_and_all_else(terminal: Start, tmp_path: Path) -> None:
    chats = [
        {"messages": [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": "é"}]}
        for number in range(3)
    ]
    lines = tmp_path / "chats.jsonl"
    lines.write_text("\n\n".join(map(json.dumps, chats)))
    session(terminal, lines, "54q")
    found = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()]
    assert found == [chat | {"high_quality": quality} for chat, quality in zip(chats, (1, 1, 0))]

    table = tmp_path / "table.csv"
    table.write_text('instruction,input,output\nquestion 0,"more, ""quoted""",answer\nquestion 1,,"two\nlines"\n')
    session(terminal, table, "15q")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["high_quality"] for row in rows] == ["0", "1"]
    assert (rows[0]["input"], rows[1]["output"]) == ('more, "quoted"', "two\nlines")

    semicolons = tmp_path / "semicolons.csv"
    # As spreadsheets save it: with a mark in front, ends of Windows, names of their user's, and a row of nothing.
    before = '\ufeffContext;Response\r\nquestion 0;"yes, but; well\nö"\r\n;\r\nquestion 1;no\r\n'
    semicolons.write_bytes(before.encode())
    session(terminal, semicolons, "5q")
    wanted = '\ufeffContext;Response;high_quality\r\nquestion 0;"yes, but; well\nö";1\r\nquestion 1;no;0\r\n'
    assert semicolons.read_bytes().decode() == wanted

    array = tmp_path / "array.json"
    array.write_text("\ufeff" + json.dumps(entries(2)))
    session(terminal, array, "5q")
    assert json.loads(array.read_text(encoding="utf-8")) == [entries()[0] | {"high_quality": 1}, entries()[1]]


def test_what_is_not_rated_keeps_its_label_or_gets_none(terminal: Start, tmp_path: Path) -> None:
    labelled, unlabelled = tmp_path / "labelled.json", tmp_path / "unlabelled.json"
    pairs = [entry | {"high_quality": 1} for entry in entries(3)]
    labelled.write_text(json.dumps(pairs))
    unlabelled.write_text(json.dumps([{key: pair[key] for key in ("context", "response")} for pair in pairs]))
    for path in (labelled, unlabelled):
        session(terminal, path, "1q")
    assert qualities(labelled) == [0, 1, 1] and qualities(unlabelled) == [0, 0, 0]


def test_made_pairs_can_be_labelled(terminal: Start, tmp_path: Path, made: dict[str, list[Pair]]) -> None:
    path = tmp_path / "sft_dataset.json"
    save_pairs(path, made["sft_dataset"])
    before = path.read_bytes()
    session(terminal, path, "5q", sees="0 of 5,000 rated")
    assert path.read_bytes() == before  # the first was good already
    session(terminal, path, "b1q", sees="1 of 5,000 rated")
    assert qualities(path)[:2] == [0, 1]


# ---------------------------------------------------------------------------------------------------- two persons


def test_it_tells_how_well_two_agree(terminal: Start, run_main: Command, path: Path) -> None:
    session(terminal, path, "552131q")
    session(terminal, path, "545113q", annotator="ben")
    status, printed, _ = run_main(label.main, path, "--report")
    ratings = {"anna": [5, 5, 2, 1, 3, 1], "ben": [5, 4, 5, 1, 1, 3]}
    task = AnnotationTask(
        [(name, item, rating) for name, found in ratings.items() for item, rating in enumerate(found)],
        distance=lambda a, b: (a - b) ** 2,
    )
    assert status == 0
    assert f"anna and ben have both rated 6, 2 alike; weighted kappa {task.weighted_kappa():.2f}" in printed
    assert "they differ on 4:" in printed
    places = [printed.index(text) for text in ("anna 2, ben 5", "anna 3, ben 1", "anna 1, ben 3", "anna 5, ben 4")]
    assert places == sorted(places) and printed.index("question 2") > places[0]
    assert qualities(path) == [1, 1, 0, 0, 0, 0]  # the mean of both decides: 5, 4.5, 3.5, 1, 2, 2


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=30))
def test_kappa_is_that_of_nltk(ratings: list[tuple[int, int]]) -> None:
    first, second = zip(*ratings)
    task = AnnotationTask(
        [(name, item, rating) for name, found in (("a", first), ("b", second)) for item, rating in enumerate(found)],
        distance=lambda a, b: (a - b) ** 2,
    )
    try:
        wanted = task.weighted_kappa()
    except ZeroDivisionError:
        wanted = None
    assert weighted_kappa([*first], [*second]) == (None if wanted is None else pytest.approx(wanted))


# ---------------------------------------------------------------------------------------------------- mistakes


def test_a_reader_of_the_output_may_stop(path: Path) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    command = [sys.executable, "-m", MODULE, str(path), "--report"]
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, cwd=Path(__file__).parents[1])
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")


def test_mistakes_end_in_one_line(run_main: Command, path: Path, tmp_path: Path) -> None:
    for arguments in ([tmp_path / "missing.json"], [path], [path, "--annotator", "a/b"], []):  # [path]: no terminal
        status, _, complained = run_main(label.main, *arguments)
        assert status == 2 and complained.startswith("error: ") and complained.count("\n") == 1, complained
    assert not list(tmp_path.glob("*.jsonl")) and json.loads(path.read_text()) == entries()
