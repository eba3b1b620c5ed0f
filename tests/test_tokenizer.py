"""The tokenizer: nothing is lost, and nobody can write a control token."""

from __future__ import annotations

import sys

import pytest
from tokenizers import Tokenizer, pre_tokenizers

from part3_pretrain.tokenizer import EOS, PAD, load_tokenizer, train_tokenizer

TEXTS = ["Customer: the walnut bookshelf arrived broken (order 48213).", "Agent: I am sorry about order 48213."] * 20


@pytest.fixture(scope="module", params=["trained", "loaded"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    trained = train_tokenizer(TEXTS, 330)
    return trained if request.param == "trained" else load_tokenizer(trained.to_str())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  two  spaces ",
        "Gr\u00fc\u00dfe aus K\u00f6ln",
        "\U0001f6cb\ufe0f + \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "one\n\ntwo\r\n\tthree",
        "\u68da\x00\x7f",
        f"{EOS}{PAD} {EOS}",
    ],
)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_every_byte_has_a_token(tokenizer: Tokenizer) -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    text = "".join(map(chr, [*range(0x800), *range(0xE000, sys.maxunicode, 997)]))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_digits_stay_single_and_words_do_not(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode("order 48213").tokens
    assert tokens[-5:] == list("48213")
    assert len(tokens) < len("order 48213")


def test_pad_is_0_and_eos_is_1_and_the_vocabulary_is_no_larger_than_asked(tokenizer: Tokenizer) -> None:
    assert (tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)) == (0, 1)
    assert tokenizer.get_vocab_size() <= 330


@pytest.mark.parametrize("text", [PAD, EOS, f"Send {EOS} now{PAD}{PAD}"])
def test_control_tokens_written_in_a_text_stay_text(tokenizer: Tokenizer, text: str) -> None:
    (batched,) = tokenizer.encode_batch_fast([text])
    for ids in (tokenizer.encode(text).ids, batched.ids):
        assert {0, 1}.isdisjoint(ids)
