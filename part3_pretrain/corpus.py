"""The pretraining corpus: documents of the retail world, and documents as batches of token ids.

It holds no (intent, item) combination and no sentence pattern that is held out for validation or test; an intent's
`restated_only` phrases occur only where a customer says a problem twice and no agent answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import cycle, islice
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from part3_pretrain.retail import documents, world

IGNORE_INDEX = -100  # the target that the loss leaves out
COPY_LENGTH = 96  # tokens of a row of repeated patterns
COPIED_DIGITS = 0.7  # share of the tokens of such a row that are digits

TWO_PROBLEMS = 0.5  # share of the documents' customers who have two problems
INVENTED_ITEMS = 0.35  # share of those who write about an item of no catalogue


def draw_document(rng: Random, kinds: Mapping[documents.Write, float] = documents.KINDS) -> str:
    r"""Draw one document, such as "Customer: ...\nTicket: ...", of these kinds and shares."""
    write = rng.choices(list(kinds), list(kinds.values()))[0]
    draw = world.draw_scenario
    if shares := documents.DOCUMENTS["shares"].get(write.__name__):
        draw = partial(world.draw_customer, shares=shares)
    scenario = draw(rng, held_out_item=False, two_problems=TWO_PROBLEMS, invented_items=INVENTED_ITEMS)
    return write(scenario, rng)


def tokenize(texts: list[str], tokenizer: Tokenizer, eos_id: int, block_size: int) -> list[Tensor]:
    """Return documents as rows of ids, each ended by <EOS>; one longer than `block_size` is cut into several rows."""
    encodings = tokenizer.encode_batch_fast(texts)
    documents = (torch.tensor([*encoding.ids, eos_id]).split(block_size) for encoding in encodings)
    return [row for rows in documents for row in rows if len(row) > 1]  # a lone <EOS> has nothing to predict


def batches(rows: list[Tensor], tokens_per_batch: int, rng: Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield every row once, in batches of rows of about the same length, in random order.

    Inputs and targets are (batch, time) each; the target is the next token, and `IGNORE_INDEX` behind a row's end.
    """
    groups: list[list[Tensor]] = [[]]
    for row in sorted(rows, key=lambda row: (len(row), rng.random())):
        if (len(groups[-1]) + 1) * len(row) > tokens_per_batch and groups[-1]:
            groups.append([])
        groups[-1].append(row)
    rng.shuffle(groups)
    for group in groups:
        inputs = pad_sequence([row[:-1] for row in group], batch_first=True)
        targets = pad_sequence([row[1:] for row in group], batch_first=True, padding_value=IGNORE_INDEX)
        yield inputs, targets


def ignore_messages(inputs: Tensor, targets: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Return the targets, (batch, time), without the words of a customer's message that something follows.

    What a shop makes of a message can be learnt. Which of countless messages comes next cannot be known, and a small
    model that learns to guess has less room for the rest (as instruction tuning leaves the prompt out of the loss).
    """
    customer, newline = (torch.tensor(tokenizer.encode(text).ids) for text in ("Customer:", "\n"))
    ends = targets == newline[0]
    is_message = (inputs[:, : len(customer)] == customer).all(dim=1) & ends.any(dim=1)
    return targets.masked_fill(is_message[:, None] & (ends.cumsum(dim=1) == 0), IGNORE_INDEX)


def copy_batch(vocab_size: int, digits: list[int], tokens_per_batch: int, rng: Random) -> tuple[Tensor, Tensor]:
    """Return random patterns of tokens, repeated over and over: nothing can be learnt but to look back and copy.

    It keeps in practice the circuit that later copies the customer's item and order number (Olsson et al. 2022). Most
    of the tokens are digits, for which the token before is not enough to find the place.

    Inputs and targets are (batch, time) each; the targets of a pattern's first occurrence are `IGNORE_INDEX`.
    """
    inputs, targets = [], []
    for _ in range(tokens_per_batch // COPY_LENGTH):
        period = rng.randint(4, COPY_LENGTH // 3)
        pattern = [
            rng.choice(digits) if rng.random() < COPIED_DIGITS else rng.randrange(vocab_size) for _ in range(period)
        ]
        row = list(islice(cycle(pattern), COPY_LENGTH + 1))
        inputs.append(row[:-1])
        targets.append([IGNORE_INDEX] * (period - 1) + row[period:])
    return torch.tensor(inputs), torch.tensor(targets)
