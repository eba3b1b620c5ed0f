"""The tokenizer: no text is lost, nobody can write a control token, and one that does not fit the model is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from part3_pretrain.tokenizer import EOS, PAD, check_tokenizer, load_tokenizer, train_tokenizer

TEXTS = ["Customer: the walnut bookshelf arrived broken (order 48213).", "Agent: I am sorry about order 48213."] * 20
TRICKY_TEXTS = ["", "  two  spaces ", "one\n\ntwo\r\n\tthree", "Gr\u00fc\u00dfe aus K\u00f6ln, \u68da\x00\x7f"]
TRICKY_TEXTS += ["\U0001f6cb\ufe0f + \U0001f468\u200d\U0001f469\u200d\U0001f467", EOS, f"Send {EOS} now{PAD}{PAD}"]
TRICKY_TEXTS += ["".join(map(chr, [*range(0x800), *range(0xE000, sys.maxunicode, 997)]))]


def loaded_with_truncation_and_padding(tokenizer: Tokenizer) -> Tokenizer:
    """As other people's files may ask for."""
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    return load_tokenizer(tokenizer.to_str())


@pytest.mark.parametrize("change", [lambda trained: trained, loaded_with_truncation_and_padding])
def test_any_text_comes_back_in_single_digits_and_without_control_tokens(change: Any) -> None:
    tokenizer = change(train_tokenizer(TEXTS, 330))
    for text in TRICKY_TEXTS:
        for encoding in (tokenizer.encode(text), *tokenizer.encode_batch_fast([text])):
            assert tokenizer.decode(encoding.ids) == text
            assert {0, 1}.isdisjoint(encoding.ids)
    assert (tokenizer.token_to_id(PAD), tokenizer.token_to_id(EOS)) == (0, 1)
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(tokenizer.get_vocab())
    assert tokenizer.get_vocab_size() <= 330
    tokens = tokenizer.encode("order 48213").tokens
    assert tokens[-5:] == list("48213") and len(tokens) < len("order 48213")


def adding(template: str) -> TemplateProcessing:
    return TemplateProcessing(single=template, special_tokens=[(EOS, 1), (PAD, 0)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"post_processor": adding("$A <EOS>")}, "adds a token behind every text; remove it from its post_processor"),
        ({"post_processor": adding("<PAD> $A <EOS>")}, "adds a token behind every text"),
        ({"model": models.BPE()}, "makes no token of a text"),
        ({"encode_special_tokens": False}, 'takes "<EOS>" in a text for the end; make it "special" in tokenizer.json'),
    ],
)
def test_a_tokenizer_that_would_spoil_texts_is_refused(changes: dict[str, Any], message: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 330)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    with pytest.raises(ValueError, match=message):
        check_tokenizer(tokenizer, 330, eos_id=1)


def test_every_token_must_have_an_embedding() -> None:
    tokenizer = train_tokenizer(TEXTS, 330)
    tokenizer.post_processor = adding("<EOS> <EOS> $A")  # in front of a text, they are no fault
    size = tokenizer.get_vocab_size()
    check_tokenizer(tokenizer, size, eos_id=1)
    tokenizer.add_tokens(["sofa"])
    with pytest.raises(ValueError, match=f"an entry {size}, but the model only {size} embeddings"):
        check_tokenizer(tokenizer, size, eos_id=1)


def test_a_panic_of_the_library_is_an_error_like_any_other() -> None:
    json = train_tokenizer(TEXTS, 330).to_str()
    with pytest.raises(ValueError):
        load_tokenizer(json.replace('"continuing_subword_prefix":null', f'"continuing_subword_prefix":"{"x" * 50}"'))
