"""Asking a person by single keys: what keys come to, and what only a real terminal shows."""

from __future__ import annotations

import json
import os
import re
import termios
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

import pytest

from part4_sft import compare, label
from part4_sft.terminal import journals as journals_module
from part4_sft.terminal.interview import Answers, Item, pace, replay
from part4_sft.terminal.journals import annotator, journal_of, journals
from part4_sft.terminal.screen import columns_of, wrapped
from tests.conftest import Command, Terminal, TypeKeys, assert_refused

ITEMS = [Item((("Customer", f"question {number}"), ("Reply", f"answer {number}"))) for number in range(6)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{"context": f"question {n}", "response": f"answer {n}"} for n in range(6)]))
    return path


def state_of(answers: Answers) -> tuple[str, int]:
    """The answer to each item, a dot where there is none, and which item is asked about."""
    return "".join(answers.given.get(id, ".") for id in answers.ids), answers.position


@pytest.mark.parametrize(
    ("keys", "given", "position"),
    [
        ("-u", "......", 0),  # nothing before, nothing to undo
        ("5-1", "1.....", 1),  # back and another rating
        ("5b1", "1.....", 1),  # as older journals have it
        ("5u4", "4.....", 1),  # undone
        ("5-1u", "5.....", 0),  # undone, so that the rating before counts
        ("55uu", "......", 0),
        ("s11111", ".11111", 0),  # what was skipped comes again
        ("11s1--s", "11.1..", 4),  # skip passes over what has an answer
        ("11111s", "11111.", 5),  # even the only one
        ("1111115s", "111111", 6),  # at the end there is nothing to rate or skip
        ("111111u", "11111.", 5),
        ("111111-5", "111115", 6),
        ("x7 q5", "5.....", 1),  # other keys do nothing
    ],
)
def test_keys_come_to_answers(keys: str, given: str, position: int) -> None:
    answers = Answers(list("abcdef"), "12345")
    for key in keys:
        answers.press(answers.current_id, key)
    assert state_of(answers) == (given, position)


def test_what_is_asked_again_comes_first_and_until_it_is_answered_anew() -> None:
    answers = Answers(list("abcdef"), "12345")
    for key in "1234":
        answers.press(answers.current_id, key)
    answers.ask_again(["d", "b"])
    visited = []
    for key in "5s55s5":
        visited.append(answers.current_id)
        answers.press(answers.current_id, key)
    assert "".join(visited) == "bdefdd" and state_of(answers) == ("153555", 6)


def test_b_goes_back_where_it_is_an_answer_only_at_the_end() -> None:
    answers = Answers(["x"], "ab")
    for id, position in (("x", 1), ("", 0)):
        answers.press(id, "b")
        assert state_of(answers) == ("b", position)


def test_a_journal_is_replayed(tmp_path: Path) -> None:
    journal = journal_of(tmp_path / "pairs.json", "anna")
    assert state_of(replay(ITEMS, journal, "12345")) == ("......", 0)  # there is none yet
    first, second, third, *_ = [item.id for item in ITEMS]
    assert first == "ef9d6ec68881e562"  # the ids in journals may never change
    presses: list[object] = [{"item": "", "key": "begin"}, {"item": first, "key": "5"}, {"item": second, "key": "4"}]
    presses += [{"item": "of another file", "key": "1"}, ["no object"], {"key": "1"}, 7, {"item": [], "key": "1"}]
    journal.write_bytes("\n".join(map(json.dumps, presses)).encode() + b'\n{"at": 1.0, "item": "\xff\n\n')
    assert state_of(replay(ITEMS, journal, "12345")) == ("54....", 2)
    # The answers of an earlier sitting can be changed, but not undone.
    more = [{"item": "", "key": "begin"}, {"item": third, "key": "u"}, {"item": first, "key": "3"}]
    with journal.open("a") as file:
        file.write("\n".join(map(json.dumps, more)))
    assert state_of(replay(ITEMS, journal, "12345")) == ("34....", 2)
    assert state_of(replay([*reversed(ITEMS), *ITEMS], journal, "12345")) == ("....43", 0)  # whatever the order


def test_every_key_is_in_the_journal_before_it_has_an_effect(
    path: Path, type_keys: TypeKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    journal = journal_of(path, "anna")
    journal.write_text('{"at": 1.0, "item": "12')  # a power cut in the midst of a line
    _, screens = type_keys(label.main, "5 xbs4q1", path, "--annotator", "anna")
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    first, second = ITEMS[0].id, ITEMS[1].id
    assert [(line["item"], line["key"]) for line in lines] == [
        *[("", "begin"), (first, "5"), (second, "b"), (first, "s"), (second, "4"), (ITEMS[2].id, "q")]
    ]
    assert all(line["at"] > 1.6e9 for line in lines) and len(synced) >= len(lines)
    assert len(screens) == 7  # one for each key before "q"
    assert "(you said 5)" in screens[4] and "question 0" in screens[4] and "(you said" not in screens[1]
    assert "2 of 6 rated, 2 of them 4 or 5; " in screens[-1] and screens[-1].endswith("1 min left")


def test_long_texts_come_in_pages_that_fit_the_screen(tmp_path: Path, type_keys: TypeKeys) -> None:
    words = [f"word{number}" for number in range(700)]
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"context": " ".join(words), "response": response} for response in ("short", "next")]))
    _, (*screens, first_again, _, next_pair) = type_keys(label.main, " " * 6 + "1", path)
    assert re.findall(r"word\d+", "\n".join(screens)) == words and "short" in screens[-1]
    for page, screen in enumerate(screens, start=1):
        assert f" page {page} of 5, space for the next\n" in screen and "1 wrong" in screen
        assert screen.count("\n") == 22 and max(map(len, screen.split("\n"))) < 80
    assert first_again == screens[0] and " page 1 of 5" in next_pair


@pytest.mark.parametrize(
    ("times", "remaining", "words"),
    [
        ([3.0], 5, ""),
        ([0.0, 2.0], 0, ""),
        ([0.0, 2.0, 4.0, 64.0], 90, "; 30 a minute, 3 min left"),  # a pause does not count
        ([0.0, 60.0], 60, "; 1 a minute, 1 h 0 min left"),
        ([0.0, 60.0], 135, "; 1 a minute, 2 h 15 min left"),
        ([0.0, 0.0], 1, "; 6000 a minute, 1 min left"),
        ([*range(100), *range(100, 140, 2)], 30, "; 30 a minute, 1 min left"),  # of the last 20 answers
    ],
)
def test_the_pace_is_that_of_the_latest_answers(times: list[float], remaining: int, words: str) -> None:
    assert pace(times, remaining) == words


def test_names_of_annotators_go_into_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert annotator("anna-b_2") == "anna-b_2"
    for name in ("", "a/b", "a.b", "a b", "a" * 101):
        with pytest.raises(ArgumentTypeError, match="must be letters"):
            annotator(name)
    monkeypatch.setattr(journals_module, "getuser", lambda: "DOMAIN\\anna b")
    assert journals_module.login_name() == "DOMAIN_anna_b"
    path = tmp_path / "pairs[1].json"
    journal_of(path, "anna").touch()
    journal_of(path, "ben").touch()
    assert journals(path) == {name: journal_of(path, name) for name in ("anna", "ben")}
    assert journals(tmp_path / "pairs1.json") == {}
    journal_of(tmp_path / "pairs[1].json.train.jsonl", "cleo").touch()  # of another file
    assert journals(path) == {name: journal_of(path, name) for name in ("anna", "ben")}


def test_no_text_can_steer_the_terminal() -> None:
    assert wrapped("red \x1b[31m \x07 \x9b2J\n\none two", 80) == ["red ?[31m ? ?2J", "", "one two"]
    assert wrapped("\u202eno \u2066x\u2069 \ud83d", 80) == ["?no ?x? ?"]
    assert wrapped("one two", 5) == ["one", "two"]


def test_letters_of_all_languages_are_shown() -> None:
    text = "10\xa0000\u202f€,\tか\u3000き, x\u200cy 👩\u200d🔧"
    assert wrapped(text, 80) == ["10 000 €, か き, x\u200cy 👩\u200d🔧"]


def test_lines_are_as_long_as_they_are_wide() -> None:
    assert wrapped("订单48213还没有到", 8) == ["订单", "48213还", "没有到"]
    assert wrapped("か\u3099か\u3099 e\u0301e\u0301e\u0301 three", 8) == [
        "か\u3099か\u3099 e\u0301e\u0301e\u0301",
        "three",
    ]
    assert [columns_of(text) for text in ("desk", "机です", "ﾂｸｴ", "e\u0301", "☺\ufe0f")] == [4, 6, 3, 1, 2]


def test_work_goes_on_where_it_was_killed_and_ctrl_c_gives_the_terminal_back(
    terminal: Callable[..., Terminal], path: Path
) -> None:
    command = ["part4_sft.label", path, "--annotator", "anna"]
    labelling = terminal(*command)
    labelling.wait_for("question 0")
    assert "1 wrong  2 poor" in labelling.text and "u undo  q quit  space next page" in labelling.text
    assert b"\x1b[1m" in labelling.sent
    second = terminal(*command)
    assert second.end() == 2 and second.last_words.startswith(f"error: {journal_of(path, 'anna')} is in use; ")
    labelling.press("\x1b[A\x1b[3~\x1bOB5")  # arrows and Delete do nothing
    labelling.wait_for("question 1")
    assert "answer 1" in labelling.text and "question 0" not in labelling.text
    labelling.process.kill()
    labelling.process.wait()

    again = terminal(*command, NO_COLOR="1")
    before = termios.tcgetattr(again.master)
    again.wait_for("question 1")
    assert termios.tcgetattr(again.master)[6][termios.VSUSP] == b"\0" != before[6][termios.VSUSP]  # no Ctrl-Z
    assert b"\x1b[1m" not in again.sent
    again.press("4")
    again.wait_for("question 2")
    again.press("\x03")
    assert again.end() == 130 and termios.tcgetattr(again.master) == before
    written, interrupted = again.last_words.splitlines()
    assert written == f"written: {path}; pairs that train (high_quality 1): 2; that do not (0): 4"
    assert interrupted == f"interrupted: {journal_of(path, 'anna')} holds what was answered; the same command goes on"


def test_mistakes_end_in_one_line(run_main: Command, path: Path) -> None:
    before = path.read_bytes()
    assert_refused(run_main(label.main, path), "needs a terminal")
    assert_refused(run_main(label.main, path, "--annotator", "a/b"), "must be letters, digits, - and _")
    assert_refused(run_main(label.main), "the following arguments are required: FILE")
    assert_refused(run_main(label.main, path / "missing.json"), "cannot read ")
    assert not list(path.parent.glob("*.jsonl")) and path.read_bytes() == before
    journal_of(path, "anna").mkdir()
    assert_refused(run_main(label.main, path, "--report"), "cannot read ")


def test_both_replies_are_on_one_page_and_the_key_for_back_is_that_of_label(
    terminal: Callable[..., Terminal], tmp_path: Path
) -> None:
    replies = tmp_path / "replies.json"
    poor, good = ("poor " * 80).strip(), ("good " * 80).strip()  # as long as the longest of the default run
    entries = [{"context": f"question {n} " + "word " * 20, "pretrained": poor, "sft": good} for n in range(3)]
    replies.write_text(json.dumps(entries))
    voting = terminal("part4_sft.compare", replies, "--annotator", "anna")
    voting.wait_for("question 0")
    assert voting.text.count("poor") == voting.text.count("good") == 80 and "page" not in voting.screen.display[0]
    assert re.search(r"^A {30,}B$", voting.text, re.MULTILINE)
    voting.press("b")
    voting.wait_for("question 1")
    (back,) = re.findall(r"(\S) back", voting.text)
    voting.press(back)
    voting.wait_for("question 0")
    assert "(you said b)" in voting.text
    voting.press("q")
    assert voting.end() == 0 and voting.last_words.startswith("1 of 3 compared; which model is ahead is told once")
    assert "fine-tuned" not in voting.last_words

    pairs = tmp_path / "pairs.json"
    pairs.write_text(json.dumps([{"context": f"question {n}", "response": "answer"} for n in range(2)]))
    labelling = terminal("part4_sft.label", pairs)
    labelling.wait_for("question 0")
    assert re.findall(r"(\S) back", labelling.text) == [back]


def test_pages_of_long_replies_hold_parts_of_both(tmp_path: Path, type_keys: TypeKeys) -> None:
    words = {name: [f"{name}{number}" for number in range(200)] for name in ("x", "y")}
    entry = {"context": "question", "pretrained": " ".join(words["x"]), "sft": " ".join(words["y"])}
    path = tmp_path / "replies.json"
    path.write_text(json.dumps([entry]))
    _, (*screens, _) = type_keys(compare.main, "  ", path)
    for name in words:
        assert re.findall(rf"{name}\d+", "\n".join(screens)) == words[name]
        assert all(re.search(rf"{name}\d", screen) for screen in screens)
