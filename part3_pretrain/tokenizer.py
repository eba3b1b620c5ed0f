"""Byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with single digits, by the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from part3_pretrain.runtime.cli import first_line

PAD, EOS = "<PAD>", "<EOS>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary of at most `vocab_size` entries, in which <PAD> is 0 and <EOS> is 1."""
    tokenizer = Tokenizer(models.BPE())
    # Single digits: a number that was never seen is then copied digit by digit like any other.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # "<EOS>" in a text is then five characters, never the control token
    return tokenizer


def load_tokenizer(json: str) -> Tokenizer:
    """Read what `Tokenizer.to_str` or a Hugging Face folder holds. Raise Exception where it is no tokenizer."""
    try:
        tokenizer = Tokenizer.from_str(json)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # a panic of the library, which `except Exception` would let through
        raise ValueError(first_line(error)) from error
    tokenizer.encode_special_tokens = True  # as in `train_tokenizer`; the JSON does not hold it
    tokenizer.no_truncation()  # other people's files may ask for either, and texts would be cut in silence
    tokenizer.no_padding()
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
    """Raise ValueError where it does not fit a model of `vocab_size` embeddings, or cannot encode parts of a text."""
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= vocab_size:
        raise ValueError(f"the tokenizer has an entry {highest}, but the model only {vocab_size} embeddings")
    is_added = tokenizer.encode("a").special_tokens_mask
    if 0 not in is_added:
        raise ValueError("the tokenizer makes no token of a text")
    if 1 in is_added[is_added.index(0) :]:
        raise ValueError("the tokenizer adds a token behind every text; remove it from its post_processor")
    eos = tokenizer.id_to_token(eos_id)
    if eos and eos_id in tokenizer.encode(eos, add_special_tokens=False).ids:
        raise ValueError(f'the tokenizer takes "{eos}" in a text for the end; make it "special" in tokenizer.json')
