"""The rubric: does it read contexts back, judge replies as published, and see through replies made to fool it?"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from pathlib import Path
from random import Random
from typing import Any

import pytest

from part3_pretrain.retail.rubric import HIGH_QUALITY, RUBRIC, Rating, rate, recognise
from part3_pretrain.retail.world import (
    DEPARTMENTS,
    INTENTS,
    Scenario,
    draw_context,
    draw_item,
    draw_scenario,
    ideal_reply,
    mistype,
)
from tests.conftest import draw_scenarios

BY_NAME = {intent.name: intent for intent in INTENTS}
SCENARIO = Scenario((BY_NAME["damaged"],), "walnut bookshelf", "48213")
ACKNOWLEDGEMENT = "I am sorry about the damage, and thank you for telling us about your"
NEXT_STEP = " You will get an e-mail within the hour."
GARBLED = "is not written in sentences, or repeats itself"
STRAYS = "says something that does not belong to the resolution"
IDEAL = (
    f"{ACKNOWLEDGEMENT} walnut bookshelf (order 48213). A free replacement leaves our warehouse by express.{NEXT_STEP}"
)


@pytest.mark.parametrize("restated_only", [False, True])
@pytest.mark.parametrize("unseen", [False, True])
def test_recognise_reads_back_what_was_drawn(unseen: bool, restated_only: bool) -> None:
    rng = Random(0)
    for scenario in draw_scenarios(400, seed=1, two_problems=0.3):
        context = draw_context(scenario, rng, unseen_pattern=unseen, restated_only=restated_only)
        assert recognise(context) == scenario, context


def test_recognise_reads_items_of_no_catalogue_in_at_most_2000_characters_of_this_world() -> None:
    assert recognise("It is about a steel kettle: the zorblat arrived broken.").item == "steel kettle"
    context = "Customer says that the wallnut bookshelf arrived broken, order 48213."
    assert recognise(context) == replace(SCENARIO, item="wallnut bookshelf")
    for text in ("What is the capital of France?", "", "I love the walnut bookshop", "oak desk"):
        assert recognise(text) is None
    assert recognise(context.ljust(2000)) and recognise(context.ljust(2001)) is None


def test_an_ideal_reply_is_rated_5_in_any_case_and_none_1() -> None:
    for reply in (IDEAL, IDEAL.upper(), IDEAL.replace(" ", "\n ")):
        assert (rate(SCENARIO, reply).score, rate(SCENARIO, reply).faults) == (5.0, [])
    assert rate(SCENARIO, "").score == 1.0


@pytest.mark.parametrize(
    ("part", "changed", "score", "faults"),
    [
        ("walnut bookshelf", "oak bookshelf", 3.5, ["does not name the customer's item", "names another item"]),
        ("walnut bookshelf", "compact walnut bookshelf", 3.5, ["names another item"]),
        ("walnut bookshelf", "walnut bookshelfs", 3.5, ["does not name the customer's item"]),
        ("48213", "48231", 3.5, ["gets the order number wrong"]),
        (" (order 48213)", "", 3.5, ["gets the order number wrong"]),
        ("order 48213", "orders 48213 and 10000", 3.5, ["gets the order number wrong"]),
        ("A free replacement leaves", "It leaves", 3.5, ["leaves a problem without its resolution"]),
        ("A free replacement", "A pdf copy and a free replacement", 3.5, ["offers a resolution for another problem"]),
        (NEXT_STEP, "", 4.4, ["does not say what happens next"]),
        (" within the hour", "", 4.4, ["does not say what happens next"]),
        ("You will get an e-mail within", "It is noon within", 4.4, ["does not say what happens next"]),
        (ACKNOWLEDGEMENT, "You wrote about your", 4.4, ["does not acknowledge the customer"]),
        ("A free", "You do not get it. A free", 2.0, ["refuses, denies or takes back something"]),
        ("by express", "by express, you idiot", 2.0, ["leaves a problem without its resolution", "is rude"]),
        ("by express.", "by express, bla bla bla.", 3.5, ["leaves a problem without its resolution", GARBLED]),
        (NEXT_STEP, f"{NEXT_STEP} Lorem ipsum dolor sit amet.", 3.5, [STRAYS, GARBLED]),
        (NEXT_STEP, f"{NEXT_STEP} The weather is bad.", 3.5, [STRAYS]),
        (NEXT_STEP, f"{NEXT_STEP} Customer: yes.", 3.5, [STRAYS, "writes what somebody else says"]),
        (NEXT_STEP, f"{NEXT_STEP} Kind regards, Anna Smith.", 5.0, []),
        (NEXT_STEP, f" Kind regards, Anna Smith.{NEXT_STEP}", 3.5, ["says things in the wrong order"]),
        (NEXT_STEP, f"{NEXT_STEP} I am sorry about it.", 3.5, ["says things in the wrong order"]),
        (NEXT_STEP, f"{NEXT_STEP} I am sorry once more.", 5.0, []),
    ],
)
def test_every_fault_is_told_and_an_error_keeps_a_reply_below_high_quality(
    part: str, changed: str, score: float, faults: list[str]
) -> None:
    assert part in IDEAL
    rating = rate(SCENARIO, IDEAL.replace(part, changed))
    assert (rating.score, rating.faults, rating.is_high_quality) == (score, faults, score >= 4.0)


def test_points_add_up_to_high_quality_from_4_on(monkeypatch: pytest.MonkeyPatch) -> None:
    two_problems = replace(SCENARIO, intents=(BY_NAME["damaged"], BY_NAME["invoice"]))
    mistyping, misspelled = replace(SCENARIO, misspelled="wallnut bookshelf"), IDEAL.replace("walnut", "wallnut")
    without_number = replace(SCENARIO, order_number=None)
    blunt = IDEAL.replace(ACKNOWLEDGEMENT, "You wrote about your").replace(NEXT_STEP, "")
    for scenario, reply, score in [
        (SCENARIO, blunt, 3.8),
        (SCENARIO, "Thank you for asking. Your walnut bookshelf is on my list.", 2.6),
        (two_problems, "A pdf copy.", 1.0),  # a keyword
        (two_problems, "We send you a pdf copy.", 1.7),
        (two_problems, IDEAL, 3.5),
        (two_problems, f"{IDEAL} As for the invoice, a pdf copy is attached.", 5.0),
        (without_number, IDEAL, 3.5),
        (without_number, IDEAL.replace(" (order 48213)", ""), 5.0),
        (SCENARIO, misspelled, 3.5),
        *((mistyping, reply, 5.0) for reply in (IDEAL, misspelled)),  # as in the catalogue or as the customer spells it
        (mistyping, IDEAL.replace("walnut", "wlnut"), 3.5),
    ]:
        rating = rate(scenario, reply)
        assert (rating.score, rating.is_high_quality) == (score, score >= 4.0), reply
    half = rate(two_problems, IDEAL)
    assert (half.resolved, half.right_resolution) == (0.5, False) and "without its resolution" in half.faults[0]
    monkeypatch.setitem(RUBRIC["points"], "order_number", 0.6)
    assert rate(SCENARIO, blunt).score == HIGH_QUALITY == 4.0 and rate(SCENARIO, blunt).is_high_quality


# ---------------------------------------------------------------------------------------------------- hostile replies


def read(name: str) -> list[dict[str, Any]]:
    """Replies written by hand, with their contexts."""
    return json.loads(Path(__file__).with_name(f"{name}_replies.json").read_text(encoding="utf-8"))


def rate_entry(entry: dict[str, Any]) -> Rating:
    """The rubric's rating of a reply written by hand."""
    return rate(recognise(entry["context"]), entry["reply"])


def spoil(scenario: Scenario, rng: Random) -> Iterator[tuple[str, str]]:
    """Ways to spoil an ideal reply, and what becomes of it."""
    reply = ideal_reply(scenario, rng)
    sentences = re.split(r"(?<=[.?!]) ", reply)
    fixes = [text for text in sentences if any(intent.evidence in text.lower() for intent in scenario.intents)]
    before = sentences[: sentences.index(fixes[0])]
    after = sentences[len(before) + len(fixes) :]
    evidence = [re.search(intent.evidence, reply, re.IGNORECASE)[0] for intent in scenario.intents]
    order = f" (order {scenario.order_number})" if scenario.order_number else ""
    stranger = rng.choice([intent for intent in INTENTS if intent not in scenario.intents])
    item = next(item for item in iter(lambda: draw_item(rng, list(DEPARTMENTS)), "") if item not in scenario.item)

    def join(*parts: list[str]) -> str:
        return " ".join(chain(*parts))

    def shuffle(text: str) -> str:
        words = text.rstrip(".?!").split()
        while len(words) > 2 and " ".join(words) == text.rstrip(".?!"):
            rng.shuffle(words)
        return " ".join(words) + "."

    yield "keywords", f"sorry {scenario.item}{order} {' '.join(evidence)} today"
    yield "keywords as sentences", f"Sorry. {scenario.item}{order}. {'. '.join(evidence)}. Today."
    yield "keywords in a sentence", f"I am sorry {scenario.item}{order} {' '.join(evidence)} you will get today."
    yield "words shuffled", shuffle(reply)
    yield "words shuffled in each sentence", " ".join(map(shuffle, sentences))
    yield "sentences reversed", " ".join(reversed(sentences))
    yield "next step first", join(after, before, fixes)
    yield "resolution first", join(fixes, before, after)
    yield "acknowledgement last", join(fixes, after, before)
    for words in ["It is not true that", "We will never say that", "There is no chance that", "Nobody says that"]:
        yield "denied", join(before, [f"{words} {text[0].lower()}{text[1:]}" for text in fixes], after)
    yield "negated", reply.replace(evidence[0], f"no {evidence[0]}")
    yield "negated", reply.replace(evidence[0], f"not {evidence[0]}")
    for words in [
        "That is not possible after all.", "But we have changed our mind.", "Please ignore the last sentence.",
        "That was a joke.", "We take that back.", "None of this is true.", "You will not get any of this.",
    ]:  # fmt: skip
        yield "taken back", join(before, fixes, [words], after)
        yield "taken back at the end", f"{reply} {words}"
    yield "asked", join(before, [text.rstrip(".") + "?" for text in fixes], after)
    for words in ["Perhaps", "One day", "If we find the time", "You were told that", "Many people believe that"]:
        said = [f"{words} {re.split('(?:As|as) for [^,]*, |[Aa]bout [^:]*: ', text)[-1]}" for text in fixes]
        yield "uncertain or told by others", join(before, said, after)
    yield "for somebody else", join(before, [text[:-1] + ", but only for another customer." for text in fixes], after)
    yield "two resolutions", join(before, fixes, [f"Also, {rng.choice(stranger.resolutions)}."], after)
    yield "another resolution", ideal_reply(replace(scenario, intents=(stranger,)), rng)
    yield "another item", reply.replace(scenario.item, item)
    yield "another item too", f"{reply} All this is for your {item}."
    if order:
        yield "another order number", reply.replace(scenario.order_number, str(int(scenario.order_number) + 1))
        without = re.sub(r" \(order \d+\)| from order \d+", "", reply)
        yield "order number as a price", f"{without} The price is {scenario.order_number} euros."
    else:
        yield "another order number", reply.replace(scenario.item, f"{scenario.item} (order 12345)", 1)
    yield "reply repeated", f"{reply} {reply}"
    yield "resolution repeated", join(before, fixes * 3, after)
    for words in ["asdf jkl qwrtz xcvb", "lorem ipsum dolor sit amet", "bla bla bla bla", "$$$ ### @@@"]:
        yield "gibberish", f"{reply} {words}"
        yield "gibberish", f"{words} {reply}"
    yield "customer's part", f"{reply}\nCustomer: Which item do you mean?"
    for words in ["And stop whining, you idiot.", "It was your own fault.", "Now shut up."]:
        yield "rude", f"{reply} {words}"
    yield (
        "what the customer said",
        f"You say that your {scenario.item}{order} is late. You want {evidence[0]}. Thanks for asking.",
    )


def test_no_ideal_reply_is_of_high_quality_once_it_is_spoiled_in_any_of_twenty_ways() -> None:
    rng, number, highest = Random(0), Counter[str](), dict[str, float]()
    for index in range(40):
        scenario = draw_scenario(rng, held_out_item=index % 2 == 0, two_problems=0.2, invented_items=0.1)
        if scenario.due != [*scenario.intents]:  # it is asked for the order number, and nothing resolved
            continue
        for way, reply in spoil(scenario, rng):
            rating = rate(scenario, reply)
            assert not rating.is_high_quality and rating.faults, (way, reply)
            number[way] += 1
            highest[way] = max(highest.get(way, 0), rating.score)
    for way, count in number.items():
        print(f"| {way} | {count} | {highest[way]:.1f} |")  # for docs/rubric.md
    assert len(number) >= 20 and sum(number.values()) >= 1_500


def test_no_hostile_reply_written_by_hand_is_of_high_quality() -> None:
    entries = read("hostile")
    assert len(entries) >= 200 and len({entry["way"] for entry in entries}) >= 12
    assert [entry["reply"] for entry in entries if rate_entry(entry).is_high_quality] == []
    sundial = Scenario((BY_NAME["eco_friendly"],), "slate sundial")
    assert rate(sundial, "sorry slate sundial certified by an independent body today").score < HIGH_QUALITY


def test_500_ideal_replies_are_rated_5_for_two_problems_invented_and_misspelled_items_too() -> None:
    rng, kinds = Random(2024), Counter[str]()
    for index in range(500):
        scenario = draw_scenario(rng, held_out_item=index % 2 == 0, two_problems=0.3, invented_items=0.2)
        if index % 5 == 0:
            _, scenario = mistype(draw_context(scenario, rng), scenario, rng, in_item=True)
            said = replace(scenario, item=scenario.misspelled)
        else:
            said = scenario
        reply = ideal_reply(said, rng)
        assert rate(scenario, reply).score == 5.0, (reply, rate(scenario, reply).faults)
        kinds.update([f"{len(scenario.intents)} problems", f"misspelled {scenario.misspelled is not None}"])
    assert kinds["2 problems"] > 50 and kinds["misspelled True"] == 100


def test_of_50_good_replies_in_other_words_than_the_ideal_agents_at_least_40_are_of_high_quality() -> None:
    entries = read("good")
    assert len(entries) == 50
    assert sum(rate_entry(entry).is_high_quality for entry in entries) >= 40
    further = read("further_good")  # written when the rubric was nearly finished
    assert len(further) == 20 and sum(rate_entry(entry).is_high_quality for entry in further) >= 13


def weighted_kappa(pairs: list[tuple[int, int]]) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968)."""
    first, second = (Counter(ratings) for ratings in zip(*pairs))
    observed = sum((one - other) ** 2 for one, other in pairs) / len(pairs)
    by_chance = sum((one - other) ** 2 * first[one] * second[other] for one, other in product(first, second))
    return 1 - observed * len(pairs) ** 2 / by_chance


def test_the_rubric_agrees_with_a_person_who_did_not_see_its_ratings() -> None:
    entries = read("hand_rated")
    assert len(entries) >= 120
    # The rounded rating, where 3.5, the highest with an error, is 3.
    pairs = [(entry["rating"], int(rate_entry(entry).score + 0.49)) for entry in entries]
    verdicts = [(int(entry["rating"] >= 4), int(rate_entry(entry).is_high_quality)) for entry in entries]
    print(weighted_kappa(pairs), weighted_kappa(verdicts), sorted(Counter(verdicts).items()))  # for docs/rubric.md
    assert weighted_kappa(pairs) > 0.83
    assert weighted_kappa(verdicts) > 0.87  # of two values, the weights change nothing
    assert (0, 1) not in verdicts  # none is accepted that a person rejects
