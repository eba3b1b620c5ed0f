"""Pairs: are the five sets as promised, is what they hold out unknown to training, and is it saved as it is?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from random import Random

import pytest

from part3_pretrain.retail import world
from part3_pretrain.retail.rubric import rate, recognise
from part4_sft.dataset import Pair, draw_pairs, hold_out, make_datasets, save_pairs, trainable
from part4_sft.formats import load_pairs
from tests.conftest import tell_tale, wording

UNSEEN = ["sft_test_unseen_wording", "sft_test_unseen_phrase"]
SIZES = {"sft_dataset": 5000, "sft_validation": 100, "sft_test": 200} | dict.fromkeys(UNSEEN, 200)


def test_the_five_sets_have_their_sizes_and_only_the_first_500_are_of_high_quality(made: dict[str, list[Pair]]) -> None:
    assert {name: len(pairs) for name, pairs in made.items()} == SIZES
    assert [pair.high_quality for pair in made["sft_dataset"]] == [1] * 500 + [0] * 4500
    assert trainable(made["sft_dataset"], "high-quality") == made["sft_dataset"][:500]
    assert trainable(made["sft_dataset"], "all") == made["sft_dataset"]
    assert len({pair.context for pairs in made.values() for pair in pairs}) == sum(SIZES.values())
    assert len({pair.response for pair in made["sft_dataset"][:500]}) >= 400  # replies to small talk are few


def test_the_seed_decides_every_pair(made: dict[str, list[Pair]]) -> None:
    assert make_datasets(0) == made
    assert all(pairs != made[name] for name, pairs in make_datasets(1).items())


@pytest.mark.parametrize("name", SIZES)
def test_every_set_holds_out_what_its_name_says(made: dict[str, list[Pair]], name: str) -> None:
    """Combinations of intent and item in all but the training set; wordings and phrases in the set named after them."""
    reserved = [tell_tale(phrase) for intent in world.INTENTS for phrase in intent.restated_only]
    for pair in made[name]:
        scenario = recognise(pair.context)
        if scenario.item:
            held_out = {world.is_held_out_item(intent, scenario.item) for intent in scenario.intents}
            assert held_out == {name != "sft_dataset"}, pair
        assert any(phrase in pair.context.lower() for phrase in reserved) == (name == "sft_test_unseen_phrase"), pair
        assert pair.high_quality == (rate(scenario, pair.response).score >= 4.0), pair
    known = {wording(pair.context.lower()).rstrip(".?!") for pair in made["sft_dataset"]}
    shared = sum(wording(pair.context.lower()).rstrip(".?!") in known for pair in made[name])
    assert (shared > 0) == (name not in UNSEEN), shared


def test_pairs_are_drawn_one_at_a_time_and_their_contexts_are_new(tmp_path: Path) -> None:
    """However many are written, none is drawn ahead of the file."""
    seen: set[int] = set()
    drawn: list[Pair] = []
    customer = partial(world.draw_customer, held_out_item=False)

    def watched() -> Iterator[Pair]:
        for _ in range(2):  # the same pairs, but for their contexts
            for pair in draw_pairs(500, customer, world.ideal_reply, seen, Random(0)):
                drawn.append(pair)
                assert len(seen) == len(drawn)
                yield pair

    save_pairs(tmp_path / "pairs.json", watched())
    assert load_pairs(tmp_path / "pairs.json") == drawn
    assert len({pair.context for pair in drawn}) == 1000


@pytest.mark.parametrize("pairs", [[], [Pair('Größe "L"\nfehlt', "Oh 🙂", 0), Pair("c", "d", place="x")]])
def test_saved_pairs_have_exactly_three_keys_and_a_line_each(pairs: list[Pair], tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.json", pairs)
    text = (tmp_path / "pairs.json").read_text(encoding="utf-8")
    values = [(pair.context, pair.response, pair.high_quality) for pair in pairs]
    assert json.loads(text) == [dict(zip(("context", "response", "high_quality"), entry)) for entry in values]
    assert text.count("\n") == len(pairs) + 2 and "\\u" not in text


def test_the_seed_decides_which_contexts_are_held_out_and_one_must_be_left() -> None:
    pairs = [Pair(f"context {number % 40}", f"response {number}") for number in range(120)]
    parts = hold_out(pairs, [4, 35], seed=0)
    assert [len(part) for part in parts] == [12, 105]  # every context occurs three times
    assert hold_out(pairs, [4, 35], seed=0) == parts != hold_out(pairs, [4, 35], seed=1)
    with pytest.raises(ValueError, match=r"^40 different contexts are too few to hold 20 and 20 out$"):
        hold_out(pairs, [20, 20], seed=0)
