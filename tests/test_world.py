"""The retail world: is it as large as promised, is its grammar sound, and is held out what should be?"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import product
from random import Random

from part3_pretrain.retail import documents, world
from part3_pretrain.retail.rubric import rate, recognise
from part3_pretrain.retail.world import DEPARTMENTS, IDEAL, INTENTS, Scenario, in_catalogue, is_held_out_item
from tests.conftest import draw_scenarios, tell_tale

ITEM = "walnut bookshelf"


def test_thousands_of_products_can_be_composed_and_each_is_in_the_catalogue() -> None:
    rng = Random(0)
    items = [world.draw_item(rng, list(DEPARTMENTS)) for _ in range(5_000)]
    assert len(set(items)) >= 3_000
    assert all(in_catalogue(item) and not world.names_another_product(f"your {item}.", item) for item in items)
    assert 0.47 < sum(in_catalogue(item.partition(" ")[2]) for item in items) / len(items) < 0.53  # have an adjective
    assert re.match(world.any_of(["oak", "oak desk"]), "oak desk")[0] == "oak desk"
    assert not in_catalogue(f"{ITEM}s") and not in_catalogue("bookshelf")


def test_at_least_40_intents_in_at_least_10_categories_whose_phrases_are_their_own_and_name_the_item_once() -> None:
    assert len({intent.name for intent in INTENTS}) == len(INTENTS) >= 40
    assert len({intent.category for intent in INTENTS}) >= 10
    phrases = [phrase for intent in INTENTS for phrase in intent.phrases + intent.restated_only]
    assert [phrase for phrase in phrases if phrase.count("{it}") != 1] == []
    assert len(set(phrases)) == len(phrases)


def test_a_resolution_proves_its_own_intent_alone_and_only_the_next_step_says_what_happens_next() -> None:
    """The rubric's markers, such as "within", stand in no other part of an ideal reply."""
    for intent in INTENTS:
        for resolution in intent.resolutions:
            assert [other.name for other in INTENTS if other.evidence in resolution.lower()] == [intent.name]
        parts = [*IDEAL["openings"][intent.tone], *intent.resolutions, *intent.topics, *IDEAL["closings"]]
        parts += IDEAL["answers"] + IDEAL["further_answers"]
        assert [part for part in parts if rate(Scenario((intent,), ITEM), part).next_step] == []
    assert all(rate(Scenario((INTENTS[0],), ITEM), step).next_step for step in IDEAL["next_steps"])


def test_scenarios_are_drawn_as_asked_and_a_fifth_of_the_names_and_of_the_combinations_is_held_out() -> None:
    rng = Random(0)
    names = {flag: {world.invent_item(rng, held_out=flag) for _ in range(20_000)} for flag in (False, True)}
    assert names[False].isdisjoint(names[True]) and not any(map(in_catalogue, names[False] | names[True]))
    assert 0.17 < len(names[True]) / len(names[False] | names[True]) < 0.25  # nearly all names
    items = [world.draw_item(rng, list(DEPARTMENTS)) for _ in range(200)]
    flags = [is_held_out_item(intent, item) for intent in INTENTS for item in items]
    assert 0.18 < sum(flags) / len(flags) < 0.22
    for held_out in (False, True):
        drawn = [world.draw_scenario(rng, held_out_item=held_out, invented_items=0.2) for _ in range(3_000)]
        for scenario in drawn:
            assert {is_held_out_item(intent, scenario.item) for intent in scenario.intents} == {held_out}
            shelves = {name for name in DEPARTMENTS if scenario.item.endswith(tuple(DEPARTMENTS[name]["nouns"]))}
            assert all(shelves <= set(intent.departments) for intent in scenario.intents), scenario
        assert {scenario.item for scenario in drawn}.isdisjoint(names[not held_out])
        assert 0.46 < sum(scenario.order_number is not None for scenario in drawn) / len(drawn) < 0.54
        assert 0.08 < sum(len(scenario.intents) == 2 for scenario in drawn) / len(drawn) < 0.12
        assert 0.17 < sum(not in_catalogue(scenario.item) for scenario in drawn) / len(drawn) < 0.23
    by_default = [world.draw_scenario(rng, held_out_item=False, two_problems=1.0) for _ in range(300)]
    assert all(in_catalogue(scenario.item) and len(scenario.intents) == 2 for scenario in by_default)


def test_an_intent_has_150_wordings_or_more_and_unseen_patterns_give_others() -> None:
    rng, scenario = Random(0), Scenario((INTENTS[0],), ITEM)
    for intent in INTENTS:
        assert len({world.draw_context(Scenario((intent,), ITEM), rng) for _ in range(400)}) >= 150, intent.name
    known = {world.draw_context(scenario, rng) for _ in range(4_000)}
    assert known.isdisjoint(world.draw_context(scenario, rng, unseen_pattern=True) for _ in range(2_000))
    restated = [documents.restated_context(scenario, rng, restated_only=False) for _ in range(300)]
    again = world.CUSTOMER["restatements"] + world.CUSTOMER["namings"]
    begins_again = " (?=" + "|".join(template.partition("{")[0] for template in again) + ")"
    assert all(re.search(begins_again, text) for text in restated)


def test_the_first_problem_is_said_with_a_reserved_phrase_if_asked() -> None:
    rng = Random(0)
    for scenario in draw_scenarios(300, two_problems=0.3):
        reserved = [tell_tale(phrase) for phrase in scenario.intents[0].restated_only]
        for write, restated_only in product((world.draw_context, documents.restated_context), (False, True)):
            text = write(scenario, rng, restated_only=restated_only)
            assert any(phrase in text.lower() for phrase in reserved) == restated_only, text
            assert recognise(text).intents == scenario.intents


def test_a_typo_changes_one_letter_and_the_scenario_knows_how_the_item_is_spelled() -> None:
    rng, respelled = Random(0), 0
    for scenario in draw_scenarios(400):
        context = world.draw_context(scenario, rng)
        mistyped, typed = world.mistype(context, scenario, rng)
        assert mistyped != context and abs(len(mistyped) - len(context)) <= 1
        assert not typed.misspelled or mistyped.replace(typed.misspelled, scenario.item) == context
        assert replace(typed, misspelled=None) == scenario
        assert not world.names_another_product(mistyped, scenario.item)
        respelled += typed.misspelled is not None
        typed = scenario
        for _ in range(3):
            context, typed = world.mistype(context, typed, rng, in_item=True)
        assert typed.misspelled in context
        assert typed.misspelled == scenario.item or not re.search(rf"\b{scenario.item}\b", context)
    assert 40 < respelled < 200


def test_an_item_can_be_renamed() -> None:
    told = "I bought an oak desk from you and it arrived broken. An oak desk! The oak desk!"
    context, renamed = world.rename(told, recognise(told), "zorblat")
    assert context == "I bought a zorblat from you and it arrived broken. A zorblat! The zorblat!"
    assert renamed == replace(recognise(told), item="zorblat")
    assert world.rename(context, renamed, "oak desk")[0] == told


def test_ideal_replies_are_rated_5() -> None:
    rng, steps = Random(0), Counter[str]()
    for scenario in draw_scenarios(1_000, two_problems=0.3):
        reply = world.ideal_reply(scenario, rng)
        assert rate(scenario, reply).score == 5.0, reply
        steps.update(step for step in IDEAL["next_steps"] if step in reply)
    assert steps[IDEAL["next_steps"][0]] > 3 * steps[IDEAL["next_steps"][-1]] > 0  # everybody has favourites


def test_typical_replies_are_never_high_quality_and_fail_in_many_ways() -> None:
    rng, kinds = Random(0), Counter[tuple[str, ...]]()
    for scenario in draw_scenarios(2_000, two_problems=0.2):
        rating = rate(scenario, world.typical_reply(scenario, rng))
        assert not rating.is_high_quality
        assert len(scenario.intents) == 1 or not rating.wrong_resolution
        kinds[tuple(rating.faults)] += 1
    assert len(kinds) >= 6 and max(kinds.values()) < 1_000
