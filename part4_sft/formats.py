"""Read people's files of pairs: JSON arrays, JSONL and CSV, in the layouts that other tools use as well.

An entry is an object of one of these layouts (or, in CSV, a row under a header of these names), the same in the whole
file. Every layout may add "high_quality", 0 or 1, to all of its entries; without it every pair is of high quality.

    {"context", "response"}                 the layout that `dataset.save_pairs` writes
    {"prompt", "completion"}                TRL
    {"instruction", "output"}               Alpaca; an "input" that is not empty is the context's next line
    {"messages": [{"role", "content"}]}     chat, not in CSV; the last message, the assistant's, is the response, and
                                            if several come before it, each is a line: "System: ...", "User: ...";
                                            a model with a chat template reads them as the turns that they are
"""

from __future__ import annotations

import csv
import io
import json
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, cannot_read
from part4_sft.dataset import Pair, Turn, Turns

# The keys that an entry must have (that of the context before that of the response), and those that it may have.
LAYOUTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("context", "response"): (),
    ("prompt", "completion"): (),
    ("instruction", "output"): ("input",),
    ("messages",): (),
}
KNOWN_KEYS = {"high_quality"}.union(*LAYOUTS, *LAYOUTS.values())
ROLES = ("system", "user", "assistant")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of CSV; the first is taken where a header has none


def load_pairs(path: Path) -> list[Pair]:
    """Read and check a file of pairs: CSV if its name ends in .csv or .tsv, else a JSON array or JSON lines.

    Raises:
        UserError: the file cannot be read, or an entry is not a pair; the message names the line, row or entry.
    """
    return _pairs(_load(path)[1])


def relabel(path: Path, label: Callable[[Pair], int | None]) -> list[int]:
    """Set "high_quality" of every entry of a file, whole or not at all, and leave its layout and all else alone.

    `label` gives 0, 1, or None for what a pair has, which is 0 in a file without such a key. Returns all labels.

    Raises:
        UserError: the file cannot be read or written, or an entry is not a pair.
    """
    text, entries = _load(path)
    for (_, entry), pair in zip(entries, _pairs(entries)):
        new_label = label(pair)
        entry["high_quality"] = entry.get("high_quality", 0) if new_label is None else new_label
    # Without the byte order mark, spreadsheets take a CSV file for one of an older encoding.
    encoding = "utf-8-sig" if _is_csv(path) and path.read_bytes().startswith(BOM_UTF8) else "utf-8"
    line_end = "\r\n" if re.match(r"[^\n]*\r\n", text) else "\n"
    with atomic_write(path) as temporary, temporary.open("w", encoding=encoding, newline="") as file:
        if _is_csv(path):
            _, header = next(_rows(text, path))
            if len(header) < len(entries[0][1]):
                header.append("high_quality")
            rows = [header, *(list(entry.values()) for _, entry in entries)]
            has_return = any("\r" in str(cell) for row in rows for cell in row)  # Python 3.11 may leave it unquoted
            writer = csv.writer(
                file,
                delimiter=_delimiter(text),
                quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL,
                lineterminator=line_end,
            )
            writer.writerows(rows)
        else:
            lines = [json.dumps(entry, ensure_ascii=False) for _, entry in entries]
            if _is_array(text):
                lines = ["[", *(f"{line}," for line in lines[:-1]), lines[-1], "]"]
            file.writelines(line + line_end for line in lines)
    return [entry["high_quality"] for _, entry in entries]


def pairs_of_lines(data: bytes, offset: int, line: int, first_line: bytes, path: Path) -> list[Pair]:
    """Return the pairs of some whole lines of a JSONL file, or raise a UserError that names a line that is none.

    They begin at this offset and line of the file; all have the layout of its first line that is not blank.
    """
    first = _object(_parse_json(_decode(first_line, 0, path), line, path), f"{path}, pair 1")
    lines = _json_lines(_decode(data, offset, path), line, path)
    return [_pair(value, first, f"{path}, line {number}") for number, value in lines]


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys were written twice: a plain dict keeps the last value in silence."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        super().__init__(items)
        self.repeated = [key for key, count in Counter(key for key, _ in items).items() if count > 1]


def _load(path: Path) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text of a file and its entries, one at least, each behind its place, for messages."""
    try:
        text = _decode(path.read_bytes(), 0, path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if _is_csv(path):
        entries = _csv_entries(text, path)
    else:
        values = _parse_json(text, 1, path) if _is_array(text) else [value for _, value in _json_lines(text, 1, path)]
        entries = [(f"{path}, pair {number}", value) for number, value in enumerate(values, start=1)]
    if not entries:
        raise UserError(f"{path} holds no pairs", "name a file that holds some")
    return text, entries


def _decode(data: bytes, offset: int, path: Path) -> str:
    """Return the bytes that begin at this offset of the file as text, without the byte order mark of a file."""
    try:
        text = data.decode("utf-8")  # not "utf-8-sig", which counts bytes after the mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {offset + error.start})", "save it as UTF-8") from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _is_array(text: str) -> bool:
    return text.lstrip().startswith("[")


def _json_lines(text: str, first: int, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number of each line that is not blank, and its value."""
    for number, line in enumerate(text.split("\n"), start=first):  # not splitlines(): U+2028 may stand in JSON
        if line.strip():
            yield number, _parse_json(line, number, path)


def _parse_json(document: str, line: int, path: Path) -> Any:
    """Parse one document, which begins in this line of the file."""
    try:
        return json.loads(document, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        cause = f"{path} is not JSON: line {line + error.lineno - 1}, column {error.colno}: {error.msg}"
        cure = "a file is a JSON array, or one JSON object a line, or CSV with a name that ends in .csv"
        raise UserError(cause, cure) from error
    except (RecursionError, ValueError) as error:
        problem = "is nested too deeply or holds a number of thousands of digits, so it cannot be pairs"
        raise UserError(f"{path}: what begins in line {line} {problem}") from error


def _delimiter(text: str) -> str:
    """Return what stands between the cells: semicolons, where spreadsheets keep the comma for decimals."""
    return max(DELIMITERS, key=re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0].count)


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows of a CSV file that are not blank behind their numbers, from 1 on, as spreadsheets count them."""
    if "\0" in text:
        raise UserError(f"{path} holds a NUL character, so it is not CSV", "save it as CSV in UTF-8")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a response may be longer than the usual 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        for number, row in enumerate(reader, start=1):
            if any(map(str.strip, row)):
                yield number, row
    except csv.Error as error:
        raise UserError(f"{path} is not CSV: line {reader.line_num}: {error}", "look at its quotation marks") from error


def _csv_entries(text: str, path: Path) -> list[tuple[str, Any]]:
    rows = list(_rows(text, path))
    if len(rows) < 2:  # a header alone
        return []
    (first, header), *rows = rows
    folded = [re.sub(r"\s+", "_", name.strip().lower()) for name in header]
    names = [ours if ours in KNOWN_KEYS else theirs for ours, theirs in zip(folded, header)]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{path}: give every column a name of its own; the header is {_listed(header)}")
    keys = _Object(list(zip(names, names)))
    _layout(keys, keys, f"{path}, row {first}")
    entries = []
    for number, row in rows:
        place = f"{path}, row {number}"
        if len(row) != len(header):
            cure = f'put "quotes" around a cell that holds {DELIMITERS[_delimiter(text)]}'
            raise UserError(f"{place}: has {len(row)} cells, and the header has {len(header)}", cure)
        entry = _Object(list(zip(names, row)))
        if entry.get("high_quality") in ("0", "1"):  # a cell is text, whatever it holds
            entry["high_quality"] = int(entry["high_quality"])
        entries.append((place, entry))
    return entries


def _pairs(entries: list[tuple[str, Any]]) -> list[Pair]:
    place, value = entries[0]
    first = _object(value, place)
    pairs = [_pair(value, first, place) for place, value in entries]
    if any(pair.turns for pair in pairs):  # so that a file of them, too, has one layout
        pairs = [replace(pair, turns=pair.turns or (("user", pair.context),)) for pair in pairs]
    return pairs


def _pair(value: object, first: _Object, place: str) -> Pair:
    """Return the pair that an entry stands for, in the layout of the file's first entry."""
    entry = _object(value, place)
    required = _layout(entry, first, place)
    high_quality = entry.get("high_quality", 1)
    if type(high_quality) is not int or high_quality not in (0, 1):  # True == 1 == 1.0, but they are no labels
        raise UserError(f'{place}: "high_quality" must be 0 or 1, not {_shown(high_quality)}')
    turns: Turns = ()
    if required == ("messages",):
        *before, (_, response) = _conversation(entry["messages"], place)
        context = "\n".join(f"{role.capitalize()}: {content}" for role, content in before)
        if len(before) == 1:
            context = before[0][1]
        if [role for role, _ in before] != ["user"]:
            turns = tuple(before)
    else:
        context_key, response_key = required
        parts = [_text(entry, context_key, place)]
        parts += [_text(entry, key, place, may_be_empty=True) for key in LAYOUTS[required] if key in entry]
        context, response = "\n".join(filter(str.strip, parts)), _text(entry, response_key, place)
    return Pair(context, response, high_quality, place, turns)


def _layout(entry: _Object, first: _Object, place: str) -> tuple[str, ...]:
    """Return the required keys of the layout that has most in common with the file's first entry."""
    required = max(LAYOUTS, key=lambda keys: len(first.keys() & {*keys, *LAYOUTS[keys]}))
    problem = _problem_of_keys(entry, required, (*LAYOUTS[required], "high_quality"))
    if not problem and ("high_quality" in entry) != ("high_quality" in first):
        problem = '"high_quality" must be in all entries or in none'
    if not problem:
        return required
    keys = _listed(entry)
    if entry.keys() != first.keys():
        keys += f" where pair 1 has {_listed(first)}"
    advice = ""
    if "text" in entry and not entry.keys() & set(required):
        advice = 'split "text" into "messages", or into "prompt" and "completion"; '
    layouts = "context + response; prompt + completion; instruction + output (+ input); messages"
    cure = f"{advice}the layouts, one for a whole file: {layouts}"
    raise UserError(f"{place}: {problem}; it has {keys}", cure)


def _conversation(messages: object, place: str) -> list[Turn]:
    """Return the turns of a chat, two at least; the last is the assistant's."""
    if not isinstance(messages, list):
        rule = '"messages" must be a list of objects {"role", "content"}, in a JSON or JSONL file, not'
        raise UserError(f"{place}: {rule} {_shown(messages)}")
    turns: list[Turn] = []
    for number, value in enumerate(messages, start=1):
        message_place = f"{place}, message {number}"
        message = _object(value, message_place)
        if problem := _problem_of_keys(message, ("role", "content"), ()):
            raise UserError(f"{message_place}: {problem}; it has {_listed(message)} and must have role + content")
        role = message["role"]
        if role not in ROLES:
            raise UserError(f'{message_place}: "role" must be one of {", ".join(ROLES)}, not {_shown(role)}')
        turns.append((role, _text(message, "content", message_place)))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise UserError(f'{place}: "messages" must be one message or more, and then a last one from the assistant')
    return turns


def _object(value: object, place: str) -> _Object:
    """Return the value, which must be an object that holds each key once."""
    if not isinstance(value, _Object):
        raise UserError(f'{place}: must be an object, {{"key": value, ...}}, not {_shown(value)}')
    if value.repeated:
        raise UserError(f"{place}: the key {_shown(value.repeated[0])} is there twice", "keep one of them")
    return value


def _problem_of_keys(entry: _Object, required: tuple[str, ...], optional: tuple[str, ...]) -> str:
    """Return what is wrong with the keys of an object; "" if nothing is."""
    for key in required:
        if key not in entry:
            return f'the key "{key}" is missing'
    unknown = [key for key in entry if key not in required + optional]
    return f"unknown key {_listed(unknown[:3])}: remove it" if unknown else ""


def _text(entry: _Object, key: str, place: str, may_be_empty: bool = False) -> str:
    value = entry[key]
    if not isinstance(value, str):
        advice = 'a conversation goes into "messages"' if isinstance(value, list) and key != "content" else ""
        raise UserError(f'{place}: "{key}" must be text, not {_shown(value)}', advice)
    if not value.strip() and not may_be_empty:
        raise UserError(f'{place}: "{key}" is empty', "fill it in, or remove the entry")
    if re.search(r"[\ud800-\udfff]", value):
        raise UserError(f'{place}: "{key}" holds half of a character (a lone surrogate)', "remove it")
    return value


def _listed(keys: Iterable[str]) -> str:
    return f"{', '.join(map(_shown, keys)) or 'no keys':.200}"


def _shown(value: object) -> str:
    """Return a JSON value in one short line; of lists and objects only the kind, for they may be nested deeply."""
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, dict) else f"{json.dumps(value):.40}"
