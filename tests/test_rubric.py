"""The rubric: does it read contexts back, and judge replies as published?"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from part3_pretrain.retail.rubric import HIGH_QUALITY, RUBRIC, rate, recognise
from part3_pretrain.retail.world import INTENTS, Scenario, draw_context
from tests.conftest import draw_scenarios

BY_NAME = {intent.name: intent for intent in INTENTS}
SCENARIO = Scenario((BY_NAME["damaged"],), "walnut bookshelf", "48213")
ACKNOWLEDGEMENT = "I am sorry about the damage, and thank you for telling us about your"
NEXT_STEP = " You will get an e-mail within the hour."
IDEAL = (
    f"{ACKNOWLEDGEMENT} walnut bookshelf (order 48213). A free replacement leaves our warehouse by express.{NEXT_STEP}"
)


@pytest.mark.parametrize("restated_only", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_recognise_reads_back_what_was_drawn(held_out: bool, restated_only: bool) -> None:
    rng = Random(0)
    for scenario in draw_scenarios(400, seed=1, two_problems=0.3):
        context = draw_context(scenario, rng, held_out_wording=held_out, restated_only=restated_only)
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
        ("within the hour", "withing the hour", 4.4, ["does not say what happens next"]),
        (ACKNOWLEDGEMENT, "You wrote about your", 4.4, ["does not acknowledge the customer"]),
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
        (two_problems, "A pdf copy.", 1.7),
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
