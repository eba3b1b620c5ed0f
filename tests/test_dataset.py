from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain import retail
from part3_pretrain.command_line import UserError
from part3_pretrain.tokenizer import EOS, PAD
from part4_sft.dataset import (
    Example,
    Pair,
    collate,
    encode_pair,
    encode_pairs,
    load_pairs,
    make_datasets,
    save_pairs,
    shuffled_steps,
)

HELD_OUT = ["sft_validation", "sft_test", "sft_test_unseen_wording", "sft_test_unseen_phrase"]

# ---------------------------------------------------------------------------------------------------- making


@pytest.fixture(scope="module")
def scenarios(made: dict[str, list[Pair]]) -> dict[str, list[retail.Scenario]]:
    """What the customer of every pair wants, read back from the context alone."""
    return {name: [retail.recognise(pair.context) for pair in pairs] for name, pairs in made.items()}


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
    made: dict[str, list[Pair]], scenarios: dict[str, list[retail.Scenario]]
) -> None:
    for name, pairs in made.items():
        for pair, scenario in zip(pairs, scenarios[name]):
            assert pair.high_quality == (retail.rate(scenario, pair.response).score >= 4.0), pair


@pytest.mark.parametrize("names", [["sft_dataset"], HELD_OUT], ids=["training", "held out"])
def test_half_give_an_order_number_and_a_tenth_have_two_problems(
    scenarios: dict[str, list[retail.Scenario]], names: list[str]
) -> None:
    drawn = [scenario for name in names for scenario in scenarios[name]]
    assert sum(scenario.order_number is not None for scenario in drawn) / len(drawn) == pytest.approx(0.5, abs=0.06)
    assert sum(len(scenario.intents) == 2 for scenario in drawn) / len(drawn) == pytest.approx(0.1, abs=0.04)


def test_no_training_pair_shares_an_intent_and_item_with_a_held_out_pair(
    scenarios: dict[str, list[retail.Scenario]],
) -> None:
    trained = _combinations(scenarios["sft_dataset"])
    for name in HELD_OUT:
        assert not trained & _combinations(scenarios[name]), name


def _combinations(scenarios: Iterable[retail.Scenario]) -> set[tuple[str, str]]:
    return {(intent.name, scenario.item) for scenario in scenarios for intent in scenario.intents}


def test_unseen_wordings_are_new_patterns_of_known_phrases(
    made: dict[str, list[Pair]], scenarios: dict[str, list[retail.Scenario]]
) -> None:
    def patterns(name: str) -> set[str]:
        return {_pattern(pair.context, scenario.item) for pair, scenario in zip(made[name], scenarios[name])}

    unseen = patterns("sft_test_unseen_wording")
    assert not unseen & (patterns("sft_dataset") | patterns("sft_validation"))
    assert patterns("sft_test") & patterns("sft_dataset")  # the comparison can find something

    phrases = [phrase for intent in retail.INTENTS for phrase in intent.phrases]
    known = _said(phrases, [pair.context for pair in made["sft_dataset"]])
    for pair in made["sft_test_unseen_wording"]:
        said = _said(phrases, [pair.context])
        assert said and said <= known, pair.context


def _pattern(context: str, item: str) -> str:
    """The context without order number and with a slot where the item stood."""
    without_order = re.sub(r" \(order \d+\)|, order \d+| from order \d+", "", context)
    return re.sub(rf"\b(an?|the) {item}\b", "{item}", without_order)


def test_phrases_kept_for_pretraining_occur_in_the_unseen_phrase_set_alone(made: dict[str, list[Pair]]) -> None:
    reserved = [phrase for intent in retail.INTENTS for phrase in intent.restated_only]
    for name, pairs in made.items():
        for pair in pairs:
            assert bool(_said(reserved, [pair.context])) == (name == "sft_test_unseen_phrase"), pair.context


def _said(phrases: list[str], contexts: list[str]) -> set[str]:
    """The phrases, with slots such as {it} and {my}, that occur in the contexts."""
    persons = retail.WORLD["person"].values()
    slots = {slot: "|".join(person[slot] for person in persons) for slot in retail.WORLD["person"]["first"]}
    slots["it"] = r"it|the [\w ]+?"
    either = "|".join(
        "("
        + "".join(f"(?:{slots[part]})" if part in slots else re.escape(part) for part in re.split("[{}]", phrase))
        + ")"
        for phrase in phrases
    )
    said = re.compile(rf"\b(?:{either})(?=[.,;]| \(order| from order)", re.IGNORECASE)
    return {phrases[match.lastindex - 1] for context in contexts for match in said.finditer(context)}


# ---------------------------------------------------------------------------------------------------- files

GOOD = '{"context": "Where is it?", "response": "Here.", "high_quality": 1}'


def one(old: str, new: str) -> str:
    """A file with one pair, in which `old` is replaced."""
    return f"[{GOOD.replace(old, new)}]"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (f"[\n{GOOD},\n{GOOD}\n", "line 4"),
        ("", "line 1"),
        ("[]", "no pairs"),
        (GOOD, "array"),
        (f'[{GOOD}, "Where is it?"]', "pair 2"),
        (f'[{GOOD}, {{"context": "a", "high_quality": 1}}]', 'pair 2: the key "response"'),
        (f'[{GOOD}, {GOOD[:-1]}, "rating": 5}}]', 'pair 2: unknown key "rating"'),
        (one("Here.", " "), 'pair 1: "response"'),
        (one("Where is it?", ""), 'pair 1: "context"'),
        (one('"Here."', "7"), 'pair 1: "response"'),
        (one('"Here."', "null"), 'pair 1: "response"'),
        (one("Here.", r"Here \ud83d"), "pair 1"),  # half of an emoji
        (one("1}", "2}"), 'pair 1: "high_quality"'),
        (one("1}", "true}"), 'pair 1: "high_quality"'),
        (one("1}", '"1"}'), 'pair 1: "high_quality"'),
        (one("1}", "1.0}"), 'pair 1: "high_quality"'),
    ],
    ids=lambda value: value[-40:],
)
def test_a_bad_file_is_a_users_mistake_that_names_file_and_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_pairs(path)
    assert str(path) in str(error.value) and complaint in str(error.value)


def test_a_missing_file_and_one_that_is_not_utf8_are_users_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_pairs(path)
    path.write_bytes(one("Here", "Grüße").encode("latin-1"))
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}.*UTF-8"):
        load_pairs(path)


# ---------------------------------------------------------------------------------------------------- tokens

PAIR = Pair("My walnut desk arrived broken (order 48213).", "I am sorry about the damage.")


def test_the_mask_token_by_token(tokenizer: Tokenizer) -> None:
    context = tokenizer.encode("Customer: My walnut desk arrived broken (order 48213).\nAgent:").ids
    response = tokenizer.encode(" I am sorry about the damage.").ids
    eos = tokenizer.token_to_id(EOS)

    example = encode_pair(PAIR, tokenizer, 512)
    assert example.ids == context + response + [eos]
    assert example.labels == [-100] * len(context) + response + [eos]
    assert tokenizer.decode([label for label in example.labels if label != -100]) == " I am sorry about the damage."


def test_control_tokens_are_different_and_come_from_no_text(tokenizer: Tokenizer) -> None:
    pad, eos = tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)
    example = encode_pair(Pair("<EOS> <PAD>", "<PAD> <EOS>"), tokenizer, 512)
    assert pad != eos
    assert example.ids.count(eos) == 1 and example.ids[-1] == eos
    assert pad not in example.ids


def test_what_is_too_long_loses_the_beginning_of_its_context_and_nothing_of_its_response(tokenizer: Tokenizer) -> None:
    whole = encode_pair(PAIR, tokenizer, 512)
    response = [label for label in whole.labels if label != -100]
    for max_length in range(len(response) + 1, len(whole.ids)):
        cut = encode_pair(PAIR, tokenizer, max_length)
        assert cut.ids == whole.ids[-max_length:]
        assert cut.labels == whole.labels[-max_length:]
    with pytest.raises(ValueError, match=str(len(response))):
        encode_pair(PAIR, tokenizer, len(response))


def test_a_response_without_room_is_named(tokenizer: Tokenizer) -> None:
    pairs = [Pair("a", "b"), Pair("a", "b " * 50), Pair("a", "b")]
    with pytest.raises(UserError, match=r"mine\.json, pair 2"):
        encode_pairs(enumerate(pairs, start=1), tokenizer, 30, "mine.json")


# ---------------------------------------------------------------------------------------------------- batches


def test_collate_shifts_by_one_and_pads_on_the_right() -> None:
    short = Example([5, 6, 7], [-100, 6, 7])
    long = Example([5, 8, 9, 2, 1], [-100, -100, 9, 2, 1])
    inputs, targets = collate([short, long], pad_id=0)
    assert torch.equal(inputs, torch.tensor([[5, 6, 0, 0], [5, 8, 9, 2]]))
    assert torch.equal(targets, torch.tensor([[6, 7, -100, -100], [-100, 9, 2, 1]]))


def test_padding_is_never_a_target(made: dict[str, list[Pair]], tokenizer: Tokenizer) -> None:
    pad = tokenizer.token_to_id(PAD)
    examples = encode_pairs(enumerate(made["sft_dataset"][:20], start=1), tokenizer, 512, "")
    inputs, targets = collate(examples, pad)
    assert (inputs == pad).any() and not (targets == pad).any()
    assert (targets != -100).sum() == sum(label != -100 for example in examples for label in example.labels)


def test_every_epoch_sees_each_example_once_in_its_own_seeded_order() -> None:
    examples = [Example([number], [number]) for number in range(21)]

    def order(epoch: int, seed: int) -> list[list[int]]:
        return [[example.ids[0] for example in step] for step in shuffled_steps(examples, 8, epoch, seed)]

    first = order(epoch=1, seed=0)
    assert [len(step) for step in first] == [8, 8, 5]
    assert sorted(number for step in first for number in step) == list(range(21))
    assert first == order(epoch=1, seed=0)
    assert first != order(epoch=2, seed=0)
    assert first != order(epoch=1, seed=1)
