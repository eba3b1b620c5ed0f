"""Pairs of a context and a response: made, chosen for training, held out for tests, and saved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from part3_pretrain.retail import world
from part3_pretrain.retail.rubric import rate
from part3_pretrain.runtime.files import atomic_write

HIGH_QUALITY_PAIRS, TYPICAL_PAIRS = 500, 4500  # of the training set
MAX_PLACES_SHOWN = 10  # in a message
PAIRS_OF_AN_INTENT = 12  # of the high-quality ones, at most: by chance, some intents would have 4 and others 18
VALIDATION_PAIRS, TEST_PAIRS = 100, 200

Turn = tuple[str, str]  # of a conversation: a role ("user", "assistant", "system") and what it says
Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Pair:
    """A customer's words (the context), an agent's (the response), and whether these are of high quality (1 or 0)."""

    context: str
    response: str
    high_quality: int = 1
    place: str = field(default="", compare=False)  # such as "pairs.jsonl, line 3", for messages
    turns: Turns = field(default=(), compare=False)  # that the context stands for, if not one message of a user


def list_others(places: list[str]) -> str:
    """Return the places of further pairs of a file that a message has named, ten at most: "row 7, row 9, 3 more"."""
    shown = [place.rpartition(", ")[2] for place in places[:MAX_PLACES_SHOWN]]
    if len(places) > MAX_PLACES_SHOWN:
        shown.append(f"{len(places) - MAX_PLACES_SHOWN} more")
    return ", ".join(shown)


def trainable(pairs: Iterable[Pair], train_on: str) -> list[Pair]:
    """Return the pairs to train on: all of them if `--train-on` is "all", else those of high quality."""
    return [pair for pair in pairs if train_on == "all" or pair.high_quality == 1]


def make_datasets(seed: int) -> dict[str, list[Pair]]:
    """Make the five synthetic retail data sets, by the names of their files; the same seed gives the same pairs.

    No (intent, item) combination of the training pairs occurs in another set, and no context occurs twice.
    """
    draw = partial(draw_pairs, seen=set(), rng=Random(seed))
    known = partial(world.draw_customer, held_out_item=False)
    new = partial(world.draw_customer, held_out_item=True)
    new_product = partial(world.draw_scenario, held_out_item=True)
    unseen_wording = partial(world.draw_context, unseen_pattern=True)
    unseen_phrase = partial(world.draw_context, restated_only=True)
    return {
        "sft_dataset": [
            *draw(HIGH_QUALITY_PAIRS, evenly(known), world.ideal_reply),
            *draw(TYPICAL_PAIRS, known, world.typical_reply),
        ],
        "sft_validation": [*draw(VALIDATION_PAIRS, new, world.ideal_reply)],
        "sft_test": [*draw(TEST_PAIRS, new, world.ideal_reply)],
        "sft_test_unseen_wording": [*draw(TEST_PAIRS, new_product, world.ideal_reply, draw_context=unseen_wording)],
        "sft_test_unseen_phrase": [*draw(TEST_PAIRS, new_product, world.ideal_reply, draw_context=unseen_phrase)],
    }


def evenly(draw_scenario: Callable[[Random], world.Scenario]) -> Callable[[Random], world.Scenario]:
    """Return what draws such scenarios, but at most `PAIRS_OF_AN_INTENT` of each intent.

    But for what people ask most, where their order is: the only intent to which a missing order number matters.
    """
    counts = Counter[world.Intent]()

    def draw(rng: Random) -> world.Scenario:
        while True:
            scenario = draw_scenario(rng)
            limited = [intent for intent in scenario.intents if intent.is_service and not intent.without_order_number]
            if all(counts[intent] < PAIRS_OF_AN_INTENT for intent in limited):
                counts.update(limited)
                return scenario

    return draw


def make_message_sets(seed: int) -> dict[str, list[Pair]]:
    """Make two sets of messages as people type them: those held out, and those about topics that are held out."""
    draw, rng = partial(draw_pairs, write_reply=world.ideal_reply, seen=set()), Random(f"messages/{seed}")
    customer = partial(world.draw_customer, held_out_item=True, two_problems=0.0)
    unseen = partial(world.draw_message, unseen=True)
    topics = [topic for topic in world.OUTSIDE if world.is_held_out_topic(topic)]
    return {
        "unseen_message": [*draw(TEST_PAIRS, customer, rng=rng, draw_context=unseen)],
        "unseen_topic": [*draw(TEST_PAIRS, lambda rng: world.Scenario((rng.choice(topics),)), rng=rng)],
    }


def draw_pairs(
    count: int,
    draw_scenario: Callable[[Random], world.Scenario],
    write_reply: Callable[[world.Scenario, Random], str],
    seen: set[int],
    rng: Random,
    draw_context: Callable[[world.Scenario, Random], str] = world.draw_context,
) -> Iterator[Pair]:
    """Draw so many pairs, one at a time, so that millions can be saved without being kept.

    Args:
        draw_scenario, draw_context, write_reply: who the customer is, what that writes, and what is responded.
        seen: hashes of the contexts so far; no pair has one of them, and those of the new pairs are added.
    """
    while count > 0:
        scenario = draw_scenario(rng)
        context = draw_context(scenario, rng)
        if hash(context) not in seen:
            seen.add(hash(context))
            response = write_reply(scenario, rng)
            yield Pair(context, response, int(rate(scenario, response).is_high_quality))
            count -= 1


def hold_out(pairs: list[Pair], sizes: list[int], seed: int) -> list[list[Pair]]:
    """Choose for each size so many contexts at random, and return all pairs that have them.

    It is up to the caller to train on no pair with such a context. Raises ValueError if no context would be left.
    """
    contexts = list(dict.fromkeys(pair.context for pair in pairs))
    if sum(sizes) >= len(contexts):
        raise ValueError(f"{len(contexts)} different contexts are too few to hold {' and '.join(map(str, sizes))} out")
    Random(f"hold out/{seed}").shuffle(contexts)
    held_out = []
    for size in sizes:
        chosen, contexts = set(contexts[:size]), contexts[size:]
        held_out.append([pair for pair in pairs if pair.context in chosen])
    return held_out


def save_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write a JSON array, one pair or conversation a line, each as soon as it is drawn."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        for index, pair in enumerate(pairs):
            texts: dict[str, Any] = {"context": pair.context, "response": pair.response}
            if pair.turns:
                turns = (*pair.turns, ("assistant", pair.response))
                texts = {"messages": [{"role": role, "content": content} for role, content in turns]}
            entry = texts | {"high_quality": pair.high_quality}
            file.write((",\n" if index else "\n") + json.dumps(entry, ensure_ascii=False))
        file.write("\n]\n")
