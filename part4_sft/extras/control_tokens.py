"""Tokenise what a chat template wrote: its control tokens are commands, those in a message are mere text.

The text is tokenised in one piece, so the ids are those of transformers' `apply_chat_template`. What looks like a
control token in a message is broken up by a mark before the template is rendered. Afterwards the mark is taken out
again, and the text between two control tokens of the template is tokenised as nothing but text.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache, cached_property

from tokenizers import Tokenizer


@dataclass(frozen=True)
class ControlTokens:
    """Those that a tokenizer calls special, of which it takes none in a text for one (see `load_tokenizer`).

    And those that it does not call so, such as <think>, where the source of the template holds them.
    """

    tokenizer: Tokenizer
    source: str

    @cached_property
    def texts(self) -> dict[str, int]:
        """The ids of the special ones."""
        added = self.tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special}

    @cached_property
    def written(self) -> dict[str, int]:
        """The ids of the others that the template holds; some vocabularies add line breaks, which are no commands."""
        added = {id: token.content for id, token in self.tokenizer.get_added_tokens_decoder().items()}
        held = {text: id for id, text in added.items() if text.strip() and text in self.source}
        return {text: id for text, id in held.items() if text not in self.texts}

    def first_in(self, text: str) -> int | None:
        """Return the id of the first one in a text; of several at one place that of the longest."""
        found = [(text.find(token), -len(token), id) for token, id in self.texts.items() if token in text]
        return min(found)[2] if found else None

    def break_up(self, role: str, message: str, mark: str) -> str:
        """Return a message with the mark in each control token, and in the beginning of one that it ends with.

        The assistant is taught what is not special: it thinks in <think>, and calls a tool in <tool_call>.
        """
        tokens = self.texts if role == "assistant" else self.texts | self.written
        return _beginnings(tuple(tokens)).sub(rf"\g<0>{mark}", message)

    def encode(self, text: str, mark: str) -> list[int]:
        """Return the ids of what a template wrote; the mark stands where `break_up` has put it."""
        joint = self._joint.encode(text, add_special_tokens=False)
        if mark not in text:
            return joint.ids
        ids: list[int] = []
        ids_of_all = {*self.texts.values(), *self.written.values()}
        place = 0
        for id, (start, end) in zip(joint.ids, joint.offsets):
            if id in ids_of_all:
                ids += [*self._encode_between(text[place:start], place, mark), id]
                place = end
        return ids + self._encode_between(text[place:], place, mark)

    def _encode_between(self, text: str, place: int, mark: str) -> list[int]:
        """Return the ids of a text without control tokens, which begins at this place of the whole."""
        text = text.replace(mark, "")
        self._plain.encode_special_tokens = True  # which is lost on the way to another process
        encode = self._plain.encode
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
    def _plain(self) -> Tokenizer:
        """The same tokenizer, to which no control token in a text is one."""
        if not self.written:
            return self.tokenizer
        stored = json.loads(self.tokenizer.to_str())
        for token in stored["added_tokens"]:
            token["special"] |= token["content"] in self.written
        return Tokenizer.from_str(json.dumps(stored))


@cache
def _beginnings(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """Match the first character of each token in a message, also of one that the message's end cuts off."""
    patterns = []
    for token in tokens:
        rest = ""
        for letter in reversed(token[1:]):
            rest = rf"(?:{re.escape(letter)}{rest}|\s*\Z)"
        patterns.append(f"{re.escape(token[0])}(?={rest})")
    return re.compile("|".join(patterns) or "(?!)")
