from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.tokenizer import EOS, load_tokenizer
from part4_sft import encoding
from part4_sft.config import DEFAULT_TEMPLATE, SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder

PAIR = Pair("My walnut desk arrived broken (order 48213).", "I am sorry about the damage.")

# ---------------------------------------------------------------------------------------------------- tokens


def test_the_mask_token_by_token(encoder: PairEncoder) -> None:
    context = encoder.tokenizer.encode("Customer: My walnut desk arrived broken (order 48213).\nAgent:").ids
    response = encoder.tokenizer.encode(" I am sorry about the damage.").ids
    eos = encoder.tokenizer.token_to_id(EOS)

    example = encoder.encode(PAIR)
    assert example.ids == context + response + [eos]
    assert example.labels == [-100] * len(context) + response + [eos]
    assert encoder.encode_prompt(PAIR.context, 99) == context
    assert replace(encoder, max_length=9).encode_prompt(PAIR.context, 99) == context[-9:]
    assert encoder.decode([response]) == [PAIR.response]


def test_pairs_are_encoded_alike_by_themselves_and_in_batches(
    made: dict[str, list[Pair]], encoder: PairEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "TOKENIZER_BATCH_SIZE", 3)
    pairs = made["sft_dataset"][:8]
    assert encoder.encode_all(pairs) == [encoder.encode(pair) for pair in pairs]
    with pytest.raises(UserError, match=r"^pair 8: its response"):
        encoder.encode_all([*pairs[:7], Pair("a", "b " * 600)])


def test_a_prompt_begins_with_bos_once_where_the_tokenizer_asks_for_it(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_to_id("a")  # any entry will do
    with_bos = load_tokenizer(tokenizer.to_str())
    with_bos.post_processor = TemplateProcessing(single="<BOS> $A", special_tokens=[("<BOS>", bos)])
    plain, ours = PairEncoder(tokenizer, eos_id=1), PairEncoder(with_bos, eos_id=1)
    example, without = ours.encode(PAIR), plain.encode(PAIR)
    assert example.ids == [bos, *without.ids] and example.labels == [-100, *without.labels]
    assert ours.encode_prompt(PAIR.context, 10) == [bos, *plain.encode_prompt(PAIR.context, 9)]
    assert len(ours.encode_prompt(PAIR.context, 2)) == 2
    with pytest.raises(ValueError, match="no token"):
        ours.encode_prompt(PAIR.context, 1)
    response_length = len(without.ids) - without.labels.count(-100)
    assert replace(ours, max_length=response_length + 2).encode(PAIR).labels[:3] == [
        -100,
        -100,
        without.labels[-response_length],
    ]
    with pytest.raises(UserError, match="too many"):
        replace(ours, max_length=response_length + 1).encode(PAIR)


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


# ---------------------------------------------------------------------------------------------------- too long


def test_how_many_contexts_lose_their_beginning_is_noted_for_each_set(
    encoder: PairEncoder, capsys: pytest.CaptureFixture[str]
) -> None:
    fits, long = Pair("a", "b"), Pair("a " * 50, "b", place="mine.json, pair 7")
    length = len(encoder.encode(fits).ids)
    sets = replace(encoder, max_length=length).encode_sets({"training": [fits, long, long], "test": [fits]})
    assert [len(example.ids) for example in sets["training"]] == [length] * 3
    expected = "2 of 3 contexts of the training set are too long and lose their beginning"
    assert capsys.readouterr().err == f"note: {expected}; the first is that of mine.json, pair 7\n"


@pytest.mark.parametrize(
    ("max_positions", "cure"),
    [(70, "; shorten what is too long, or raise --max-length, which may be 70 for"), (60, "; shorten or remove what")],
)
@pytest.mark.parametrize("others", [10, 12])
def test_responses_that_are_too_long_are_told_of_all_at_once(
    encoder: PairEncoder, others: int, max_positions: int, cure: str
) -> None:
    short = replace(encoder, max_length=60, max_positions=max_positions)
    pairs = [Pair("a", "b " * 70, place=f"mine.csv, row {row}") for row in range(9, 10 + others)]
    pairs[1] = Pair("a", "b " * 900, place="mine.csv, row 10")
    size = len(encoder.tokenizer.encode(" " + pairs[0].response).ids) + 1
    with pytest.raises(UserError) as refused:
        short.encode_sets({"training": pairs[5:], "test": [Pair("a", "b"), *pairs[:5]]})
    told = str(refused.value)
    assert told.startswith(
        f"mine.csv, row 9: its response has {size} tokens, too many for 60 tokens; so have row 10 (1801 "
    )
    last = f"row 19 ({size} tokens)" + (", 2 more" if others == 12 else "")
    assert f"characters), row 11 ({size} tokens), " in told and last + cure in told


def test_a_prompt_of_no_tokens_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(["ab"], trainers.BpeTrainer(special_tokens=["<EOS>"]))
    with pytest.raises(UserError, match=r"^pair 2: no token comes of its prompt; use a --prompt-template"):
        PairEncoder(tokenizer, 0, "{context}").encode_all([Pair("a", "b"), Pair("?", "b")])


# ---------------------------------------------------------------------------------------------------- a checkpoint

Make = Callable[..., PairEncoder]


@pytest.fixture
def for_checkpoint(tiny_checkpoint: Path) -> Make:
    checkpoint = load_checkpoint(tiny_checkpoint)  # of 512 positions

    def make(template: str = DEFAULT_TEMPLATE, max_length: int = 512, max_new_tokens: int = 128) -> PairEncoder:
        return PairEncoder.for_checkpoint(checkpoint, template, max_length, max_new_tokens)

    return make


def test_the_encoder_of_a_checkpoint_has_its_tokens_and_positions(for_checkpoint: Make, encoder: PairEncoder) -> None:
    assert (
        for_checkpoint(SFTConfig().prompt_template).encode(PAIR)
        == for_checkpoint().encode(PAIR)
        == encoder.encode(PAIR)
    )
    assert for_checkpoint().template == "Customer: {context}\nAgent:"
    assert for_checkpoint("{context}\nA:").template == for_checkpoint(r"{context}\nA:").template == "{context}\nA:"
    assert [for_checkpoint(max_length=length).max_length for length in (9, 512, 9999)] == [9, 512, 512]
    assert for_checkpoint(max_length=9).max_positions == 512


@pytest.mark.parametrize("template", ["<EOS>{context}", "{context}<PAD>"])
def test_control_tokens_in_a_template_are_refused(for_checkpoint: Make, template: str) -> None:
    with pytest.raises(UserError, match=r"^--prompt-template holds <(EOS|PAD)>, but control tokens cannot be written"):
        for_checkpoint(template)


def test_words_that_were_added_to_a_tokenizer_may_stand_in_a_template(tiny_checkpoint: Path) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.tokenizer.add_tokens(["Question"])
    assert PairEncoder.for_checkpoint(checkpoint, "Question: {context}", 512, 128).template == "Question: {context}"


def test_a_template_must_leave_room_for_a_context_and_a_reply(for_checkpoint: Make) -> None:
    template = "x y " * 5 + "{context}"
    length = len(for_checkpoint().tokenizer.encode("x y " * 5).ids)
    for_checkpoint(template, max_new_tokens=512 - length - 1)
    for max_new_tokens, room in ((512 - length, length), (600, 0)):
        with pytest.raises(UserError) as refused:
            for_checkpoint(template, max_new_tokens=max_new_tokens)
        expected = (
            f"--prompt-template has {length} tokens without a context, and --max-new-tokens leaves the model {room}"
        )
        assert str(refused.value) == f"{expected} of its positions; choose less of either"
