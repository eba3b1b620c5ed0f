"""Which pairs a run trains on, validates with and tests with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from part3_pretrain.runtime.cli import UserError
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, save_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.preparation import digest, encode_data, prepare_data
from tests.conftest import not_of_retail

Prepare = Callable[..., dict[str, list[Pair]]]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    """Writes lists of pairs into files, and prepares a run that is given these."""

    def call(**given: Any) -> dict[str, list[Pair]]:
        for name, value in given.items():
            if isinstance(value, list):
                given[name] = tmp_path / f"{name}.json"
                save_pairs(given[name], value)
        return prepare_data(SFTConfig(**given))

    return call


def sizes(data: dict[str, list[Pair]]) -> dict[str, int]:
    return {name: len(pairs) for name, pairs in data.items()}


MADE = {
    "sft_dataset": 5000,
    "sft_validation": 100,
    "sft_test": 200,
    "sft_test_unseen_wording": 200,
    "sft_test_unseen_phrase": 200,
}


def test_without_files_all_sets_are_made_by_the_seed(prepare: Prepare, made: dict[str, list[Pair]]) -> None:
    assert prepare() == made
    assert prepare(seed=1)["sft_dataset"] != made["sft_dataset"]


def test_another_shops_pairs_are_tested_with_its_own_though_its_customers_ask_the_same(
    prepare: Prepare, made: dict[str, list[Pair]]
) -> None:
    pairs = [
        replace(pair, response=f"Come by on day {number}.") for number, pair in enumerate(made["sft_dataset"][:40])
    ]
    assert sizes(prepare(data=pairs)) == {"sft_dataset": 32, "sft_validation": 4, "sft_test": 4}


def test_pairs_of_the_retail_world_are_tested_with_its_own_sets_unless_a_share_is_asked_for(
    prepare: Prepare, made: dict[str, list[Pair]]
) -> None:
    pairs = made["sft_dataset"][:20] + made["sft_dataset"][500:520]
    assert sizes(prepare(data=pairs)) == MADE | {"sft_dataset": 40}
    held_out = prepare(data=pairs, test_fraction=0.2)
    assert sizes(held_out) == {"sft_dataset": 32, "sft_validation": 4, "sft_test": 4}  # 20 pairs of 40 train
    assert sizes(prepare(data=pairs, train_on="all", test_fraction=0.2))["sft_test"] == 8


def test_of_other_pairs_a_tenth_is_held_out_and_never_more_than_the_retail_world_has(
    prepare: Prepare, made: dict[str, list[Pair]]
) -> None:
    others = not_of_retail(made["sft_dataset"][:500] * 5)
    assert sizes(prepare(data=others[:30])) == {"sft_dataset": 24, "sft_validation": 3, "sft_test": 3}
    assert sizes(prepare(data=others[:3])) == {"sft_dataset": 1, "sft_validation": 1, "sft_test": 1}
    assert sizes(prepare(data=others)) == {"sft_dataset": 2200, "sft_validation": 100, "sft_test": 200}
    assert sizes(prepare(data=others, test_fraction=0.2))["sft_validation"] == 500
    given = prepare(data=others[:30], test_data=others[:2], validation_data=others[5:6])
    assert sizes(given) == {"sft_dataset": 30, "sft_validation": 1, "sft_test": 2}
    contexts = [{pair.context for pair in part} for part in prepare(data=others[:30], test_data=others[:2]).values()]
    assert [len(part) for part in contexts] == [27, 2, 3]  # validation alone is held out


def test_pairs_of_another_world_are_held_out_though_all_of_them_begin_with_a_greeting(prepare: Prepare) -> None:
    pairs = [Pair(f"Hello! What is the capital of land {number}?", "Ahoy!") for number in range(20)]
    assert sizes(prepare(data=pairs)) == {"sft_dataset": 16, "sft_validation": 2, "sft_test": 2}


def test_what_is_held_out_does_not_train_and_what_does_not_train_is_not_lost(
    prepare: Prepare, made: dict[str, list[Pair]]
) -> None:
    pairs = not_of_retail(made["sft_dataset"][:30])
    data = prepare(data=[*pairs, *(replace(pair, high_quality=0) for pair in pairs)])
    assert sizes(data) == {"sft_dataset": 54, "sft_validation": 3, "sft_test": 3}
    held_out = {pair.context for name in ("sft_validation", "sft_test") for pair in data[name]}
    assert not held_out & {pair.context for pair in data["sft_dataset"] if pair.high_quality}


def test_of_a_stream_the_beginning_is_read_and_nothing_is_held_out(prepare: Prepare, tmp_path: Path) -> None:
    stream, pairs = tmp_path / "stream.jsonl", [Pair(f"question {number}", "answer") for number in range(4)]
    stream.write_text("".join(json.dumps({"context": pair.context, "response": "answer"}) + "\n" for pair in pairs))
    data = prepare(stream=True, data=stream, validation_data=pairs[:1], test_data=pairs[1:3])
    assert data == {"sft_dataset": pairs, "sft_validation": pairs[:1], "sft_test": pairs[1:3]}


def test_a_context_that_is_trained_on_and_tested_is_told(
    prepare: Prepare, made: dict[str, list[Pair]], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = made["sft_dataset"][:4]
    prepare(data=pairs, test_data=pairs[2:] + made["sft_test"][:1])
    assert capsys.readouterr().err == "note: 2 of 3 contexts of sft_test are in the training data too\n"


@pytest.mark.parametrize(
    ("pairs", "complaint"),
    [
        ([Pair("a", "b", 0)], "holds no pair with high_quality 1"),
        ([Pair("a", "b"), Pair("c", "d")], "too few.*--test-data and --validation-data"),
    ],
)
def test_pairs_that_cannot_be_trained_on_are_refused(prepare: Prepare, pairs: list[Pair], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        prepare(data=pairs)


def test_the_pairs_that_train_are_encoded_and_a_test_response_that_is_too_long_is_told_now(
    encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    data = {"sft_dataset": made["sft_dataset"][498:503], "sft_validation": made["sft_validation"][:1]}
    data["sft_test"] = made["sft_test"][:1]
    for name in ("sft_test", "sft_test_unseen_phrase"):
        with pytest.raises(UserError, match="too many for 512 tokens"):
            encode_data(SFTConfig(), data | {name: [Pair("Hello", "Too long. " * 999)]}, encoder)
    encoded = encode_data(SFTConfig(), data, encoder)
    assert encoded.training == encoder.encode_all(data["sft_dataset"][:2]) and encoded.dataset_size == 5
    assert encoded.validation == encoder.encode_all(data["sft_validation"])
    assert encoded.digests == {f"the digest of {name}": digest(pairs) for name, pairs in data.items()}
    changed = [replace(data["sft_test"][0], high_quality=0)]
    assert digest(changed) != digest(data["sft_test"])
