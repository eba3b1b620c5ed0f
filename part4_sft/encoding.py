"""Pairs as token ids: tokenised, masked and put into batches.

A pair's tokens are

    encode("Customer: {context}\\nAgent:")  +  encode(" {response}") + [EOS]
    labels: -100 for every one of these     labels: the ids themselves

The two parts are encoded apart, so the boundary between them is exact, and <EOS> is trained like any other token.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.runtime.cli import UserError
from part4_sft.config import DEFAULT_TEMPLATE
from part4_sft.dataset import Pair

AT_ONCE = 1000  # pairs given to the tokenizer, which works on them in parallel
TOLD = 10  # places in a message
TooLong = list[tuple[str, str]]  # where responses come from, and their sizes


@dataclass(frozen=True)
class Example:
    """A tokenised pair: ids of context and response, and labels of the same length that are -100 over the context."""

    ids: list[int]
    labels: list[int]

    def __post_init__(self) -> None:
        if len(self.ids) < 2 or self.labels[-1] == IGNORE_INDEX:
            raise ValueError("an example needs a token of context and then a response to learn")


class Examples(Sequence[Example]):
    """Any number of examples in flat arrays, 4 bytes a token and 12 a pair, where lists would take ten times that.

    `ids` holds those of all examples one behind another, `ends` where each begins and ends, from 0 on.
    """

    def __init__(self, examples: Iterable[Example]) -> None:
        self.ids, self.ends, self.prompt_lengths = array("i"), array("q", [0]), array("i")
        for example in examples:
            self.ids.extend(example.ids)
            self.ends.append(len(self.ids))
            self.prompt_lengths.append(example.labels.count(IGNORE_INDEX))

    @classmethod
    def mapped(cls, folder: Path) -> Examples:
        """Examples that stay in files, `ids`, `ends` and `prompt_lengths`, of which all processes share one copy.

        Raises ValueError where the files do not fit together.
        """
        examples = cls(())
        for name, kind in (("ids", "i"), ("ends", "q"), ("prompt_lengths", "i")):
            with (folder / name).open("rb") as file:
                setattr(examples, name, memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)).cast(kind))  # type: ignore[call-overload]
        if len(examples.ends) != len(examples) + 1 or examples.ends[-1] != len(examples.ids):
            raise ValueError("the sizes of its files do not fit together")
        return examples

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def __getitem__(self, index: int | slice) -> Any:
        """An example, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # from the end too; raises IndexError
        ids = self.ids[self.ends[place] : self.ends[place + 1]].tolist()
        prompt_length = self.prompt_lengths[place]
        return Example(ids, [IGNORE_INDEX] * prompt_length + ids[prompt_length:])


@dataclass(frozen=True)
class PairEncoder:
    """How texts become ids.

    Args:
        eos_id: the id that ends a response.
        template: the prompt, in which `{context}` stands for the context.
        max_length: most tokens of a prompt and its response together.
        max_positions: of the model, which `max_length` can be raised to.
    """

    tokenizer: Tokenizer
    eos_id: int
    template: str = DEFAULT_TEMPLATE
    max_length: int = 512
    max_positions: int | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, template: str, max_length: int, max_new_tokens: int) -> PairEncoder:
        r"""How this model reads texts.

        Args:
            template: of the prompt; a new line may be written as \n, as on a command line.
            max_length: as above, as far as the model goes.
            max_new_tokens: which the model must have positions for behind the prompt.

        Raises:
            UserError: prompts would not be read as they are meant, or have no room.
        """
        config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
        template, room = template.replace(r"\n", "\n"), config.max_positions - max_new_tokens
        for token in tokenizer.get_added_tokens_decoder().values():
            if token.special and token.content in template:
                fault = f"--prompt-template holds {token.content}"
                raise UserError(f"{fault}, but control tokens cannot be written as text")
        length = len(tokenizer.encode(template.replace("{context}", "")).ids)
        if length >= room:
            fault = f"--prompt-template has {length} tokens without a context, and --max-new-tokens leaves the model"
            raise UserError(f"{fault} {max(room, 0)} of its positions; choose less of either")
        max_length = min(max_length, config.max_positions)
        return cls(tokenizer, config.eos_ids[0], template, max_length, config.max_positions)

    def prompt(self, context: str, room: int) -> list[int]:
        """The ids that a model answers, at most `room` or `max_length`: too long a context loses its beginning.

        Where the tokenizer begins texts with <BOS>, so does every prompt, once. Raises ValueError where no token of
        the context fits.
        """
        room = min(room, self.max_length)
        text = self.template.replace("{context}", context)
        # Of megabytes only the end is tokenised, twice of what can fit: where the text is cut, tokens may differ.
        ids = self.tokenizer.encode(text[-2 * max(room, 1) * self.longest_token :]).ids
        if room <= self.bos_length:
            raise ValueError("no token of its context fits")
        return self._cut(ids, room)

    def _cut(self, ids: list[int], room: int) -> list[int]:
        """The last ids of a prompt behind its <BOS>, for which there must be more room than that."""
        return ids[: self.bos_length] + ids[self.bos_length :][self.bos_length - room :]

    @cached_property
    def space(self) -> str:
        """What stands before a response: a space, unless the tokenizer itself puts one before every text (Llama 2)."""
        within, apart = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in (": a", " a"))
        return " " if within[-len(apart) :] == apart else ""

    @cached_property
    def longest_token(self) -> int:
        """In characters."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def bos_length(self) -> int:
        """How many control tokens the tokenizer puts before every text."""
        return sum(self.tokenizer.encode("a").special_tokens_mask)

    def example(self, pair: Pair) -> Example:
        """Tokenises and masks a pair.

        Raises:
            ValueError: the response and one token of context are longer than `max_length`.
        """
        ((prompt, reply),) = self._tokenised([pair])
        if fitted := self._fitted(prompt, reply):
            return fitted[0]
        raise ValueError(f"its response has {self._size(pair, reply)}, too many for {self.max_length} tokens")

    def examples(self, pairs: Iterable[Pair]) -> Examples:
        """Tokenises and masks pairs. Raises UserError as `sets` does."""
        return self.sets({"training": pairs})["training"]

    def sets(self, pairs: Mapping[str, Iterable[Pair]]) -> dict[str, Examples]:
        """Tokenises and masks sets of pairs, and tells how many contexts of each had to be cut.

        Raises:
            UserError: responses are too long; the message names those of all sets.
        """
        too_long: TooLong = []
        cut: dict[str, list[str]] = {name: [] for name in pairs}
        found = {name: Examples(self.encoded(of_set, cut[name], too_long)) for name, of_set in pairs.items()}
        self.check(too_long)
        for name, examples in found.items():
            tell_of_cut(cut[name], len(examples), name)
        return found

    def encoded(self, pairs: Iterable[Pair], cut: list[str], too_long: TooLong) -> Iterator[Example]:
        """Tokenises and masks any number of pairs, but for those whose responses are too long.

        Args:
            cut: gets a line for each context that loses its beginning: where it comes from.
            too_long: gets an entry for each such response, for `check`.
        """
        pairs, done = iter(pairs), 0
        while some := list(islice(pairs, AT_ONCE)):
            wheres = [pair.place or f"pair {place}" for place, pair in enumerate(some, start=done + 1)]
            for where, pair, (prompt, reply) in zip(wheres, some, self._tokenised(some)):
                try:
                    fitted = self._fitted(prompt, reply)
                except ValueError as error:
                    raise UserError(f"{where}: {error}; use a --prompt-template that the tokenizer knows") from error
                if fitted:
                    example, was_cut = fitted
                    cut += [where] * was_cut
                    yield example
                else:
                    too_long.append((where, self._size(pair, reply)))
            done += len(some)

    def check(self, too_long: TooLong) -> None:
        """Raises UserError where there are any."""
        if not too_long:
            return
        # As they stand in a file, row 9 before row 10, and not by the sets that they belong to.
        (first, size), *others = sorted(too_long, key=lambda entry: (len(entry[0]), entry[0]))
        places = [f"{where.rpartition(', ')[2]} ({size})" for where, size in others]
        places[TOLD:] = [f"{len(others) - TOLD} more"] * (len(others) > TOLD)
        more = f"; so have {', '.join(places)}" if others else ""
        advice = f"shorten what is too long, or raise --max-length, which may be {self.max_positions} for this model"
        if self.max_positions in (None, self.max_length):
            advice = "shorten or remove what is too long, for the model has no more positions"
        raise UserError(f"{first}: its response has {size}, too many for {self.max_length} tokens{more}; {advice}")

    def _tokenised(self, pairs: list[Pair]) -> Iterator[tuple[list[int], list[int]]]:
        """Of each pair the ids of its prompt and those of its response, with <EOS>."""
        # Of megabytes no more is tokenised than what can fit, twice: where a text is cut, its tokens may differ.
        longest = self.max_length * self.longest_token
        prompts = [self.template.replace("{context}", pair.context)[-2 * longest :] for pair in pairs]
        responses = [(self.space + pair.response)[: longest + 1] for pair in pairs]
        both = zip(
            self.tokenizer.encode_batch_fast(prompts),
            self.tokenizer.encode_batch_fast(responses, add_special_tokens=False),
        )
        for prompt, response in both:
            yield prompt.ids, [*response.ids, self.eos_id]

    def _fitted(self, prompt: list[int], reply: list[int]) -> tuple[Example, bool] | None:
        """The example of a tokenised pair, and whether its context was cut; None where there is no room for any."""
        room = self.max_length - len(reply)
        if room <= self.bos_length:
            return None
        kept = self._cut(prompt, room)
        return Example(kept + reply, [IGNORE_INDEX] * len(kept) + reply), len(kept) < len(prompt)

    def _size(self, pair: Pair, reply: list[int]) -> str:
        """How long a response is; in characters where it is so long that not all of it was tokenised."""
        characters = len(self.space + pair.response)
        was_cut = characters > self.max_length * self.longest_token
        return f"{characters} characters" if was_cut else f"{len(reply)} tokens"

    def texts(self, replies: list[list[int]]) -> list[str]:
        """Generated ids as text, without the space that begins a response."""
        return [text.strip() for text in self.tokenizer.decode_batch(replies)]


def tell_of_cut(cut: list[str], count: int, name: str) -> None:
    """Says of how many examples of a set the contexts have lost their beginning."""
    if cut:
        lost = f"{len(cut)} of {count} contexts of the {name} set are too long and lose their beginning"
        print(f"note: {lost}; the first is that of {cut[0]}", file=sys.stderr)


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
