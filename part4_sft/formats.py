"""People's files become pairs: JSON arrays, JSONL and CSV, in the layouts that other tools use as well.

An entry is an object of one of these layouts (or, in CSV, a row under a header of these names), the same in the whole
file. Every layout may add "high_quality", 0 or 1, to all of its entries; without it every pair is of high quality.

    {"context", "response"}                 the layout that `dataset.save_pairs` writes
    {"prompt", "completion"}                TRL
    {"instruction", "output"}               Alpaca; an "input" that is not empty is the context's next line
    {"messages": [{"role", "content"}]}     chat, not in CSV; the last message, the assistant's, is the response
"""

from __future__ import annotations

import csv
import io
import json
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, cannot_read
from part4_sft.dataset import Pair

# The keys that an entry must have (that of the context before that of the response), and those that it may have.
LAYOUTS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("context", "response"): (),
    ("prompt", "completion"): (),
    ("instruction", "output"): ("input",),
    ("messages",): (),
}
KEYS = {"high_quality"}.union(*LAYOUTS, *LAYOUTS.values())
ROLES = ("system", "user", "assistant")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of CSV; the first is that where none is to be seen

_RECOGNISED = "; ".join(
    " + ".join(required) + "".join(f" (+ {key})" for key in optional) for required, optional in LAYOUTS.items()
)


class _Object(dict[str, Any]):
    """A JSON object that remembers which keys were written twice: a plain dict keeps the last value in silence."""

    keys_at = ""  # where its keys stand if not beside the values, as in CSV

    def __init__(self, items: Iterable[tuple[str, Any]]) -> None:
        items = list(items)
        super().__init__(items)
        self.repeated = [key for key, count in Counter(key for key, _ in items).items() if count > 1]


def load_pairs(path: Path) -> list[Pair]:
    """Reads and checks a file of pairs: CSV if its name ends in .csv or .tsv, else a JSON array or JSON lines.

    The layouts are those of `LAYOUTS`, each with or without "high_quality" (0 or 1). A chat's context is the only
    message before the response, or one line for each of several: "System: ...", "User: ...", "Assistant: ...".

    Raises:
        UserError: the file cannot be read, or an entry is not a pair; the message names the line, row or entry.
    """
    return _pairs(_entries(_decoded(_bytes(path), 0, path), path))


def relabel(path: Path, label: Callable[[Pair], int | None]) -> list[int]:
    """Sets "high_quality" of every entry of a file, whole or not at all, and leaves its layout and all else alone.

    Args:
        label: 0 or 1 for a pair, or None for what it has; that is 0 in a file whose entries had no such key.

    Returns:
        The labels, in the order of the file.

    Raises:
        UserError: the file cannot be read or written, or an entry is not a pair.
    """
    data = _bytes(path)
    text = _decoded(data, 0, path)
    entries = _entries(text, path)
    for (_, entry), pair in zip(entries, _pairs(entries)):
        found = label(pair)
        entry["high_quality"] = entry.get("high_quality", 0) if found is None else found
    # Without the mark, spreadsheets take a CSV file for one of an older encoding.
    encoding = "utf-8-sig" if _is_csv(path) and data.startswith(BOM_UTF8) else "utf-8"
    end = "\r\n" if re.match(r"[^\n]*\r\n", text) else "\n"
    with atomic_write(path) as temporary, temporary.open("w", encoding=encoding, newline="") as file:
        if _is_csv(path):
            _, header = next(_rows(text, path))
            added = ["high_quality"] * (len(entries[0][1]) > len(header))
            writer = csv.writer(file, delimiter=_delimiter(text), lineterminator=end)
            writer.writerows([header + added, *(entry.values() for _, entry in entries)])
        else:
            lines = [json.dumps(entry, ensure_ascii=False) for _, entry in entries]
            is_array = text.lstrip().startswith("[")
            lines = ["[", *(f"{line}," for line in lines[:-1]), lines[-1], "]"] if is_array else lines
            file.writelines(line + end for line in lines)
    return [entry["high_quality"] for _, entry in entries]


def pairs_of_lines(data: bytes, offset: int, line: int, first_line: bytes, path: Path) -> list[Pair]:
    """The pairs of some whole lines of a JSONL file, as `load_pairs` reads them.

    Args:
        offset, line: the first byte's place in the file, and the number of its line.
        first_line: the first line of the file that is not blank; all have its layout.

    Raises:
        UserError: a line is not a pair; the message names it.
    """
    text = _decoded(data, offset, path)
    first = _checked_object(_json(_decoded(first_line, 0, path), line, path), f"{path}, pair 1")
    return [
        _pair(_json(document, number, path), first, f"{path}, line {number}")
        for number, document in enumerate(text.split("\n"), start=line)
        if document.strip()
    ]


# ---------------------------------------------------------------------------------------------------- files


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise cannot_read(path, error) from error


def _entries(text: str, path: Path) -> list[tuple[str, Any]]:
    """The entries of a file, each behind the place where it stands, for messages; one at least."""
    if _is_csv(path):
        entries = _csv_entries(text, path)
    else:
        entries = [(f"{path}, pair {number}", entry) for number, entry in enumerate(_json_entries(text, path), start=1)]
    if not entries:
        raise UserError(f"{path} holds no pairs; name a file that holds some")
    return entries


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _decoded(data: bytes, offset: int, path: Path) -> str:
    """Bytes that begin at this place of the file as text, without the mark that a file may begin with."""
    try:
        text = data.decode("utf-8")  # not "utf-8-sig", which counts bytes after the mark
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {offset + error.start}); save it as UTF-8") from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def _json_entries(text: str, path: Path) -> list[Any]:
    if text.lstrip().startswith("["):
        return _json(text, 1, path)
    documents = text.split("\n")  # not splitlines(): U+2028 is an ordinary character of JSON
    return [_json(document, line, path) for line, document in enumerate(documents, start=1) if document.strip()]


def _json(document: str, line: int, path: Path) -> Any:
    """Reads one document, which begins in this line of the file."""
    try:
        return json.loads(document, object_pairs_hook=_Object)
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        wanted = "a file is a JSON array, or one JSON object a line, or CSV with a name that ends in .csv"
        raise UserError(f"{path} is not JSON: {place}: {error.msg}; {wanted}") from error
    except (RecursionError, ValueError) as error:
        fault = "is nested too deeply or holds a number of thousands of digits"
        raise UserError(f"{path}: what begins in line {line} {fault}, so it cannot be pairs") from error


def _delimiter(text: str) -> str:
    """What stands between the cells: semicolons, where spreadsheets keep the comma for decimals."""
    header = text.lstrip("\r\n").partition("\n")[0]
    return max(DELIMITERS, key=header.count)


def _rows(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not blank, and their numbers from 1 on, as spreadsheets count them."""
    if "\0" in text:
        raise UserError(f"{path} holds a NUL character, so it is not CSV; save it as CSV in UTF-8")
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a response may be longer than the usual 128 KiB
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        yield from ((number, row) for number, row in enumerate(reader, start=1) if any(map(str.strip, row)))
    except csv.Error as error:
        raise UserError(f"{path} is not CSV: line {reader.line_num}: {error}; look at its quotation marks") from error


def _csv_entries(text: str, path: Path) -> list[tuple[str, Any]]:
    (first, header), *rows = list(_rows(text, path)) or [(1, [])]
    folded = [re.sub(r"\s+", "_", name.strip().lower()) for name in header]
    names = [ours if ours in KEYS else theirs for ours, theirs in zip(folded, header)]
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{path}: give every column a name of its own; the header is {_listed(header)}")
    entries, keys_at = [], f"{path}, row {first}"
    for number, row in rows:
        if len(row) != len(header):
            fault = f"has {len(row)} cells, and the header has {len(header)}"
            advice = f'put "quotes" around a cell that holds {DELIMITERS[_delimiter(text)]}'
            raise UserError(f"{path}, row {number}: {fault}; {advice}")
        entry = _Object(zip(names, row))
        entry.keys_at = keys_at
        if entry.get("high_quality") in ("0", "1"):  # a cell is text, whatever it holds
            entry["high_quality"] = int(entry["high_quality"])
        entries.append((f"{path}, row {number}", entry))
    return entries


# ---------------------------------------------------------------------------------------------------- entries


def _pairs(entries: list[tuple[str, Any]]) -> list[Pair]:
    where, entry = entries[0]
    first = _checked_object(entry, where)
    return [_pair(entry, first, where) for where, entry in entries]


def _pair(value: object, first: _Object, where: str) -> Pair:
    """One entry as a pair; the file's layout is the one that has the most keys in common with the first entry."""
    entry = _checked_object(value, where)
    required = max(LAYOUTS, key=lambda keys: len(first.keys() & {*keys, *LAYOUTS[keys]}))
    optional = LAYOUTS[required]
    fault = _fault_of_keys(entry, required, (*optional, "high_quality"))
    if not fault and ("high_quality" in entry) != ("high_quality" in first):
        fault = '"high_quality" must be in all entries or in none'
    if fault:
        keys = _listed(entry) if entry is first else f"{_listed(entry)} where pair 1 has {_listed(first)}"
        is_one_text = "text" in entry and not entry.keys() & set(required)
        advice = 'split "text" into "messages", or into "prompt" and "completion"; ' if is_one_text else ""
        where = entry.keys_at or where
        raise UserError(f"{where}: {fault}; it has {keys}; {advice}the layouts, one for a whole file: {_RECOGNISED}")
    high_quality = entry.get("high_quality", 1)
    if type(high_quality) is not int or high_quality not in (0, 1):  # True == 1 == 1.0, but they are no ratings
        raise UserError(f'{where}: "high_quality" must be 0 or 1, not {_shown(high_quality)}')
    if required == ("messages",):
        context, response = _conversation(entry["messages"], where)
    else:
        context_key, response_key = required
        parts = [_text(entry, context_key, where)]
        parts += [_text(entry, key, where, may_be_empty=True) for key in optional if key in entry]
        context, response = "\n".join(filter(str.strip, parts)), _text(entry, response_key, where)
    return Pair(context, response, high_quality, where)


def _conversation(messages: object, where: str) -> tuple[str, str]:
    """Context and response of a chat."""
    if not isinstance(messages, list):
        wanted = 'a list of objects {"role", "content"}, in a JSON or JSONL file'
        raise UserError(f'{where}: "messages" must be {wanted}, not {_shown(messages)}')
    turns = []
    for number, value in enumerate(messages, start=1):
        place = f"{where}, message {number}"
        message = _checked_object(value, place)
        if fault := _fault_of_keys(message, ("role", "content"), ()):
            raise UserError(f"{place}: {fault}; it has {_listed(message)} and must have role + content")
        if message["role"] not in ROLES:
            raise UserError(f'{place}: "role" must be one of {", ".join(ROLES)}, not {_shown(message["role"])}')
        turns.append((message["role"], _text(message, "content", place)))
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise UserError(f'{where}: "messages" must be one message or more, and then a last one from the assistant')
    *before, (_, response) = turns
    if len(before) == 1:
        return before[0][1], response
    return "\n".join(f"{role.capitalize()}: {content}" for role, content in before), response


def _checked_object(value: object, where: str) -> _Object:
    if not isinstance(value, _Object):
        raise UserError(f'{where}: must be an object, {{"key": value, ...}}, not {_shown(value)}')
    if value.repeated:
        raise UserError(f"{where}: the key {_shown(value.repeated[0])} is there twice; keep one of them")
    return value


def _fault_of_keys(entry: _Object, required: tuple[str, ...], optional: tuple[str, ...]) -> str:
    """What is wrong with the entry's keys; empty if nothing is."""
    for key in required:
        if key not in entry:
            return f'the key "{key}" is missing'
    unknown = [key for key in entry if key not in required + optional]
    return f"unknown key {_listed(unknown[:3])}: remove it" if unknown else ""


def _text(entry: _Object, key: str, where: str, may_be_empty: bool = False) -> str:
    value = entry[key]
    if not isinstance(value, str):
        advice = '; a conversation goes into "messages"' if isinstance(value, list) and key != "content" else ""
        raise UserError(f'{where}: "{key}" must be text, not {_shown(value)}{advice}')
    if not value.strip() and not may_be_empty:
        raise UserError(f'{where}: "{key}" is empty; fill it in, or remove the entry')
    if re.search(r"[\ud800-\udfff]", value):
        raise UserError(f'{where}: "{key}" holds half of a character (a lone surrogate); remove it')
    return value


def _listed(keys: Iterable[str]) -> str:
    return f"{', '.join(map(_shown, keys)) or 'no keys':.200}"


def _shown(value: object) -> str:
    """A JSON value in one short line; lists and objects by their kind alone, for they may be nested deeply."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    return f"{json.dumps(value):.40}"
