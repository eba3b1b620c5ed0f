"""The retail world: is it as large as promised, is its grammar sound, and does the rubric judge as published?"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from part3_pretrain.retail.rubric import HIGH_QUALITY, rate, recognise
from part3_pretrain.retail.world import (
    INTENTS,
    WORLD,
    Intent,
    Scenario,
    draw_context,
    draw_item,
    draw_product_question,
    draw_scenario,
    held_out_item,
    ideal_reply,
    invent_item,
    mistype,
    rename,
    typical_reply,
)

ITEM = "walnut bookshelf"
NUMBER = "48213"
intents = pytest.mark.parametrize("intent", INTENTS, ids=lambda intent: intent.name)


def scenarios(count: int, seed: int = 0, two_problems: float = 0.1) -> list[Scenario]:
    rng = Random(seed)
    return [draw_scenario(rng, held_out=index % 2 == 0, two_problems=two_problems) for index in range(count)]


# ---------------------------------------------------------------------------------------------------- the tables


def test_at_least_40_intents_in_at_least_10_categories() -> None:
    assert len({intent.name for intent in INTENTS}) == len(INTENTS) >= 40
    assert len({intent.category for intent in INTENTS}) >= 10


def test_thousands_of_products_can_be_composed() -> None:
    rng = Random(0)
    assert len({draw_item(rng, list(WORLD["departments"])) for _ in range(5_000)}) >= 3_000


@intents
def test_every_phrase_names_the_item_once(intent: Intent) -> None:
    assert [phrase for phrase in intent.phrases + intent.restated_only if phrase.count("{it}") != 1] == []


def test_no_two_phrases_are_equal() -> None:
    """So a phrase known from restatements alone is no regular phrase, and a phrase tells its intent."""
    counts = Counter(phrase for intent in INTENTS for phrase in intent.phrases + intent.restated_only)
    assert counts.most_common(1)[0][1] == 1


@intents
def test_a_resolution_proves_its_own_intent_alone(intent: Intent) -> None:
    for resolution in intent.resolutions:
        assert [other.name for other in INTENTS if other.evidence in resolution.lower()] == [intent.name]


@intents
def test_only_the_next_step_says_what_happens_next(intent: Intent) -> None:
    """The rubric's markers, such as "within", stand in no other part of an ideal reply."""
    ideal = WORLD["ideal"]
    openings, answers = ideal["openings"][intent.tone], ideal["answers"] + ideal["further_answers"]
    parts = [*openings, *answers, *intent.resolutions, *intent.topics, *ideal["closings"]]
    scenario = Scenario((intent,), ITEM)
    assert [part for part in parts if rate(scenario, part).next_step] == []
    assert all(rate(scenario, step).next_step for step in ideal["next_steps"])


# ---------------------------------------------------------------------------------------------------- wordings


@intents
def test_at_least_150_wordings_are_not_held_out(intent: Intent) -> None:
    rng, scenario = Random(0), Scenario((intent,), ITEM)
    assert len({draw_context(scenario, rng) for _ in range(400)}) >= 150


def test_about_a_quarter_of_the_wordings_is_held_out_and_none_is_both() -> None:
    rng, scenario = Random(0), Scenario((INTENTS[0],), ITEM)
    known = {draw_context(scenario, rng) for _ in range(4_000)}
    held_out = {draw_context(scenario, rng, held_out=True) for _ in range(2_000)}
    assert known.isdisjoint(held_out)
    assert 0.2 < len(held_out) / len(known | held_out) < 0.3


def test_items_are_held_out_as_asked() -> None:
    for index, scenario in enumerate(scenarios(300)):
        assert {held_out_item(intent, scenario.item) for intent in scenario.intents} == {index % 2 == 0}


@pytest.mark.parametrize("held_out", [False, True])
def test_shares_of_order_numbers_and_of_two_problems(held_out: bool) -> None:
    rng = Random(0)
    drawn = [draw_scenario(rng, held_out=held_out, two_problems=0.1) for _ in range(3_000)]
    assert 0.46 < sum(scenario.order_number is not None for scenario in drawn) / len(drawn) < 0.54
    assert 0.08 < sum(len(scenario.intents) == 2 for scenario in drawn) / len(drawn) < 0.12


def test_same_seed_same_text() -> None:
    def texts(seed: int) -> list[str]:
        rng = Random(seed)
        drawn = [draw_scenario(rng, held_out=False) for _ in range(20)]
        return [write(scenario, rng) for scenario in drawn for write in (draw_context, ideal_reply, typical_reply)]

    assert texts(0) == texts(0) != texts(1)


def test_invented_names_are_reserved_for_tests_or_not_and_in_no_catalogue() -> None:
    rng = Random(0)
    ours, reserved = ({invent_item(rng, held_out=held_out) for _ in range(2_000)} for held_out in (False, True))
    assert not ours & reserved and len(ours | reserved) > 2_000


def test_a_typo_changes_one_letter_and_the_item_may_be_spelled_as_in_the_catalogue_or_as_the_customer_does() -> None:
    rng = Random(0)
    respelled = 0
    for scenario in scenarios(400):
        context = draw_context(scenario, rng)
        mistyped, wanted = mistype(context, scenario, rng)
        assert mistyped != context and abs(len(mistyped) - len(context)) <= 1
        spelled = wanted.misspelled or wanted.item
        assert spelled in mistyped and replace(wanted, misspelled=None) == scenario
        for accepted in (spelled, scenario.item):
            assert rate(wanted, ideal_reply(replace(scenario, item=accepted), rng)).score == 5.0
        another_typo, _ = mistype(scenario.item, scenario, rng, in_item=True)
        if another_typo != spelled:
            assert not rate(wanted, f"Your {another_typo} is here.").item
        respelled += wanted.misspelled is not None
    assert 40 < respelled < 200


def test_typos_can_be_many_and_all_in_the_item() -> None:
    rng = Random(0)
    for scenario in scenarios(300):
        context, typed = draw_context(scenario, rng), scenario
        for _ in range(3):
            context, typed = mistype(context, typed, rng, in_item=True)
        assert typed.misspelled in context and not re.search(rf"\b{typed.item}\b", context)


def test_whoever_asks_for_a_product_is_told_its_right_name() -> None:
    rng = Random(0)
    for scenario in scenarios(100):
        asked, named = draw_product_question(scenario, 1.0, rng)
        assert not re.search(rf"\b{scenario.item}\b", asked.lower()) and scenario.item in named.lower()
        asked, named = draw_product_question(scenario, 0.0, rng)
        assert scenario.item in asked.lower() and scenario.item in named.lower()


def test_an_item_can_be_renamed() -> None:
    scenario = recognise("I bought an oak desk from you and it arrived broken. The oak desk!")
    context, renamed = rename("I bought an oak desk from you and it arrived broken. The oak desk!", scenario, "zorblat")
    assert context == "I bought a zorblat from you and it arrived broken. The zorblat!" and renamed.item == "zorblat"
    assert rename(context, renamed, "orblat")[0] == "I bought an orblat from you and it arrived broken. The orblat!"


# ---------------------------------------------------------------------------------------------------- recognise


@pytest.mark.parametrize("restated_only", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_recognise_reads_back_what_was_drawn(held_out: bool, restated_only: bool) -> None:
    rng = Random(0)
    for scenario in scenarios(400, seed=1, two_problems=0.3):
        context = draw_context(scenario, rng, held_out=held_out, restated_only=restated_only)
        assert recognise(context) == scenario, context


@pytest.mark.parametrize("text", ["What is the capital of France?", "", "I love the walnut bookshop", "oak desk"])
def test_recognise_knows_what_is_not_of_this_world(text: str) -> None:
    assert recognise(text) is None


# ---------------------------------------------------------------------------------------------------- replies


def test_ideal_replies_are_rated_5() -> None:
    rng = Random(0)
    for scenario in scenarios(1_000, two_problems=0.3):
        reply = ideal_reply(scenario, rng)
        assert rate(scenario, reply).score == 5.0, reply


def test_typical_replies_are_never_high_quality_and_fail_in_many_ways() -> None:
    rng = Random(0)
    kinds: Counter[tuple[str, ...]] = Counter()
    for scenario in scenarios(2_000, two_problems=0.2):
        reply = typical_reply(scenario, rng)
        rating = rate(scenario, reply)
        assert rating.score < HIGH_QUALITY, reply
        kinds[tuple(rating.faults)] += 1
    assert len(kinds) >= 6
    assert kinds.most_common(1)[0][1] < 1_000


# ---------------------------------------------------------------------------------------------------- the rubric

DAMAGED = next(intent for intent in INTENTS if intent.name == "damaged")
INVOICE = next(intent for intent in INTENTS if intent.name == "invoice")
SCENARIO = Scenario((DAMAGED,), ITEM, NUMBER)
IDEAL = (
    "I am sorry about the damage, and thank you for telling us about your walnut bookshelf (order 48213). "
    "A free replacement leaves our warehouse by express. You will get an e-mail within the hour."
)


def test_the_reply_that_the_tests_below_change_is_ideal() -> None:
    assert rate(SCENARIO, IDEAL).score == 5.0
    assert rate(SCENARIO, IDEAL).faults == []


@pytest.mark.parametrize(
    ("ideal", "changed"),
    [
        pytest.param("walnut bookshelf", "oak bookshelf", id="wrong item"),
        pytest.param("walnut bookshelf", "compact walnut bookshelf", id="almost the right item"),
        pytest.param("walnut bookshelf", "walnut bookshelf and your steel kettle", id="one item too many"),
        pytest.param("walnut bookshelf", "purchase", id="no item"),
        pytest.param("48213", "48231", id="wrong order number"),
        pytest.param(" (order 48213)", "", id="no order number"),
        pytest.param("order 48213", "orders 48213 and 10000", id="one order number too many"),
        pytest.param("A free replacement leaves", "A prepaid return label leaves", id="wrong resolution"),
        pytest.param("A free replacement leaves", "It leaves", id="no resolution"),
        pytest.param("A free replacement", "A pdf copy and a free replacement", id="one resolution too many"),
    ],
)
def test_one_error_keeps_a_reply_below_high_quality(ideal: str, changed: str) -> None:
    assert ideal in IDEAL
    rating = rate(SCENARIO, IDEAL.replace(ideal, changed))
    assert rating.score < HIGH_QUALITY
    assert len(rating.faults) >= 1


def test_an_invented_order_number_keeps_a_reply_below_high_quality() -> None:
    without_number = replace(SCENARIO, order_number=None)
    assert rate(without_number, IDEAL.replace(" (order 48213)", "")).score == 5.0
    assert rate(without_number, IDEAL).score < HIGH_QUALITY


def test_one_of_two_problems_resolved_is_not_enough() -> None:
    two_problems = replace(SCENARIO, intents=(DAMAGED, INVOICE))
    half = rate(two_problems, IDEAL)
    assert (half.resolved, half.faults) == (0.5, ["leaves a problem without its resolution"])
    assert half.score < HIGH_QUALITY
    assert rate(two_problems, f"{IDEAL} As for the invoice, a pdf copy is attached.").score == 5.0


@pytest.mark.parametrize(
    ("part", "changed", "fault"),
    [
        (" You will get an e-mail within the hour.", "", "does not say what happens next"),
        (
            "I am sorry about the damage, and thank you for telling us about your",
            "You wrote about your",
            "does not acknowledge the customer",
        ),
    ],
)
def test_a_small_lack_costs_points_but_not_high_quality(part: str, changed: str, fault: str) -> None:
    rating = rate(SCENARIO, IDEAL.replace(part, changed))
    assert rating.faults == [fault]
    assert HIGH_QUALITY <= rating.score < 5.0


def test_ratings_go_from_1_to_5() -> None:
    """The worst reply is rated 1.0, and upper and lower case are the same to the rubric."""
    assert rate(SCENARIO, "").score == 1.0
    assert rate(SCENARIO, IDEAL.upper()).score == 5.0
