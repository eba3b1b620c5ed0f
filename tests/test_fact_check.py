"""Facts that a reply repeats and invents, on planted ones: how many are found, and what else is taken for one."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from part4_sft.dataset import Pair
from part4_sft.extras.fact_check import SOURCES, FactChecker, describe_facts
from part4_sft.extras.facts import KINDS, read_facts, value
from part4_sft.formats import load_pairs
from tests.conftest import FinishedRun

PLANTED = json.loads(Path(__file__).with_name("planted_facts.json").read_text(encoding="utf-8"))
ENGLISH = FactChecker(Pair(*pair) for pair in PLANTED["training"])
GERMAN = FactChecker(Pair("Wo ist mein Paket?", text) for text in PLANTED["german"]["clean"][:3])

Case = tuple[FactChecker, str, str, set[str]]  # context, reply, and what is planted in that, as "number invented"


def planted() -> Iterator[Case]:
    """Each fact once as the context states it, in another spelling, and once as it does not; and replies without."""
    for checker, texts in ((ENGLISH, PLANTED), (GERMAN, PLANTED["german"])):
        for kind, rows in texts["rows"].items():
            for context, same, other in rows:
                for reply in texts["replies"]:
                    yield checker, context, reply.format(same), {f"{kind} repeated"}
                    yield checker, context, reply.format(other), {f"{kind} invented"}
        yield from ((checker, "Where is my parcel?", reply, set()) for reply in texts["clean"])


def free() -> Iterator[Case]:
    """Replies as people write them, about all kinds of things."""
    yield from ((ENGLISH, context, reply, set(facts)) for context, reply, facts in PLANTED["natural"])


def found(checker: FactChecker, context: str, reply: str) -> set[str]:
    return {f"{fact.kind} {source}" for source, facts in checker.sort(context, reply).items() for fact in facts}


def precision_and_recall(cases: list[Case]) -> dict[str, tuple[float, float]]:
    right, taken, there = Counter[str](), Counter[str](), Counter[str]()
    for checker, context, reply, truth in cases:
        says = found(checker, context, reply)
        right.update(says & truth)
        taken.update(says)
        there.update(truth)
    return {name: (right[name] / taken[name], right[name] / there[name]) for name in sorted(there | taken)}


def test_planted_facts_are_found_and_nothing_else_is() -> None:
    """All but one: "in der Langen Straße 5" declines the street's name."""
    cases = list(planted())
    assert len(cases) >= 400
    results = precision_and_recall(cases)
    assert set(results) == {f"{kind} {source}" for kind in KINDS for source in ("repeated", "invented")}
    declined = {"address repeated": (1.0, 31 / 32), "address invented": (32 / 33, 1.0)}
    assert results == dict.fromkeys(results, (1.0, 1.0)) | declined


def test_facts_in_free_replies_are_found_and_nothing_else_is() -> None:
    results = precision_and_recall(list(free()))
    assert results == dict.fromkeys(results, (1.0, 1.0)) and len(results) == 10


@pytest.mark.parametrize(
    ("reply", "source"),
    [
        ("Call 0800 555 123.", "number known"),  # two responses say it
        ("Call 0800/555-123.", "number known"),
        ("Call 0800 555 124.", "number invented"),
        ("We are open from 8 am.", "date known"),
        ("It is ticket 990017.", "number invented"),  # one response says it: to somebody else
        ("Write to Northwind Living.", "name known"),
    ],
)
def test_what_two_training_responses_say_is_no_invention(reply: str, source: str) -> None:
    assert found(ENGLISH, "Where is my parcel?", reply) == {source}


def test_what_contexts_state_is_not_the_companys_nor_is_the_same_pair_twice_two_of_them() -> None:
    """Else an order number that a model has learnt by heart would pass for known."""
    pairs = [Pair(f"Where is order 48213? {place}", "Order 48213 is on its way.") for place in ("Here.", "There.")]
    once = [Pair("Who are you?", "We are shop 7734.")] * 2
    assert found(FactChecker(pairs + once), "Hello?", "Order 48213, shop 7734.") == {"number invented"}
    pairs = [Pair(f"Who are you? {place}", "We are shop 7734.") for place in ("Here.", "There.")]
    assert found(FactChecker(pairs), "Hello?", "Shop 7734.") == {"number known"}


def test_capitals_are_no_names_where_all_nouns_have_one() -> None:
    reply = "Bitte schicken Sie das an Maria Keller, mit der Nummer auf dem Zettel „Rückgabe“."
    assert ENGLISH.capitals_are_names and not GERMAN.capitals_are_names
    assert [fact.text for fact in GERMAN.sort("Hallo", reply)["invented"]] == ['"Rückgabe"']


def test_words_that_responses_also_write_small_are_no_names() -> None:
    checker = FactChecker([Pair("Hi", "Our support team of the service is here.")])
    reply = "Please ask the Support Team of DHL, or Anna of the Service."
    assert [fact.text for fact in checker.sort("Hi", reply)["invented"]] == ["DHL", "Anna"]


@pytest.mark.parametrize(
    ("figure", "expected"),
    [("1,299.00", "1299"), ("1.299,50", "1299.5"), ("1'250.50", "1250.5"), ("12 300", "12300"), ("0.75", "0.75")]
    + [("100", "100"), ("19,9", "19.9"), ("1.000.000", "1000000")],
)
def test_a_figure_is_its_value_in_any_spelling(figure: str, expected: str) -> None:
    assert value(figure) == expected


@pytest.mark.parametrize("text", ["figure 5", "24/7", "1. Open it.\n2. Close it.", "It is: 1. this 2. that", "[NAME]"])
def test_what_is_no_fact(text: str) -> None:
    assert ENGLISH.facts(f"Look at {text}") == ENGLISH.facts(text) == []


@pytest.mark.parametrize(
    "part",
    ["a", "a-", "A-", "1", "100 ", "{{", "[A", "a.", "1.", "A1-", "www.", "@", "'", '"', "+1 ", "May ", "$1", "\0"],
)
def test_no_text_takes_long_to_read(part: str) -> None:
    """Of any pattern, a search from each character to the end would take minutes."""
    start = time.monotonic()
    read_facts(part * (60_000 // len(part)))
    assert time.monotonic() - start < 10


def test_the_scores_are_shares_of_replies() -> None:
    context = "Where is order 48213?"
    replies = ["It left.", "Order 48213 left.", "Order 48213 left on May 3.", "Order 48312 left on May 4."]
    assert ENGLISH.scores([context] * 4, replies) == {"repeats_fact": 0.5, "invents_fact": 0.5}


def test_what_is_told_of_facts_is_counted_over_all_samples() -> None:
    def entry(context: str, reference: str, before: list[str], after: list[str]) -> dict[str, Any]:
        samples = {name: [{"text": text} for text in texts] for name, texts in (("pretrained", before), ("sft", after))}
        return {"context": context, "reference": reference, "samples": samples}

    entries = [
        entry("Where is 48213?", "48213 left.", ["No.", "48213?"], ["It left.", "48214 left."]),
        entry("Hello?", "Call 0800 555 123.", ["Hello.", "Hi."], ["Call 0800 555 123.", "It is $12 or 77."]),
    ]
    facts = describe_facts(ENGLISH, entries)
    assert facts["training_responses"] == len(PLANTED["training"])
    assert facts["reference"] == {"repeats_fact": 0.5, "invents_fact": 0.0}
    assert facts["known"] == {"pretrained": 0.0, "sft": 0.25, "reference": 0.5}
    assert facts["by_kind"]["pretrained"]["number"] == {"repeated": 0.25, "known": 0.0, "invented": 0.0}
    assert facts["by_kind"]["sft"]["number"] == {"repeated": 0.0, "known": 0.25, "invented": 0.5}
    assert facts["by_kind"]["sft"]["amount"] == {"repeated": 0.0, "known": 0.0, "invented": 0.25}
    assert set(facts["by_kind"]["reference"]) == set(KINDS) and len(SOURCES) == 3
    assert facts["inventions"] == [
        {"context": "Where is 48213?", "text": "48214 left.", "invented": ["48214"]},
        {"context": "Hello?", "text": "It is $12 or 77.", "invented": ["$12", "77"]},
    ]
    json.dumps(facts, allow_nan=False)


def test_a_run_tells_what_its_files_show(finished_run: FinishedRun) -> None:
    evaluation, entries = finished_run.read("evaluation.json"), finished_run.read("replies.json")
    training = [pair for pair in load_pairs(finished_run.out / "sft_dataset.json") if pair.high_quality]
    checker = FactChecker(training)
    assert evaluation["facts"] == describe_facts(checker, entries)
    assert evaluation["facts"]["training_responses"] == len(training) == 16
    for author in ("pretrained", "sft", "likeliest_ideal"):
        found = [checker.sort(one["context"], each["text"]) for one in entries for each in one["samples"][author]]
        for measure, source in (("repeats_fact", "repeated"), ("invents_fact", "invented")):
            assert evaluation[author][measure] == pytest.approx(fmean(bool(each[source]) for each in found))
    assert evaluation["likeliest_ideal"]["repeats_fact"] > 0 == evaluation["likeliest_ideal"]["invents_fact"]
    report = (finished_run.out / "README_Part4_SFT_Comprehensive.md").read_text(encoding="utf-8")
    assert "## Repeated and invented" in report and "| repeats a fact " in report and "| invents a fact " in report
