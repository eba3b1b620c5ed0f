"""Turn pairs into token ids and labels, the data that fine-tuning learns from.

A pair becomes

    ids:     encode("Customer: {context}\\nAgent:")  +  encode(" {response}")  +  [EOS]
    labels:  -100 for each of these                 +  the ids themselves

The two parts are encoded separately, so the boundary between them is exact, and <EOS> is trained like any other token.
Where a pair is too long, its context loses tokens on the left; a response is never cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.runtime.cli import UserError, unescape
from part3_pretrain.runtime.log import note
from part4_sft.config import DEFAULT_TEMPLATE
from part4_sft.dataset import Pair, Turns, list_others

TOKENIZER_BATCH_SIZE = 1000  # pairs; the tokenizer works on those of a batch in parallel


@dataclass(frozen=True)
class Example:
    """A tokenised pair: ids, and as many labels, which are the ids of what is to be learnt, and -100 elsewhere."""

    ids: list[int]
    labels: list[int]
    place: str = field(default="", compare=False)  # of the pair, for messages


@dataclass(frozen=True)
class PairEncoder:
    """Encodes pairs for one model."""

    tokenizer: Tokenizer
    eos_id: int  # ends a response
    template: str = unescape(DEFAULT_TEMPLATE)  # the prompt, in which `{context}` stands for the context
    max_length: int = 512  # in tokens, of a prompt and its response together
    max_positions: int | None = None  # how far the model lets `max_length` be raised; None where that is unknown

    @classmethod
    def for_checkpoint(cls, checkpoint: Checkpoint, template: str, max_length: int, max_new_tokens: int) -> PairEncoder:
        r"""Return the encoder for this model's tokenizer and positions.

        Args:
            template: the prompt as it is written on a command line, with \n for a new line.
            max_length: as above; the model's positions, if that is more.
            max_new_tokens: positions that must be left for a reply behind the prompt.

        Raises:
            UserError: the template holds a control token, or leaves no room for a context.
        """
        config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
        template = unescape(template)
        for token in tokenizer.get_added_tokens_decoder().values():
            if token.special and token.content in template:
                cause = f"--prompt-template holds {token.content}, but control tokens cannot be written as text"
                raise UserError(cause)
        room = config.max_positions - max_new_tokens
        length = len(tokenizer.encode(template.replace("{context}", "")).ids)
        if length >= room:
            raise UserError(
                f"--prompt-template has {length} tokens without a context, and --max-new-tokens leaves the model "
                f"{max(room, 0)} of its positions",
                "choose less of either",
            )
        return cls(tokenizer, config.eos_ids[0], template, min(max_length, config.max_positions), config.max_positions)

    def encode_prompt(self, context: str, room: int, turns: Turns = ()) -> list[int]:
        """Return the ids that a model answers, at most `room` and at most `max_length`; ValueError where none fits.

        Too long a context loses its beginning. Where the tokenizer begins texts with <BOS>, so does every prompt, once.
        The `turns` that the context stands for are for a model with a chat template (`extras/conversations.py`).
        """
        room = min(room, self.max_length)
        if room <= self.bos_length:
            raise ValueError("no token of its context fits")
        return self._keep_end(self.tokenizer.encode(self._fill_template(context, room)).ids, room)

    def encode(self, pair: Pair) -> Example:
        """Return the example of a pair. Raises UserError where its response is too long."""
        examples, _, too_long = self.encode_what_fits([pair])
        self.check_all_fit(too_long)
        return examples[0]

    def encode_all(self, pairs: Sequence[Pair]) -> list[Example]:
        """Return the examples of training pairs; notes and errors are those of `encode_sets`."""
        return self.encode_sets({"training": pairs})["training"]

    def encode_sets(self, sets: Mapping[str, Sequence[Pair]]) -> dict[str, list[Example]]:
        """Return the examples of each set, note its cut contexts, and raise one UserError for those too long."""
        encoded = {name: self.encode_what_fits(pairs) for name, pairs in sets.items()}
        self.check_all_fit([response for _, _, too_long in encoded.values() for response in too_long])
        for name, (examples, cut, _) in encoded.items():
            note_cut(cut, len(examples), name)
        return {name: examples for name, (examples, _, _) in encoded.items()}

    def encode_what_fits(self, pairs: Sequence[Pair]) -> tuple[list[Example], list[str], list[tuple[str, str]]]:
        """Return the examples, the places of cut contexts, and place and length of each response that does not fit."""
        examples, cut, too_long = [], [], []
        for number, (pair, prompt, response) in enumerate(self._tokenise(pairs), start=1):
            place = pair.place or f"pair {number}"
            room = self.max_length - len(response)
            if room <= self.bos_length:
                length, characters = f"{len(response)} tokens", len(self.space + pair.response)
                if characters > self.max_length * self.longest_token:  # then not all of it was tokenised
                    length = f"{characters} characters"
                too_long.append((place, length))
                continue
            kept = self._keep_end(prompt, room)
            if not kept:
                cure = "use a --prompt-template that the tokenizer knows"
                raise UserError(f"{place}: no token comes of its prompt", cure)
            if len(kept) < len(prompt):
                cut.append(place)
            examples.append(Example(kept + response, [IGNORE_INDEX] * len(kept) + response, pair.place))
        return examples, cut, too_long

    def check_all_fit(self, too_long: list[tuple[str, str]]) -> None:
        """Raise a UserError that names the places and lengths of the responses that are too long, if any are."""
        if not too_long:
            return
        # Sorted as they stand in a file, row 9 before row 10, whatever sets they belong to.
        (first, length), *others = sorted(too_long, key=lambda response: (len(response[0]), response[0]))
        cause = f"{first}: its response has {length}, too many for {self.max_length} tokens"
        if others:
            cause += f"; so have {list_others([f'{place} ({length})' for place, length in others])}"
        if self.max_positions in (None, self.max_length):
            raise UserError(cause, "shorten or remove what is too long, for the model has no more positions")
        cure = f"shorten what is too long, or raise --max-length, which may be {self.max_positions} for this model"
        raise UserError(cause, cure)

    def decode(self, replies: list[list[int]]) -> list[str]:
        """Return generated ids as texts, without the space that begins a response."""
        return [text.strip() for text in self.tokenizer.decode_batch(replies)]

    def _tokenise(self, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, list[int], list[int]]]:
        """Yield each pair, the ids of its whole prompt, and those of its response with <EOS>."""
        tokenise = self.tokenizer.encode_batch_fast
        max_characters = self.max_length * self.longest_token
        for start in range(0, len(pairs), TOKENIZER_BATCH_SIZE):
            batch = pairs[start : start + TOKENIZER_BATCH_SIZE]
            prompts = tokenise([self._fill_template(pair.context, self.max_length) for pair in batch])
            texts = [(self.space + pair.response)[:max_characters] for pair in batch]
            for pair, prompt, response in zip(batch, prompts, tokenise(texts, add_special_tokens=False)):
                yield pair, prompt.ids, [*response.ids, self.eos_id]

    def _fill_template(self, context: str, room: int) -> str:
        """Return the end of a prompt's text that `room` tokens are kept of: twice as long, for a cut changes tokens."""
        return self.template.replace("{context}", context)[-2 * room * self.longest_token :]

    def _keep_end(self, prompt: list[int], room: int) -> list[int]:
        """Return the <BOS> of a prompt, if it has one, and its last ids, `room` in all; <BOS> alone must be fewer."""
        if len(prompt) <= room:
            return prompt
        return prompt[: self.bos_length] + prompt[len(prompt) - room + self.bos_length :]

    @cached_property
    def space(self) -> str:
        """What stands before a response: a space, unless the tokenizer itself puts one before every text (Llama 2)."""
        within, apart = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in (": a", " a"))
        return " " if within[-len(apart) :] == apart else ""

    @cached_property
    def longest_token(self) -> int:
        """How many characters the longest token has."""
        return max(map(len, self.tokenizer.get_vocab()))

    @cached_property
    def bos_length(self) -> int:
        """How many control tokens the tokenizer puts before every text."""
        return sum(self.tokenizer.encode("a").special_tokens_mask)


def note_cut(cut: Sequence[str], count: int, name: str) -> None:
    """Note how many contexts of a set have lost their beginning, if any have."""
    if cut:
        many = f"{len(cut)} of {count} contexts of the {name} set are too long and lose their beginning"
        note(f"{many}; the first is that of {cut[0]}")
