"""Pairs as token ids: tokenised, masked and put into batches.

A pair's tokens are

    encode("Customer: {context}\\nAgent:")  +  encode(" {response}") + [EOS]
    labels: -100 for every one of these     labels: the ids themselves

The two parts are encoded apart, so the boundary between them is exact, and <EOS> is trained like any other token.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.command_line import UserError
from part3_pretrain.corpus import IGNORE
from part4_sft.config import DEFAULT_TEMPLATE
from part4_sft.dataset import Pair


@dataclass(frozen=True)
class Example:
    """A tokenised pair: ids of context and response, and labels of the same length that are -100 over the context."""

    ids: list[int]
    labels: list[int]


class Examples(Sequence[Example]):
    """Any number of examples in flat arrays, 4 bytes a token and 12 a pair, where lists would take ten times that."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self.ids, self.ends, self.prompt_lengths = array("i"), array("q", [0]), array("i")
        for example in examples:
            self.ids.extend(example.ids)
            self.ends.append(len(self.ids))
            self.prompt_lengths.append(example.labels.count(IGNORE))

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, index: int | slice) -> Any:
        """An example, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # from the end too; raises IndexError
        ids = self.ids[self.ends[place] : self.ends[place + 1]].tolist()
        prompt_length = self.prompt_lengths[place]
        return Example(ids, [IGNORE] * prompt_length + ids[prompt_length:])


@dataclass(frozen=True)
class PairEncoder:
    """How texts become ids.

    Args:
        eos_id: the id that ends a response.
        template: the prompt, in which `{context}` stands for the context.
        max_length: most tokens of a prompt and its response together.
    """

    tokenizer: Tokenizer
    eos_id: int
    template: str = DEFAULT_TEMPLATE
    max_length: int = 512

    def prompt(self, context: str, room: int) -> list[int]:
        """The ids that a model answers, at most `room`: a context that is too long loses its beginning.

        Where the tokenizer begins texts with <BOS>, so does every prompt, once. Raises ValueError where no token of
        the context fits.
        """
        text = self.template.replace("{context}", context)
        # Of megabytes only the end is tokenised, twice of what can fit: where the text is cut, tokens may differ.
        encoding = self.tokenizer.encode(text[-2 * max(room, 1) * self.longest_token :])
        start = sum(encoding.special_tokens_mask)  # <BOS> alone: a text's own "<EOS>" is read as text
        if room <= start:
            raise ValueError("no token of its context fits")
        return encoding.ids[:start] + encoding.ids[start:][start - room :]

    @cached_property
    def space(self) -> str:
        """What stands before a response: a space, unless the tokenizer itself puts one before every text (Llama 2)."""
        within, apart = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in (": a", " a"))
        return " " if within[-len(apart) :] == apart else ""

    @cached_property
    def longest_token(self) -> int:
        """In characters."""
        return max(map(len, self.tokenizer.get_vocab()))

    def example(self, pair: Pair) -> Example:
        """Tokenises and masks a pair.

        Raises:
            ValueError: the response and one token of context are longer than `max_length`.
        """
        text = self.space + pair.response
        if len(text) > self.max_length * self.longest_token:  # megabytes need not be tokenised to know
            raise ValueError(f"its response has {len(text)} characters, too many for {self.max_length} tokens")
        response = [*self.tokenizer.encode(text, add_special_tokens=False).ids, self.eos_id]
        try:
            prompt = self.prompt(pair.context, self.max_length - len(response))
        except ValueError as error:
            raise ValueError(f"its response has {len(response)} tokens, too many for {self.max_length}") from error
        return Example(prompt + response, [IGNORE] * len(prompt) + response)

    def examples(self, pairs: Iterable[Pair]) -> Examples:
        """Tokenises and masks pairs, and tells how many contexts had to be cut.

        Raises UserError naming the first pair whose response is too long.
        """
        cut: list[str] = []

        def encoded() -> Iterator[Example]:
            for place, pair in enumerate(pairs, start=1):
                where = pair.where or f"pair {place}"
                try:
                    example = self.example(pair)
                except ValueError as error:
                    advice = "shorten it, or raise --max-length as far as the model goes"
                    raise UserError(f"{where}: {error}; {advice}") from error
                if len(example.ids) == self.max_length:  # with more room for it, would the prompt be longer?
                    prompt_length = example.labels.count(IGNORE)
                    if len(self.prompt(pair.context, prompt_length + 1)) > prompt_length:
                        cut.append(where)
                yield example

        examples = Examples(encoded())
        if cut:
            lost = f"{len(cut)} of {len(examples)} contexts are too long and lose their beginning"
            print(f"note: {lost}; the first is that of {cut[0]}", file=sys.stderr)
        return examples

    def texts(self, replies: list[list[int]]) -> list[str]:
        """Generated ids as text, without the space that begins a response."""
        return [text.strip() for text in self.tokenizer.decode_batch(replies)]


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, list[int]]:
    """Examples one behind another, without padding.

    Returns:
        Inputs and the labels of the next token, each (1, time), and the length of each example's part.
    """
    inputs = [token for example in examples for token in example.ids[:-1]]
    targets = [label for example in examples for label in example.labels[1:]]
    return torch.tensor([inputs]), torch.tensor([targets]), [len(example.ids) - 1 for example in examples]


def shuffled_steps(count: int, batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """The places of the examples in one epoch's optimizer steps: every one once, as seed and epoch decide."""
    order = list(range(count))
    Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]
