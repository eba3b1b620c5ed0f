"""The layouts of entries: which keys they have, and the pair that an entry stands for.

An entry is an object of one of these layouts (or, in CSV, a row under a header of these names), the same in the whole
file. Every layout may add "high_quality", 0 or 1, to all of its entries; without it every pair is of high quality. Any
entry may have a "system" message. Keys that no layout knows are left out; what may be a known one misspelt is refused.

    {"context", "response"}                 the layout that `dataset.save_pairs` writes
    {"prompt", "completion"}                TRL; texts, or lists of messages that are joined
    {"instruction", "output"}               Alpaca; an "input" that is not empty is the context's next line
    {"instruction", "response"}             Bitext, Dolly; the same
    {"messages": [{"role", "content"}]}     chat, not in CSV; the last message, the assistant's, is the response, and
                                            if several come before it, each is a line: "System: ...", "User: ...";
                                            a model with a chat template reads them as the turns that they are
    {"conversations": [{"from", "value"}]}  ShareGPT; the same
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property, lru_cache
from typing import Any

from part3_pretrain.runtime.cli import UserError
from part4_sft.dataset import Pair, Turn

# The keys that an entry must have (that of the context before that of the response).
LAYOUTS: tuple[tuple[str, ...], ...] = (
    ("context", "response"),
    ("prompt", "completion"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("messages",),
    ("conversations",),
)
OPTIONAL = ("system", "high_quality")  # in every layout; besides, "input" behind an "instruction"
KNOWN_KEYS = {"input", *OPTIONAL}.union(*LAYOUTS)
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "bing", "bard"), "assistant"),
}
TOOL_ROLES = ("tool", "function", "tool_call", "function_call", "tool_response", "observation", "ipython")
TOOL_KEYS = ("tool_calls", "function_call", "tool_call_id", "tools", "functions")
NOTHING: tuple[object, ...] = (None, "", "[]", [], {})  # what stands where a key has no value

Columns = Sequence[str]  # such as ["context=Frage"]: our name of a key, and that in the file


class Object(dict[str, Any]):
    """A JSON object that remembers which keys were written twice: a plain dict keeps the last value in silence."""

    def __init__(self, items: Iterable[tuple[str, Any]]) -> None:
        items = list(items)
        super().__init__(items)
        self.repeated = [key for key, count in Counter(key for key, _ in items).items() if count > 1]


@dataclass
class Layout:
    """What is read of a file's entries, as its first one tells.

    Args:
        required: the keys of the layout, one of LAYOUTS.
        first: the first entry, under our names.
        columns: the names of keys in the file, by ours, where `--columns` gives them.
        left_out: the keys that no layout knows, of all entries so far.
    """

    required: tuple[str, ...]
    first: Object
    columns: Mapping[str, str]
    left_out: dict[str, None] = field(default_factory=dict)

    @classmethod
    def of(cls, first: object, place: str, columns: Columns) -> Layout:
        """Return the layout of a file by its first entry. Raises UserError where it has none, or several."""
        names, entry = _names_by_key(columns), as_object(first, place)
        if missing := [name for name in names.values() if name not in entry]:
            raise UserError(f"{place}: there is no {listed(missing)}, which --columns names; it has {listed(entry)}")
        entry = _under_our_names(entry, names)
        complete = [keys for keys in LAYOUTS if entry.keys() >= {*keys}]
        complete = [keys for keys in complete if _is_conversation(keys)] or complete  # which holds all that is said
        if not complete:
            raise _misfit(place, _missing_key(entry, _nearest(entry)), entry, entry)
        required = max(complete, key=lambda keys: len(names.keys() & {*keys}))
        layout = cls(required, entry, names)
        others = {*KNOWN_KEYS} - {*required, *layout.optional}
        if not _is_conversation(required) and not names.keys() >= {*required} and entry.keys() & others:
            told = listed(key for key in entry if key in KNOWN_KEYS)
            cure = "say which are meant, such as --columns context=prompt response=response"
            raise UserError(f"{place}: its keys are of several layouts, {told}", cure)
        layout._check_keys(entry, place)
        return layout

    def __str__(self) -> str:
        keys = [key for key in self.keys if key in self.first]
        return " + ".join(key if key == self.name(key) else f"{key} ({shown(self.name(key))})" for key in keys)

    def name(self, key: str) -> str:
        """Return what the file calls this key of ours."""
        return self.columns.get(key, key)

    @cached_property
    def optional(self) -> tuple[str, ...]:
        return ("input", *OPTIONAL) if "instruction" in self.required else OPTIONAL

    @cached_property
    def keys(self) -> tuple[str, ...]:
        return self.required + self.optional

    def pair(self, value: object, place: str) -> Pair:
        """Return the pair that an entry stands for. Raises UserError where it is none of this layout."""
        original = as_object(value, place)
        entry = _under_our_names(original, self.columns)
        self._check_keys(entry, place)
        read = {*map(self.name, self.keys)}
        self.left_out |= dict.fromkeys(key for key in original if key not in read)
        high_quality = entry.get("high_quality", 1)
        if type(high_quality) is not int or high_quality not in (0, 1):  # True == 1 == 1.0, but they are no labels
            raise UserError(f'{place}: "high_quality" must be 0 or 1, not {shown(high_quality)}')
        turns, response = self._turns_and_response(entry, place)
        system = _text(entry, "system", place, may_be_empty=True) if "system" in entry else ""
        if system.strip():
            turns = [("system", system), *turns]
        context = "\n".join(f"{role.capitalize()}: {content}" for role, content in turns)
        if len(turns) == 1:
            context = turns[0][1]
        is_question = [role for role, _ in turns] == ["user"]
        return Pair(context, response, high_quality, place, () if is_question else tuple(turns))

    def _check_keys(self, entry: Object, place: str) -> None:
        problem = _missing_key(entry, self.required)
        if not problem and ("high_quality" in entry) != ("high_quality" in self.first):
            problem = '"high_quality" must be in all entries or in none'
        for key in entry:
            known = "" if problem or key in self.keys else _resembled(key, self.optional)
            if known and known not in entry:
                problem = f'unknown key {shown(key)} (is it "{known}", misspelt?): rename it, or remove it'
        if problem:
            raise _misfit(place, problem, entry, self.first)

    def _turns_and_response(self, entry: Object, place: str) -> tuple[list[Turn], str]:
        texts = [entry[key] for key in self.required]
        if _is_conversation(self.required) or ("prompt" in self.required and any(type(text) is list for text in texts)):
            _refuse_tools(entry, place)
            *turns, (_, response) = self._conversation(entry, place)
            return turns, response
        context_key, response_key = self.required
        parts = [_text(entry, context_key, place)]
        if "input" in self.optional and "input" in entry:
            parts.append(_text(entry, "input", place, may_be_empty=True))
        return [("user", "\n".join(filter(str.strip, parts)))], _text(entry, response_key, place)

    def _conversation(self, entry: Object, place: str) -> list[Turn]:
        """Return the turns of a chat, two at least; the last is the assistant's."""
        messages = []
        for key in self.required:
            if not isinstance(entry[key], list):
                rule = f'"{key}" must be a list of objects {{"role", "content"}}, in a JSON or JSONL file, not'
                raise UserError(f"{place}: {rule} {shown(entry[key])}")
            messages += entry[key]
        turns = [self._turn(message, f"{place}, message {number}") for number, message in enumerate(messages, start=1)]
        if len(turns) < 2 or turns[-1][0] != "assistant":
            keys = " + ".join(f'"{key}"' for key in self.required)
            raise UserError(f"{place}: {keys} must be one message or more, and then a last one from the assistant")
        return turns

    def _turn(self, value: object, place: str) -> Turn:
        message = as_object(value, place)
        _refuse_tools(message, place)
        role_key, content_key = ("from", "value") if "from" in message else ("role", "content")
        if problem := _missing_key(message, (role_key, content_key)):
            raise UserError(f"{place}: {problem}; it has {listed(message)} and must have role + content")
        given = message[role_key]
        role = ROLES.get(given.lower()) if isinstance(given, str) else None
        if role is None:
            raise UserError(f'{place}: "{role_key}" must be one of system, user, assistant, not {shown(given)}')
        others = [key for key, of in message.items() if key not in (role_key, content_key) and of not in NOTHING]
        self.left_out |= dict.fromkeys(f"{key} of messages" for key in others)
        return role, _text(message, content_key, place)


def _names_by_key(columns: Columns) -> dict[str, str]:
    """Return what `--columns` gives. Raises UserError where that cannot be meant."""
    names = {key: name for key, _, name in (column.partition("=") for column in columns)}
    if not all(key in KNOWN_KEYS and name for key, name in names.items()):
        known = ", ".join(sorted(KNOWN_KEYS))
        raise UserError(
            f"--columns must be KEY=NAME, such as context=Question, not {listed(columns)}", f"the keys are {known}"
        )
    if len({*names.values()}) < len(columns):
        raise UserError(f"--columns gives one key or one name twice: {listed(columns)}", "give each once")
    return names


def with_turns(pairs: list[Pair]) -> list[Pair]:
    """Return the pairs of one file, all as conversations where some are, so that a file of them has one layout."""
    if not any(pair.turns for pair in pairs):
        return pairs
    return [replace(pair, turns=pair.turns or (("user", pair.context),)) for pair in pairs]


def as_object(value: object, place: str) -> Object:
    """Return the value, which must be an object that holds each key once."""
    if not isinstance(value, Object):
        raise UserError(f'{place}: must be an object, {{"key": value, ...}}, not {shown(value)}')
    if value.repeated:
        raise UserError(f"{place}: the key {shown(value.repeated[0])} is there twice", "keep one of them")
    return value


def _under_our_names(entry: Object, columns: Mapping[str, str]) -> Object:
    """Return the entry with the keys that `--columns` names; another that has such a name by chance is not meant."""
    if not columns:
        return entry
    ours = {theirs: name for name, theirs in columns.items()}
    return Object((ours.get(key, key), value) for key, value in entry.items() if key in ours or key not in columns)


def _is_conversation(required: tuple[str, ...]) -> bool:
    return len(required) == 1


def _nearest(entry: Object) -> tuple[str, ...]:
    """Return the layout that has most in common with an entry of none, where misspelt keys count as well."""

    def in_common(keys: tuple[str, ...]) -> int:
        if _is_conversation(keys) and not any(isinstance(value, list) for value in entry.values()):
            return 0  # a text called "message" is no conversation
        return sum(key in entry or any(_resembled(other, (key,)) for other in entry) for key in keys)

    return max(LAYOUTS, key=in_common)


def _missing_key(entry: Object, required: tuple[str, ...]) -> str:
    """Return what is wrong with the keys of an object that must have these; "" if nothing is."""
    for key in required:
        if key not in entry:
            meant = [other for other in entry if other not in KNOWN_KEYS and _resembled(other, (key,))]
            return f'the key "{key}" is missing' + (f" (is it {listed(meant[:1])}, misspelt?)" if meant else "")
    return ""


@lru_cache(maxsize=1000)
def _resembled(key: str, known: tuple[str, ...]) -> str:
    """Return the known key that this one may be, misspelt; "" if there is none."""
    folded = re.sub(r"\W+", "_", key[:100].strip().lower())
    return next(iter(get_close_matches(folded, known, 1, cutoff=0.8)), "")


def _misfit(place: str, problem: str, entry: Object, first: Object) -> UserError:
    """Return the error that says what is wrong with the keys of an entry, and which there are."""
    keys = listed(entry)
    if entry.keys() != first.keys():
        keys += f" where pair 1 has {listed(first)}"
    advice = ""
    if "text" in entry and not entry.keys() & KNOWN_KEYS:
        advice = 'split "text" into "prompt" and "completion"; '
    layouts = "context + response; prompt + completion; instruction + output or response (+ input); messages"
    cure = f"{advice}the layouts, one for a whole file: {layouts}; conversations; or name the columns: --columns"
    return UserError(f"{place}: {problem}; it has {keys}", f"{cure} context=NAME response=NAME")


def _refuse_tools(entry: Object, place: str) -> None:
    """Raise UserError where an entry of conversations, or a message, has to do with calls of tools."""
    used = [key for key in TOOL_KEYS if entry.get(key) not in NOTHING]
    used += [role for role in (entry.get("role"), entry.get("from")) if role in TOOL_ROLES]
    if used:
        cure = "leave out the conversations that call any"
        raise UserError(f"{place}: {shown(used[0])} belongs to a call of a tool, which cannot be trained", cure)


def _text(entry: Object, key: str, place: str, may_be_empty: bool = False) -> str:
    value = entry[key]
    if not isinstance(value, str):
        may_be_conversation = isinstance(value, list) and key not in ("content", "value")
        advice = 'a conversation goes into "messages"' if may_be_conversation else ""
        raise UserError(f'{place}: "{key}" must be text, not {shown(value)}', advice)
    if not value.strip() and not may_be_empty:
        raise UserError(f'{place}: "{key}" is empty', "fill it in, or remove the entry")
    if re.search(r"[\ud800-\udfff]", value):
        raise UserError(f'{place}: "{key}" holds half of a character (a lone surrogate)', "remove it")
    return value


def listed(keys: Iterable[str]) -> str:
    return f"{', '.join(map(shown, keys)) or 'no keys':.200}"


def shown(value: object) -> str:
    """Return a JSON value in one short line; of lists and objects only the kind, for they may be nested deeply."""
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else f"{json.dumps(value):.40}"
