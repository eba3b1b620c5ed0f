from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.tokenizer import EOS, PAD, load_tokenizer
from part4_sft.dataset import Pair
from part4_sft.encoding import Example, PairEncoder
from part4_sft.training import collate, shuffled_batches

# ---------------------------------------------------------------------------------------------------- tokens

PAIR = Pair("My walnut desk arrived broken (order 48213).", "I am sorry about the damage.")


def test_the_mask_token_by_token(encoder: PairEncoder) -> None:
    context = encoder.tokenizer.encode("Customer: My walnut desk arrived broken (order 48213).\nAgent:").ids
    response = encoder.tokenizer.encode(" I am sorry about the damage.").ids
    eos = encoder.tokenizer.token_to_id(EOS)

    example = encoder.encode(PAIR)
    assert example.ids == context + response + [eos]
    assert example.labels == [-100] * len(context) + response + [eos]
    assert (
        encoder.tokenizer.decode([label for label in example.labels if label != -100])
        == " I am sorry about the damage."
    )


def test_control_tokens_are_different_and_come_from_no_text(encoder: PairEncoder) -> None:
    pad, eos = encoder.tokenizer.token_to_id(PAD), encoder.tokenizer.token_to_id(EOS)
    example = encoder.encode(Pair("<EOS> <PAD>", "<PAD> <EOS>"))
    assert pad != eos
    assert example.ids.count(eos) == 1 and example.ids[-1] == eos
    assert pad not in example.ids


def test_what_is_too_long_loses_the_beginning_of_its_context_and_nothing_of_its_response(encoder: PairEncoder) -> None:
    whole = encoder.encode(PAIR)
    response = [label for label in whole.labels if label != -100]
    for max_length in range(len(response) + 1, len(whole.ids)):
        cut = replace(encoder, max_length=max_length).encode(PAIR)
        assert cut.ids == whole.ids[-max_length:]
        assert cut.labels == whole.labels[-max_length:]
    with pytest.raises(UserError, match=str(len(response))):
        replace(encoder, max_length=len(response)).encode(PAIR)


def test_a_response_without_room_is_named(encoder: PairEncoder) -> None:
    pairs = [Pair("a", "b"), Pair("a", "b " * 50, place="mine.json, pair 7"), Pair("a", "b")]
    with pytest.raises(UserError, match=r"mine\.json, pair 7"):
        replace(encoder, max_length=30).encode_all(pairs)


def test_a_prompt_begins_with_bos_once_where_the_tokenizer_asks_for_it(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_to_id("a")  # any entry will do
    with_bos = load_tokenizer(tokenizer.to_str())
    with_bos.post_processor = TemplateProcessing(single="<BOS> $A", special_tokens=[("<BOS>", bos)])
    plain, ours = PairEncoder(tokenizer, eos_id=1), PairEncoder(with_bos, eos_id=1)
    example, without = ours.encode(PAIR), plain.encode(PAIR)
    assert example.ids == [bos, *without.ids] and example.labels == [-100, *without.labels]
    assert ours.encode_prompt(PAIR.context, 10) == [bos, *plain.encode_prompt(PAIR.context, 9)]
    with pytest.raises(ValueError, match="no token"):
        ours.encode_prompt(PAIR.context, 1)


@pytest.mark.parametrize("begins", ["Prepend", "Metaspace"])
def test_a_tokenizer_that_puts_a_space_before_every_text_gets_no_second_one(begins: str) -> None:
    """Those of Llama 2 and TinyLlama: the first word of a response is encoded as it is after the prompt."""
    llama = Tokenizer(models.BPE(unk_token="<unk>"))
    if begins == "Prepend":
        llama.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        llama.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    llama.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse()])
    texts = ["Customer: My desk is late.\nAgent: I am sorry. I am late."] * 20
    llama.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"]))
    encoder = PairEncoder(llama, eos_id=1)
    example = encoder.encode(Pair("My desk is late.", "I am sorry."))
    prompt, response = llama.encode("Customer: My desk is late.\nAgent:").ids, llama.encode("I am sorry.")
    assert example.ids == [*prompt, *response.ids, 1]
    assert response.tokens[0].startswith("▁") and not response.tokens[0].startswith("▁▁")
    assert encoder.decode([[label for label in example.labels if label > 1]]) == ["I am sorry."]


@pytest.mark.parametrize(("max_positions", "advice"), [(70, "raise --max-length, which may be 70"), (60, "remove")])
def test_responses_that_are_too_long_are_told_of_all_at_once(
    tokenizer: Tokenizer, max_positions: int, advice: str
) -> None:
    pairs = [Pair("a", "b " * length, place=f"mine.csv, row {length}") for length in (90, 3, 70, 40, 900)]
    sizes = [len(tokenizer.encode(" " + pairs[place].response).ids) + 1 for place in (0, 2)]
    encoder = PairEncoder(tokenizer, 1, max_length=60, max_positions=max_positions)
    with pytest.raises(UserError) as refused:
        encoder.encode_sets({"training": pairs[:3], "test": pairs[3:]})
    told = str(refused.value)
    assert told.startswith(f"mine.csv, row 70: its response has {sizes[1]} tokens, too many for 60 tokens; ")
    assert f"so have row 90 ({sizes[0]} tokens), row 900 (1801 characters); " in told and advice in told


def test_the_template_is_the_users_and_braces_in_a_context_are_text(tokenizer: Tokenizer) -> None:
    encoder = PairEncoder(tokenizer, 1, "Q: {context} {not a slot}\nA:")
    assert tokenizer.decode(encoder.encode_prompt("{context} {0}", 99)) == "Q: {context} {0} {not a slot}\nA:"


# ---------------------------------------------------------------------------------------------------- batches


def test_collate_shifts_by_one_and_pads_nothing() -> None:
    short = Example([5, 6, 7], [-100, 6, 7])
    long = Example([5, 8, 9, 2, 1], [-100, -100, 9, 2, 1])
    inputs, targets, lengths = collate([short, long])
    assert inputs.tolist() == [[5, 6, 5, 8, 9, 2]]
    assert targets.tolist() == [[6, 7, -100, 9, 2, 1]]
    assert lengths == [2, 4]


def test_flat_arrays_give_back_every_example(made: dict[str, list[Pair]], encoder: PairEncoder) -> None:
    pairs = made["sft_dataset"][:20]
    examples = encoder.encode_all(pairs)
    expected = [encoder.encode(pair) for pair in pairs]
    assert list(examples) == expected and len(examples) == 20
    assert examples[3:7] == expected[3:7] and examples[-1] == expected[-1]
    with pytest.raises(IndexError):
        examples[20]


def test_every_epoch_sees_each_example_once_in_its_own_seeded_order() -> None:
    first = shuffled_batches(21, 8, epoch=1, seed=0)
    assert [len(step) for step in first] == [8, 8, 5]
    assert sorted(place for step in first for place in step) == list(range(21))
    assert first == shuffled_batches(21, 8, epoch=1, seed=0)
    assert first != shuffled_batches(21, 8, epoch=2, seed=0)
    assert first != shuffled_batches(21, 8, epoch=1, seed=1)
