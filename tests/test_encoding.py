from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.tokenizer import EOS, PAD, load_tokenizer
from part4_sft import encoding
from part4_sft.config import DEFAULT_TEMPLATE
from part4_sft.dataset import Pair
from part4_sft.encoding import Example, PairEncoder

PAIR = Pair("My walnut desk arrived broken (order 48213).", "I am sorry about the damage.")


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


# Any characters (but no half of one), words, and what could be taken for something else than text.
PARTS = st.sampled_from(["Where is my desk", "48213", EOS, PAD, "{context}", "\nAgent:", "\ufeff", "\u202e", '"', ","])
TEXTS = st.lists(st.text(max_size=8) | PARTS, min_size=1, max_size=6).map("".join).filter(str.strip)
PAIRS = st.builds(Pair, TEXTS, TEXTS)
same_in_every_run = settings(derandomize=True, deadline=None, max_examples=60)


@same_in_every_run
@given(PAIRS)
def test_labels_are_the_response_and_its_end_and_no_token_is_lost(encoder: PairEncoder, pair: Pair) -> None:
    example = encoder.encode(pair)
    boundary = example.labels.count(-100)
    assert example.labels == [-100] * boundary + example.ids[boundary:]
    *response, end = example.ids[boundary:]
    decode = encoder.tokenizer.decode
    assert decode(example.ids[:boundary]) == encoder.template.replace("{context}", pair.context)
    assert decode(response) == " " + pair.response
    assert end == encoder.eos_id
    assert {encoder.eos_id, encoder.tokenizer.token_to_id(PAD)}.isdisjoint(example.ids[:-1])


@same_in_every_run
@given(PAIRS, st.integers(2, 60))
def test_what_is_too_long_is_cut_from_its_left_or_refused(encoder: PairEncoder, pair: Pair, max_length: int) -> None:
    whole = encoder.encode(pair)
    response = [label for label in whole.labels if label != -100]
    short = replace(encoder, max_length=max_length)
    if len(response) >= max_length:
        with pytest.raises(UserError, match=f"too many for {max_length}"):
            short.encode(pair)
    else:
        cut = short.encode(pair)
        assert (cut.ids, cut.labels) == (whole.ids[-max_length:], whole.labels[-max_length:])


@same_in_every_run
@given(TEXTS, st.integers(1, 30))
def test_of_a_very_long_context_the_same_tokens_are_kept_as_if_all_were_tokenised(
    encoder: PairEncoder, text: str, room: int
) -> None:
    context = f"{text} my desk is late. " * 100
    whole = encoder.tokenizer.encode(encoder.template.replace("{context}", context)).ids
    assert encoder.encode_prompt(context, room) == whole[-room:]


def test_pairs_are_encoded_alike_by_themselves_and_in_batches(
    made: dict[str, list[Pair]], encoder: PairEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "TOKENIZER_BATCH_SIZE", 3)
    pairs = made["sft_dataset"][:8]
    assert encoder.encode_all(pairs) == [encoder.encode(pair) for pair in pairs]
    placed = [replace(pair, place=f"a.csv, row {row}") for row, pair in enumerate(pairs, start=2)]
    assert [example.place for example in encoder.encode_all(placed)] == [pair.place for pair in placed]
    with pytest.raises(UserError, match=r"^pair 8: its response"):
        encoder.encode_all([*pairs[:7], Pair("a", "b " * 600)])


def test_a_prompt_begins_with_bos_once_where_the_tokenizer_asks_for_it(tokenizer: Tokenizer) -> None:
    bos = tokenizer.token_to_id("a")  # any entry will do
    with_bos = load_tokenizer(tokenizer.to_str())
    with_bos.post_processor = TemplateProcessing(single="<BOS> $A", special_tokens=[("<BOS>", bos)])
    plain, ours = PairEncoder(tokenizer, eos_id=1), PairEncoder(with_bos, eos_id=1)
    without = plain.encode(PAIR)
    assert ours.encode(PAIR) == Example([bos, *without.ids], [-100, *without.labels])
    assert ours.encode_prompt(PAIR.context, 10) == [bos, *plain.encode_prompt(PAIR.context, 9)]
    assert len(ours.encode_prompt(PAIR.context, 2)) == 2
    with pytest.raises(ValueError, match="no token"):
        ours.encode_prompt(PAIR.context, 1)
    response = [label for label in without.labels if label != -100]
    assert replace(ours, max_length=len(response) + 2).encode(PAIR).labels == [-100, -100, *response]
    with pytest.raises(UserError, match="too many"):
        replace(ours, max_length=len(response) + 1).encode(PAIR)


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


@pytest.mark.parametrize(
    ("others", "max_positions", "end"),
    [
        (10, 70, "; shorten what is too long, or raise --max-length, which may be 70 for this model"),
        (12, 60, ", 2 more; shorten or remove what is too long, for the model has no more positions"),
    ],
)
def test_responses_that_are_too_long_are_told_of_all_at_once(
    encoder: PairEncoder, others: int, max_positions: int, end: str
) -> None:
    pairs = [Pair("a", "b " * 70, place=f"mine.csv, row {row}") for row in range(9, 10 + others)]
    pairs[1] = Pair("a", "b " * 900, place="mine.csv, row 10")
    size = len(encoder.encode(pairs[0]).labels) - len(encoder.encode_prompt("a", 99))
    short = replace(encoder, max_length=60, max_positions=max_positions)
    with pytest.raises(UserError) as refused:
        short.encode_sets({"training": pairs[5:], "test": [Pair("a", "b"), *pairs[:5]]})
    rest = ", ".join(f"row {row} ({size} tokens)" for row in range(11, 20))
    beginning = f"mine.csv, row 9: its response has {size} tokens, too many for 60 tokens"
    assert str(refused.value) == f"{beginning}; so have row 10 (1801 characters), {rest}{end}"


def test_a_prompt_of_no_tokens_is_refused() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(["ab"], trainers.BpeTrainer(special_tokens=["<EOS>"]))
    with pytest.raises(UserError, match=r"^pair 2: no token comes of its prompt; use a --prompt-template"):
        PairEncoder(tokenizer, 0, "{context}").encode_all([Pair("a", "b"), Pair("?", "b")])


@pytest.fixture
def for_checkpoint(tiny_checkpoint: Path) -> Callable[..., PairEncoder]:
    checkpoint = load_checkpoint(tiny_checkpoint)  # of 512 positions
    checkpoint.tokenizer.add_tokens(["Question"])  # is no control token

    def make(template: str = DEFAULT_TEMPLATE, max_length: int = 512, max_new_tokens: int = 128) -> PairEncoder:
        return PairEncoder.for_checkpoint(checkpoint, template, max_length, max_new_tokens)

    return make


def test_the_encoder_of_a_checkpoint_has_its_tokens_and_positions(
    for_checkpoint: Callable[..., PairEncoder], encoder: PairEncoder
) -> None:
    assert for_checkpoint().encode(PAIR) == encoder.encode(PAIR)
    assert for_checkpoint().template == "Customer: {context}\nAgent:"
    assert for_checkpoint("Question: {context}\nA:") == for_checkpoint(r"Question: {context}\nA:")
    assert [for_checkpoint(max_length=length).max_length for length in (9, 512, 9999)] == [9, 512, 512]
    assert for_checkpoint(max_length=9).max_positions == 512


def test_a_template_must_leave_room_and_hold_no_control_token(for_checkpoint: Callable[..., PairEncoder]) -> None:
    for template in ("<EOS>{context}", "{context}<PAD>"):
        with pytest.raises(UserError, match=r"^--prompt-template holds <(EOS|PAD)>, but control tokens cannot be"):
            for_checkpoint(template)
    template = "x y " * 5 + "{context}"
    length = len(for_checkpoint().tokenizer.encode("x y " * 5).ids)
    for_checkpoint(template, max_new_tokens=512 - length - 1)
    for max_new_tokens, room in ((512 - length, length), (600, 0)):
        with pytest.raises(UserError) as refused:
            for_checkpoint(template, max_new_tokens=max_new_tokens)
        cause = f"--prompt-template has {length} tokens without a context, and --max-new-tokens leaves the model {room}"
        assert str(refused.value) == f"{cause} of its positions; choose less of either"
