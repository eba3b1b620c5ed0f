"""Tokenise what a chat template wrote: its control tokens are commands, those in a message are mere text.

The text is tokenised in one piece, so the ids are those of transformers' `apply_chat_template`. What looks like a
control token in a message is broken up by a mark before the template is rendered. Afterwards the mark is taken out
again, and the text between two control tokens of the template is tokenised as nothing but text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from tokenizers import Tokenizer


@dataclass(frozen=True)
class ControlTokens:
    """Those that a tokenizer calls special; it takes none in a text for one (see `load_tokenizer`)."""

    tokenizer: Tokenizer

    @cached_property
    def texts(self) -> dict[str, int]:
        """Their ids."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special}

    def first_in(self, text: str) -> int | None:
        """Return the id of the first one in a text; of several at one place that of the longest."""
        found = [(text.find(token), -len(token), id) for token, id in self.texts.items() if token in text]
        return min(found)[2] if found else None

    def break_up(self, message: str, mark: str) -> str:
        """Return a message with the mark in each control token, and in the beginning of one that it ends with."""
        return self._beginnings.sub(rf"\g<0>{mark}", message)

    def encode(self, text: str, mark: str) -> list[int]:
        """Return the ids of what a template wrote; the mark stands where `break_up` has put it."""
        joint = self._joint.encode(text, add_special_tokens=False)
        if mark not in text:
            return joint.ids
        ids: list[int] = []
        place = 0
        for id, (start, end) in zip(joint.ids, joint.offsets):
            if id in self.texts.values():
                ids += [*self._encode_between(text[place:start], place, mark), id]
                place = end
        return ids + self._encode_between(text[place:], place, mark)

    def _encode_between(self, text: str, place: int, mark: str) -> list[int]:
        """Return the ids of a text without control tokens, which begins at this place of the whole."""
        text = text.replace(mark, "")
        encode = self.tokenizer.encode
        if not text or not place or self._begins_anew:
            return encode(text, add_special_tokens=False).ids
        # Some tokenizers put a space before the first word of all; behind the mark no word is the first.
        before = encode(mark, add_special_tokens=False).ids
        return encode(mark + text, add_special_tokens=False).ids[len(before) :]

    @cached_property
    def _begins_anew(self) -> bool:
        """Whether a text behind a control token is tokenised as if it stood alone."""
        whole = self._joint.encode(f"{next(iter(self.texts))}a", add_special_tokens=False)
        return whole.ids[1:] == self.tokenizer.encode("a", add_special_tokens=False).ids

    @cached_property
    def _joint(self) -> Tokenizer:
        """The same tokenizer, which takes control tokens in a text for such."""
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.encode_special_tokens = False
        return tokenizer

    @cached_property
    def _beginnings(self) -> re.Pattern[str]:
        """The first character of each control token in a message, also of one that the message's end cuts off."""
        patterns = []
        for token in self.texts:
            rest = ""
            for letter in reversed(token[1:]):
                rest = rf"(?:{re.escape(letter)}{rest}|\s*\Z)"
            patterns.append(f"{re.escape(token[0])}(?={rest})")
        return re.compile("|".join(patterns) or "(?!)")
