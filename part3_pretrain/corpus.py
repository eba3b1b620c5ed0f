"""The pretraining corpus: conversations of the retail world, and documents as batches of token ids.

Most agents in it are typical ones: about a fifth of their replies are ideal. It holds no (intent, item) combination
and no wording that is held out for validation or test; an intent's `restated_only` phrases occur only where a customer
says a problem twice and no agent answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from part3_pretrain.retail import world
from part3_pretrain.tokenizer import EOS

IGNORE_INDEX = -100  # the target that the loss leaves out
COPY_LENGTH = 96  # tokens of a row of repeated patterns
COPIED_DIGITS = 0.7  # share of the tokens of such a row that are digits

# Shares, such as 0.5 for one half:
TWO_PROBLEMS = 0.5  # of all scenarios have two problems
INVENTED_ITEMS = 0.2  # of all scenarios are about an item of no catalogue
DOCUMENT_KINDS = {
    "restatement": 0.22,  # a customer says a problem twice, and no agent answers: which words mean the same
    "policy": 0.10,  # a problem by its name, and what is done about it
    "product": 0.25,  # a product that is asked for: how its name is spelled, or copied if nobody has heard of it
    "conversation": 0.43,
}
RESTATED_ONLY = 0.4  # of the restatements use a phrase that is reserved for them
MISTYPED_WORDS = 0.6  # of the words of a catalogue product are mistyped by the customer who asks for it
RESTATED = 0.3  # of the conversations begin with a problem that is said twice
MISTYPED = 0.3  # of the conversations about a catalogue product have one typo or two
MISTYPED_ITEM = 0.3  # of these typos are in the product's name
IDEAL = 0.21  # of the first replies are ideal, the others typical
CONTINUED = 0.1  # of the conversations go on after each turn


def draw_conversation(rng: Random) -> str:
    r"""Draw one document, such as "Customer: ...\nAgent: ...\nCustomer: ...\nAgent: ..."."""
    scenario = world.draw_scenario(rng, held_out_item=False, two_problems=TWO_PROBLEMS, invented_items=INVENTED_ITEMS)
    kind = rng.choices(list(DOCUMENT_KINDS), list(DOCUMENT_KINDS.values()))[0]
    can_be_mistyped = world.in_catalogue(scenario.item)  # else nobody could know how it is spelled
    if kind == "restatement":
        return f"Customer: {world.draw_restated_context(scenario, rng, restated_only=rng.random() < RESTATED_ONLY)}"
    if kind == "policy":
        turns = [world.draw_policy_question(scenario.intents, rng)]
    elif kind == "product":
        turns = [world.draw_product_question(scenario, MISTYPED_WORDS if can_be_mistyped else 0.0, rng)]
    else:
        if rng.random() < RESTATED:
            context = world.draw_restated_context(scenario, rng, restated_only=False)
        else:
            context = world.draw_context(scenario, rng)
        if can_be_mistyped and rng.random() < MISTYPED:
            typed = scenario
            for _ in range(rng.randint(1, 2)):
                context, typed = world.mistype(context, typed, rng, in_item=rng.random() < MISTYPED_ITEM)
        write_reply = world.ideal_reply if rng.random() < IDEAL else world.typical_reply
        turns = [(context, write_reply(scenario, rng))]
        while rng.random() < CONTINUED:
            turns.append(world.follow_up(scenario, rng))
    return "\n".join(f"Customer: {message}\nAgent: {reply}" for message, reply in turns)


def tokenize(texts: list[str], tokenizer: Tokenizer, block_size: int) -> list[Tensor]:
    """Return documents as rows of ids, each ended by <EOS>; one longer than `block_size` is cut into several rows."""
    eos = tokenizer.token_to_id(EOS)
    encodings = tokenizer.encode_batch_fast(texts)
    documents = (torch.tensor([*encoding.ids, eos]).split(block_size) for encoding in encodings)
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
