"""What the base model reads: conversations of the retail world or the user's text files, as rows of token ids.

Most agents in it are typical ones: about a fifth of their replies are ideal. It holds no (intent, item) combination
and no wording that is reserved for validation or test; an intent's `restated_only` phrases occur only where a customer
says a problem twice and no agent answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.retail import world
from part3_pretrain.tokenizer import EOS

IGNORE_INDEX = -100  # the target that the loss leaves out
COPY_LENGTH = 96  # tokens of a row of repeated patterns

KINDS = {  # shares of the documents
    "unanswered": 0.22,  # a customer says a problem twice: which words mean the same
    "policy": 0.10,  # a problem by its name, and what is done about it
    "product": 0.25,  # a product that is asked for: how its name is spelled, or copied if nobody has heard of it
    "conversation": 0.43,
}
TWO_PROBLEMS, INVENTED_ITEMS = 0.5, 0.2  # shares of all scenarios
RESTATED_ONLY = 0.4  # share of the unanswered that use a phrase reserved for them
MISTYPED_WORDS = 0.6  # share of the words of a product of the catalogue that is asked for
MISTYPED, MOST_TYPOS, IN_ITEM = 0.3, 2, 0.3  # share of the conversations about such, and of typos in the item
RESTATED, IDEAL, CONTINUED = 0.3, 0.21, 0.1  # shares of the conversations


def draw_conversation(rng: Random) -> str:
    """One document, such as "Customer: ...\nAgent: ...\nCustomer: ...\nAgent: ..."."""
    scenario = world.draw_scenario(rng, held_out=False, two_problems=TWO_PROBLEMS, invented_items=INVENTED_ITEMS)
    (kind,) = rng.choices(list(KINDS), list(KINDS.values()))
    if kind == "unanswered":
        return f"Customer: {world.draw_restated_context(scenario, rng, restated_only=rng.random() < RESTATED_ONLY)}"
    can_be_mistyped = world.in_catalogue(scenario.item)  # what is spelled wrong has to be spelled somehow
    if kind == "product":
        asked, named = world.draw_product_question(scenario, MISTYPED_WORDS if can_be_mistyped else 0.0, rng)
        return f"Customer: {asked}\nAgent: {named}"
    if kind == "policy":
        question = world.draw_policy_question(scenario.intents, rng)
        return f"Customer: {question}\nAgent: {world.policy_answer(scenario.intents, rng)}"
    if rng.random() < RESTATED:
        context = world.draw_restated_context(scenario, rng, restated_only=False)
    else:
        context = world.draw_context(scenario, rng)
    if can_be_mistyped and rng.random() < MISTYPED:
        typed = scenario
        for _ in range(rng.randint(1, MOST_TYPOS)):
            context, typed = world.mistype(context, typed, rng, in_item=rng.random() < IN_ITEM)
    reply = world.ideal_reply(scenario, rng) if rng.random() < IDEAL else world.typical_reply(scenario, rng)
    text = f"Customer: {context}\nAgent: {reply}"
    while rng.random() < CONTINUED:
        customer, agent = world.follow_up(scenario, rng)
        text += f"\nCustomer: {customer}\nAgent: {agent}"
    return text


def tokenize(texts: list[str], tokenizer: Tokenizer, block_size: int) -> list[Tensor]:
    """Documents as rows of ids, each ended by <EOS>; a document longer than `block_size` is cut into several rows."""
    eos = tokenizer.token_to_id(EOS)
    rows: list[Tensor] = []
    for encoding in tokenizer.encode_batch_fast(texts):
        pieces = torch.tensor([*encoding.ids, eos]).split(block_size)
        rows.extend(piece for piece in pieces if len(piece) > 1)  # a lone <EOS> has nothing to predict
    return rows


def batches(rows: list[Tensor], tokens_per_batch: int, rng: Random) -> Iterator[tuple[Tensor, Tensor]]:
    """Every row once, as batches of rows of about the same length in random order.

    Yields:
        Inputs and targets, each (batch, time): the target is the next token, and `IGNORE_INDEX` behind a row's end.
    """
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), rng.random()))
    groups: list[list[Tensor]] = [[]]
    for index in order:
        if (len(groups[-1]) + 1) * len(rows[index]) > tokens_per_batch and groups[-1]:
            groups.append([])
        groups[-1].append(rows[index])
    rng.shuffle(groups)
    for group in groups:
        yield pad([row[:-1] for row in group], 0), pad([row[1:] for row in group], IGNORE_INDEX)


def pad(rows: list[Tensor], value: int) -> Tensor:
    """Rows of ids as one tensor (batch, time), filled up with `value` on the right."""
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def copy_batch(vocab_size: int, digits: list[int], tokens_per_batch: int, rng: Random) -> tuple[Tensor, Tensor]:
    """Random tokens, repeated over and over: nothing can be learnt here but to look back and copy.

    It keeps in practice the circuit that later copies the customer's item and order number (Olsson et al. 2022). Most
    of the tokens are digits, for which the token before is not enough to find the place.

    Returns:
        Inputs and targets, each (batch, time); the targets of a pattern's first occurrence are `IGNORE_INDEX`.
    """
    inputs, targets = [], []
    for _ in range(tokens_per_batch // COPY_LENGTH):
        length = rng.randint(4, COPY_LENGTH // 3)
        pattern = [rng.choice(digits) if rng.random() < 0.7 else rng.randrange(vocab_size) for _ in range(length)]
        row = (pattern * COPY_LENGTH)[: COPY_LENGTH + 1]
        inputs.append(row[:-1])
        targets.append([IGNORE_INDEX] * (length - 1) + row[length:])
    return torch.tensor(inputs), torch.tensor(targets)
