"""Pairs of a context and a response: made, written, and split into those to train on and those to test with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from random import Random

from part3_pretrain.retail import rubric, world
from part3_pretrain.runtime.files import atomic_write

PAIRS, HIGH_QUALITY_PAIRS, VALIDATION_PAIRS, TEST_PAIRS = 5000, 500, 100, 200


@dataclass(frozen=True)
class Pair:
    """What was asked, what was answered, and whether (1 or 0) the answer is of high quality."""

    context: str
    response: str
    high_quality: int = 1
    place: str = field(default="", compare=False)  # such as "pairs.jsonl, line 3", for messages


def trains(pair: Pair, train_on: str) -> bool:
    """Whether a pair gives gradients, by `--train-on`."""
    return pair.high_quality == 1 or train_on == "all"


def trainable(pairs: Iterable[Pair], train_on: str) -> list[Pair]:
    """Return the pairs to train on: all of them where `--train-on` is "all", else those of high quality."""
    return [pair for pair in pairs if train_on == "all" or pair.high_quality == 1]


# ---------------------------------------------------------------------------------------------------- making


def make_datasets(seed: int) -> dict[str, list[Pair]]:
    """The five synthetic retail data sets by the names of their files; the same seed gives the same pairs.

    Training pairs share no (intent, item) combination with the others. Every context is unlike all others.
    """
    rng = Random(seed)
    seen: set[int] = set()

    def ideal(count: int, held_out_item: bool, **wording: bool) -> list[Pair]:
        return list(islice(draw_pairs(world.ideal_reply, held_out_item, seen, rng, **wording), count))

    training = ideal(HIGH_QUALITY_PAIRS, held_out_item=False)
    training += islice(draw_pairs(world.typical_reply, False, seen, rng), PAIRS - HIGH_QUALITY_PAIRS)
    return {
        "sft_dataset": training,
        "sft_validation": ideal(VALIDATION_PAIRS, held_out_item=True),
        "sft_test": ideal(TEST_PAIRS, held_out_item=True),
        "sft_test_unseen_wording": ideal(TEST_PAIRS, held_out_item=True, held_out=True),
        "sft_test_unseen_phrase": ideal(TEST_PAIRS, held_out_item=True, restated_only=True),
    }


def draw_pairs(
    reply: Callable[[world.Scenario, Random], str], held_out_item: bool, seen: set[int], rng: Random, **wording: bool
) -> Iterator[Pair]:
    """Pairs without end, one at a time, so that any number can be made and written without being kept.

    Args:
        reply: writes the response.
        held_out_item: whether their (intent, item) combinations are those that training does not hold.
        seen: hashes of the contexts so far; no pair has one of them, and those of the new pairs are added.
        wording: passed on to `world.draw_context`.
    """
    while True:
        scenario = world.draw_scenario(rng, held_out=held_out_item)
        context = world.draw_context(scenario, rng, **wording)
        if hash(context) not in seen:
            seen.add(hash(context))
            response = reply(scenario, rng)
            rating = rubric.rate(scenario, response).score
            yield Pair(context, response, int(rating >= rubric.HIGH_QUALITY))


# ---------------------------------------------------------------------------------------------------- holding out


def hold_out(pairs: list[Pair], sizes: list[int], seed: int) -> list[list[Pair]]:
    """Chooses parts of so many contexts each, with all pairs that have them.

    It is up to the caller to train on no pair with such a context. Raises ValueError where nothing would be left.
    """
    contexts = list(dict.fromkeys(pair.context for pair in pairs))
    if sum(sizes) >= len(contexts):
        raise ValueError(f"{len(contexts)} different contexts are too few to hold {' and '.join(map(str, sizes))} out")
    Random(f"hold out/{seed}").shuffle(contexts)
    part_of = dict(zip(contexts, [part for part, size in enumerate(sizes) for _ in range(size)]))
    held_out: list[list[Pair]] = [[] for _ in sizes]
    for pair in pairs:
        if pair.context in part_of:
            held_out[part_of[pair.context]].append(pair)
    return held_out


# ---------------------------------------------------------------------------------------------------- writing


def save_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Writes a JSON array with one pair a line, one after another, however many they are."""
    keys = ("context", "response", "high_quality")
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        separator = "[\n"
        for pair in pairs:
            file.write(separator + json.dumps({key: getattr(pair, key) for key in keys}, ensure_ascii=False))
            separator = ",\n"
        file.write("\n]\n")
