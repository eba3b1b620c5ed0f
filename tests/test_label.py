"""Ratings of a person become labels in the file, and those of two persons a number."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from part4_sft import label
from part4_sft.dataset import Pair, save_pairs
from part4_sft.formats import load_pairs
from part4_sft.terminal.ratings import Ratings, weighted_kappa
from part4_sft.terminal.screen import full_screen
from tests.conftest import Command, TypeKeys, assert_refused

Rate = Callable[..., str]


def entries(count: int = 6) -> list[dict[str, object]]:
    return [{"context": f"question {n}", "response": f"answer {n}", "high_quality": 0} for n in range(count)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(entries()))
    return path


@pytest.fixture
def rate(type_keys: TypeKeys) -> Rate:
    def call(path: Path, keys: str, *options: str, annotator: str = "anna", sees: str = "") -> str:
        """One sitting; `sees` stands on the first screen. Returns what is printed at the end."""
        printed, screens = type_keys(label.main, keys, path, "--annotator", annotator, *options)
        assert sees in screens[0]
        return printed

    return call


def qualities(path: Path) -> list[int]:
    return [pair.high_quality for pair in load_pairs(path)]


def test_ratings_of_4_and_5_make_high_quality(path: Path, rate: Rate) -> None:
    before = path.read_bytes()
    assert rate(path, "q", sees="pairs.json, rated by anna") == f"no pair of {path} is rated yet\n"
    assert path.read_bytes() == before
    folded, summary = rate(path, "54321q", sees="0 of 6 rated, 0 of them 4 or 5").splitlines()
    assert folded == f"written: {path}; pairs that train (high_quality 1): 2; that do not (0): 4"
    assert summary == "anna: 5 of 6 rated, 2 of them 4 or 5"
    assert qualities(path) == [1, 1, 0, 0, 0, 0]


def test_a_link_to_a_file_that_others_may_not_read_is_labelled_where_it_leads(path: Path, rate: Rate) -> None:
    link = path.parent / "elsewhere" / "link.json"
    link.parent.mkdir()
    link.symlink_to(path)
    path.chmod(0o600)
    rate(link, "5q")
    assert link.is_symlink() and qualities(path) == [1, 0, 0, 0, 0, 0] and path.stat().st_mode & 0o777 == 0o600


def test_it_resumes_where_it_stopped_though_the_file_has_changed(path: Path, rate: Rate) -> None:
    rate(path, "5s4q")
    rate(path, "4q", sees="question 3")
    assert qualities(path) == [1, 0, 1, 1, 0, 0]
    rate(path, "u-1q", sees="question 4")  # what was put into the file can be changed, but not undone
    assert qualities(path) == [1, 0, 1, 0, 0, 0]
    path.write_text(json.dumps([*entries(8)[6:], *reversed(entries(3))]))  # other order, some gone, some new
    rate(path, "4q", sees="question 1")
    assert qualities(path) == [0, 0, 1, 1, 1]


def test_made_pairs_can_be_labelled(tmp_path: Path, made: dict[str, list[Pair]], rate: Rate) -> None:
    save_pairs(tmp_path / "made.json", made["sft_dataset"])
    before = (tmp_path / "made.json").read_bytes()
    rate(tmp_path / "made.json", "5q", sees="0 of 5,000 rated")
    assert (tmp_path / "made.json").read_bytes() == before  # the first was good already


def test_it_tells_how_well_two_agree(path: Path, rate: Rate, run_main: Command) -> None:
    rate(path, "552131q")
    printed = rate(path, "545113q", annotator="ben", sees="0 of 6 rated")
    assert "ben: 6 of 6 rated, 3 of them 4 or 5" in printed and "anna" not in printed
    assert qualities(path) == [1, 1, 0, 0, 0, 0]  # the mean of both decides: 5, 4.5, 3.5, 1, 2, 2
    status, printed, _ = run_main(label.main, path, "--report")
    agreement = "anna and ben have both rated 6, 2 alike; weighted kappa 0.48 (1: as one, 0: as by chance)\n"
    assert (
        status == 0 and f"{agreement}they differ on 4:\n\n  pair 3: anna 2, ben 5\n  Customer: question 2\n" in printed
    )
    assert re.findall(r"anna \d, ben \d", printed) == [f"anna {a}, ben {b}" for a, b in ("25", "31", "13", "54")]


def test_one_pair_can_be_gone_to_by_its_number(path: Path, rate: Rate, run_main: Command) -> None:
    path.write_text(json.dumps([*entries(3), *entries(4)]))  # the first three are there twice
    rate(path, "12", "--pair", "6", sees="question 2")
    rate(path, "5q", "--pair", "3", sees="rated by anna, pair 3 (you said 1)")
    assert qualities(path) == [0, 0, 1, 0, 0, 1, 0]
    for number in ("0", "8"):
        assert_refused(run_main(label.main, path, "--pair", number), f"has no pair {number}; it has pairs 1 to 7")
    assert_refused(run_main(label.main, path, "--pair", "1", "--disputed"), "not allowed with argument --pair")


def test_disputed_pairs_can_be_rated_again(path: Path, rate: Rate, run_main: Command) -> None:
    nothing = f"on no pair of {path} do two people differ by 2 or more\n"
    assert run_main(label.main, path, "--disputed")[:2] == (0, nothing)
    rate(path, "552131q")
    rate(path, "545113q", annotator="ben")
    report = run_main(label.main, path, "--report")[1]
    assert report.endswith("\n3 are rated 2 or more apart; label FILE --disputed asks about them again\n")
    printed = rate(path, "5s3q", "--disputed", sees="pair 3 (you said 2)\n\nCustomer\nquestion 2\n")
    assert printed.splitlines()[1] == "anna: 6 of 6 rated, 3 of them 4 or 5"
    assert rate(path, "4", "--disputed", annotator="cleo", sees="0 of 1 rated") and qualities(path)[4] == 0
    rate(path, "1", "--disputed", sees="pair 5")
    rate(path, "2", "--pair", "5", annotator="cleo")
    assert run_main(label.main, path, "--disputed")[1] == nothing


def test_of_many_disagreements_the_largest_are_shown(tmp_path: Path, rate: Rate, run_main: Command) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([entry | {"response": f"{entry['response']} " + "long " * 99} for entry in entries(12)]))
    rate(path, "4" * 12)
    rate(path, "555555555551", annotator="ben")
    rate(path, "", annotator="cleo")
    _, printed, _ = run_main(label.main, path, "--report")
    assert "both rated 12, 0 alike; weighted kappa 0.00" in printed and "they differ on 12; most on these:" in printed
    assert printed.index("anna 4, ben 1") < printed.index("anna 4, ben 5") and printed.count("anna 4, ben 5") == 9
    replies = [line for line in printed.splitlines() if line.startswith("  Reply: answer ")]
    assert len(replies) == 10 and all(250 < len(reply) <= 309 and reply.endswith("[...]") for reply in replies)
    assert "cleo" not in printed  # has looked only


def test_a_file_beside_another_is_no_annotator(path: Path, rate: Rate, run_main: Command) -> None:
    rate(path, "5q")
    path.with_name("pairs.json.train.jsonl").write_text(json.dumps(entries()[0]))
    rate(path.with_name("pairs.json.train.jsonl"), "1q", annotator="ben")
    assert run_main(label.main, path, "--report")[1] == "anna: 1 of 6 rated, 1 of them 4 or 5\n"


def test_without_a_terminal_the_file_stays_as_it_is(path: Path, rate: Rate, run_main: Command) -> None:
    rate(path, "5q")
    path.write_text(json.dumps(entries()))
    before = path.read_bytes()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("part4_sft.terminal.interview.full_screen", full_screen)
        status, printed, complained = run_main(label.main, path, "--annotator", "anna")
    assert (status, printed) == (2, "") and "needs a terminal" in complained
    assert path.read_bytes() == before


def test_a_report_cannot_steer_the_terminal(path: Path, rate: Rate, run_main: Command) -> None:
    path.write_text(json.dumps([{"context": "\x1b[2J", "response": "\x9b2J \u202e"}]))
    rate(path, "5")
    rate(path, "1", annotator="ben")
    printed = run_main(label.main, path, "--report")[1]
    assert "  Customer: ?[2J\n  Reply: ?2J ?\n" in printed


@pytest.mark.parametrize(
    ("first", "second", "kappa"),
    [
        # Observed: (0 + 1 + 9 + 0 + 4 + 4) / 6 = 3; by chance: 101/36 + 101/36 + (17/6 - 19/6)^2 = 103/18
        ([5, 5, 2, 1, 3, 1], [5, 4, 5, 1, 1, 3], 1 - 3 * 18 / 103),
        ([1, 5], [1, 5], 1),
        ([1, 5], [5, 1], -1),  # observed 16, by chance (0 + 16 + 16 + 0) / 4
        ([3, 3], [3, 3], None),
        ([], [], None),
    ],
)
def test_kappa_weighs_by_squares(first: list[int], second: list[int], kappa: float | None) -> None:
    by_anna: Ratings = dict(zip("abcdef", first)) | {"rated by one": 1}
    by_ben: Ratings = dict(zip("abcdef", second)) | {"rated by another": 5}
    assert weighted_kappa(by_anna, by_ben) == (None if kappa is None else pytest.approx(kappa))
