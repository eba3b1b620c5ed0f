from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from part3_pretrain.retail import rubric, world
from part4_sft.dataset import Pair, draw_pairs, hold_out, make_datasets, save_pairs
from part4_sft.formats import load_pairs

HELD_OUT = ["sft_validation", "sft_test", "sft_test_unseen_wording", "sft_test_unseen_phrase"]

# ---------------------------------------------------------------------------------------------------- making


@pytest.fixture(scope="module")
def scenarios(made: dict[str, list[Pair]]) -> dict[str, list[world.Scenario]]:
    """What the customer of every pair wants, read back from the context alone."""
    return {name: [rubric.recognise(pair.context) for pair in pairs] for name, pairs in made.items()}


def test_the_five_sets_have_their_sizes_and_only_the_first_500_are_of_high_quality(made: dict[str, list[Pair]]) -> None:
    assert {name: len(pairs) for name, pairs in made.items()} == {
        "sft_dataset": 5000,
        "sft_validation": 100,
        "sft_test": 200,
        "sft_test_unseen_wording": 200,
        "sft_test_unseen_phrase": 200,
    }
    assert [pair.high_quality for pair in made["sft_dataset"]] == [1] * 500 + [0] * 4500


def test_no_context_occurs_twice_and_ideal_responses_vary(made: dict[str, list[Pair]]) -> None:
    contexts = [pair.context for pairs in made.values() for pair in pairs]
    assert len(set(contexts)) == len(contexts)
    assert len({pair.response for pair in made["sft_dataset"][:500]}) >= 450


def test_the_seed_decides_every_byte_of_the_files(made: dict[str, list[Pair]], tmp_path: Path) -> None:
    again, other = make_datasets(0), make_datasets(1)
    for name, pairs in made.items():
        for folder, saved in {"first": pairs, "again": again[name], "other": other[name]}.items():
            save_pairs(tmp_path / folder / name, saved)
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        assert (tmp_path / "first" / name).read_bytes() != (tmp_path / "other" / name).read_bytes()


def test_saved_pairs_have_exactly_three_keys_and_come_back(made: dict[str, list[Pair]], tmp_path: Path) -> None:
    pairs = [*made["sft_dataset"][498:502], Pair('Größe "L"\nfehlt', "Entschuldigung 🙂", 0)]
    save_pairs(tmp_path / "pairs.json", pairs)
    entries = json.loads((tmp_path / "pairs.json").read_text(encoding="utf-8"))
    assert all(list(entry) == ["context", "response", "high_quality"] for entry in entries)
    assert load_pairs(tmp_path / "pairs.json") == pairs


def test_high_quality_is_what_the_rubric_says(
    made: dict[str, list[Pair]], scenarios: dict[str, list[world.Scenario]]
) -> None:
    for name, pairs in made.items():
        for pair, scenario in zip(pairs, scenarios[name]):
            assert pair.high_quality == (rubric.rate(scenario, pair.response).score >= 4.0), pair


@pytest.mark.parametrize("names", [["sft_dataset"], HELD_OUT], ids=["training", "held out"])
def test_half_give_an_order_number_and_a_tenth_have_two_problems(
    scenarios: dict[str, list[world.Scenario]], names: list[str]
) -> None:
    drawn = [scenario for name in names for scenario in scenarios[name]]
    assert sum(scenario.order_number is not None for scenario in drawn) / len(drawn) == pytest.approx(0.5, abs=0.06)
    assert sum(len(scenario.intents) == 2 for scenario in drawn) / len(drawn) == pytest.approx(0.1, abs=0.04)


def test_no_training_pair_shares_an_intent_and_item_with_a_held_out_pair(
    scenarios: dict[str, list[world.Scenario]],
) -> None:
    trained = _combinations(scenarios["sft_dataset"])
    for name in HELD_OUT:
        assert not trained & _combinations(scenarios[name]), name


def _combinations(scenarios: Iterable[world.Scenario]) -> set[tuple[str, str]]:
    return {(intent.name, scenario.item) for scenario in scenarios for intent in scenario.intents}


@pytest.mark.slow
def test_unseen_wordings_are_new_patterns_of_known_phrases(
    made: dict[str, list[Pair]], scenarios: dict[str, list[world.Scenario]]
) -> None:
    def patterns(name: str) -> set[str]:
        return {_pattern(pair.context, scenario.item) for pair, scenario in zip(made[name], scenarios[name])}

    unseen = patterns("sft_test_unseen_wording")
    assert not unseen & (patterns("sft_dataset") | patterns("sft_validation"))
    assert patterns("sft_test") & patterns("sft_dataset")  # the comparison can find something

    phrases = [phrase for intent in world.INTENTS for phrase in intent.phrases]
    known = _said(phrases, [pair.context for pair in made["sft_dataset"]])
    for pair in made["sft_test_unseen_wording"]:
        said = _said(phrases, [pair.context])
        assert said and said <= known, pair.context


def _pattern(context: str, item: str) -> str:
    """The context without order number and with a slot where the item stood."""
    without_order = re.sub(r" \(order \d+\)|, order \d+| from order \d+", "", context)
    return re.sub(rf"\b(an?|the) {item}\b", "{item}", without_order)


def test_phrases_kept_for_pretraining_occur_in_the_unseen_phrase_set_alone(made: dict[str, list[Pair]]) -> None:
    reserved = [phrase for intent in world.INTENTS for phrase in intent.restated_only]
    for pair in made["sft_test_unseen_phrase"]:
        assert _said(reserved, [pair.context]), pair.context
    others = made.keys() - {"sft_test_unseen_phrase"}
    assert not _said(reserved, [pair.context for name in others for pair in made[name]])


def _said(phrases: list[str], contexts: list[str]) -> set[str]:
    """The phrases, with slots such as {it} and {my}, that occur in the contexts."""
    persons = world.WORLD["person"].values()
    slots = {slot: "|".join(person[slot] for person in persons) for slot in world.WORLD["person"]["first"]}
    slots["it"] = r"it|the [\w ]+?"
    either = "|".join(
        "("
        + "".join(f"(?:{slots[part]})" if part in slots else re.escape(part) for part in re.split("[{}]", phrase))
        + ")"
        for phrase in phrases
    )
    said = re.compile(rf"\b(?:{either})(?=[.,;]| \(order| from order)", re.IGNORECASE)
    return {phrases[match.lastindex - 1] for context in contexts for match in said.finditer(context)}


def test_pairs_are_written_as_they_are_drawn(tmp_path: Path) -> None:
    """However many are written, none is drawn ahead of the file."""
    seen: set[int] = set()

    def watched() -> Iterator[Pair]:
        for count, pair in enumerate(islice(draw_pairs(world.ideal_reply, False, seen, Random(0)), 3000), start=1):
            assert len(seen) == count
            yield pair

    save_pairs(tmp_path / "pairs.json", watched())
    pairs = load_pairs(tmp_path / "pairs.json")
    assert len(pairs) == len({pair.context for pair in pairs}) == 3000


# ---------------------------------------------------------------------------------------------------- holding out


def test_held_out_parts_share_no_context_with_each_other_and_have_their_size() -> None:
    pairs = [Pair(f"context {number % 40}", f"response {number}") for number in range(120)]
    first, second = hold_out(pairs, [4, 6], seed=0)
    assert (len(first), len(second)) == (12, 18)  # every context occurs three times
    assert len({pair.context for pair in first}) == 4
    assert not {pair.context for pair in first} & {pair.context for pair in second}
    assert hold_out(pairs, [4, 6], seed=0) == [first, second] != hold_out(pairs, [4, 6], seed=1)
    assert hold_out(pairs, [], seed=0) == []
    with pytest.raises(ValueError, match="too few"):
        hold_out(pairs, [20, 20], seed=0)
