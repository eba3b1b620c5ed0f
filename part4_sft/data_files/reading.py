"""How a model reads pairs: how long they are in its tokens, and which of them it learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part4_sft.data_files.inspection import Reading
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.extras.conversations import choose_template, make_encoder

MOST_COUNTED = 25_000  # pairs of a file; a chat template takes its time
LONGEST_COUNTED = 16  # times what is kept of a pair; how long it is beyond that does not matter


def load_encoder(path: Path, chat_template: str | None, prompt_template: str | None, max_length: int) -> PairEncoder:
    """Return how this model reads pairs. Raises UserError where that cannot be loaded, or the template not be used."""
    checkpoint = load_checkpoint(path, dtype=None)
    template = choose_template(checkpoint, chat_template, prompt_template)
    return make_encoder(checkpoint, template, max_length, max_new_tokens=1)


def read_pairs(pairs: Sequence[Pair], encoder: PairEncoder) -> Reading:
    """Return how many tokens pairs have, which are too long, and what is learnt of the first one.

    Raises UserError where the chat template refuses a conversation.
    """
    every = -(-len(pairs) // MOST_COUNTED)
    counted, limit = pairs[::every], LONGEST_COUNTED * encoder.max_length
    examples, _, endless = replace(encoder, max_length=limit).encode_what_fits(counted)
    beyond = {place for place, _ in endless}
    counts = iter(len(example.ids) for example in examples)
    lengths = {pair.place: limit if pair.place in beyond else next(counts) for pair in counted}
    long = [pair for pair in counted if lengths[pair.place] > encoder.max_length]
    _, cut, too_long = encoder.encode_what_fits(long)
    first, _, _ = encoder.encode_what_fits(pairs[:1])
    shown = []
    for example in first or examples[:1]:
        for is_learnt, run in groupby(zip(example.ids, example.labels), key=lambda both: both[1] != IGNORE_INDEX):
            ids = [id for id, _ in run]
            shown.append((is_learnt, encoder.tokenizer.decode(ids, skip_special_tokens=False)))
    return Reading("tokens", lengths, shown, encoder.max_length, cut, [place for place, _ in too_long], every)
