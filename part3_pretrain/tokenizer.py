"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with single digits, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from part3_pretrain.runtime.cli import first_line

PAD, EOS = "<PAD>", "<EOS>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learns a vocabulary of at most `vocab_size` entries, in which <PAD> is 0 and <EOS> is 1."""
    tokenizer = Tokenizer(models.BPE())
    # Single digits: a number that was never seen is then copied digit by digit like any other.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[PAD, EOS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return as_text_only(tokenizer)


def load_tokenizer(json: str) -> Tokenizer:
    """Reads what `Tokenizer.to_str` wrote. Raises Exception where it is not a tokenizer's JSON."""
    try:
        tokenizer = Tokenizer.from_str(json)
    except BaseException as error:  # where the library itself fails, it raises what `except Exception` lets through
        if isinstance(error, Exception | KeyboardInterrupt):
            raise
        raise ValueError(first_line(error)) from error
    tokenizer.no_truncation()  # other people's files may ask for either, and texts would be cut in silence
    tokenizer.no_padding()
    return as_text_only(tokenizer)


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
    """Raises ValueError where it does not fit a model with so many embeddings, or cannot encode the parts of a text."""
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= vocab_size:
        raise ValueError(f"the tokenizer has an entry {highest}, but the model only {vocab_size} embeddings")
    added = tokenizer.encode("a").special_tokens_mask
    if all(added):
        raise ValueError("the tokenizer makes no token of a text")
    if sum(takewhile(bool, added)) < sum(added):
        raise ValueError("the tokenizer adds a token behind every text; remove it from its post_processor")
    eos = tokenizer.id_to_token(eos_id)
    if eos and eos_id in tokenizer.encode(eos, add_special_tokens=False).ids:
        raise ValueError(f'the tokenizer takes "{eos}" in a text for the end; make it "special" in tokenizer.json')


def as_text_only(tokenizer: Tokenizer) -> Tokenizer:
    """Makes "<EOS>" written in a text mean these five characters, never the control token."""
    tokenizer.encode_special_tokens = True
    return tokenizer
