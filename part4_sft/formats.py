"""Read people's files of pairs: JSON arrays, JSONL and CSV. What an entry may be tells `data_files/layouts.py`."""

from __future__ import annotations

import csv
import io
import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, cannot_read
from part3_pretrain.runtime.log import note
from part4_sft.data_files.layouts import KNOWN_KEYS, Columns, Layout, Object, listed, with_turns
from part4_sft.dataset import Pair, list_others

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of CSV; the first is taken where a header has none


@dataclass(frozen=True)
class PairFile:
    """What is in a file: its layout, its pairs, and place and error of each entry that is no pair."""

    layout: Layout
    pairs: list[Pair]
    faults: list[tuple[str, UserError]]

    def check(self) -> None:
        """Raise the UserError of the first entry that is no pair, and name the others."""
        if not self.faults:
            return
        (_, error), *others = self.faults
        places = list_others([place for place, _ in others])
        raise UserError(f"{error}; nor can be read: {places}") if places else error


def load_pairs(path: Path, columns: Columns = ()) -> list[Pair]:
    """Read and check a file of pairs: CSV if its name ends in .csv or .tsv, else a JSON array or JSON lines.

    `columns` are what the file calls our keys, as `--columns` gives them. Those that nobody needs are noted.

    Raises:
        UserError: the file cannot be read, or an entry is not a pair; the message names the line, row or entry.
    """
    file = read(path, columns)
    file.check()
    note_left_out(file, path)
    return file.pairs


def read(path: Path, columns: Columns = ()) -> PairFile:
    """Read a file of pairs. Raises UserError where that cannot be done, or the first entry is of no layout."""
    return _pair_file(_load(path, columns)[1], columns)


def note_left_out(file: PairFile, path: Path) -> None:
    """Note which keys are not read, if any are not."""
    if file.layout.left_out:
        note(f"{path} is read as {file.layout}; left out: {listed(file.layout.left_out)}")


def relabel(path: Path, label: Callable[[Pair], int | None], columns: Columns = ()) -> list[int]:
    """Set "high_quality" of every entry of a file, whole or not at all, and leave its layout and all else alone.

    `label` gives 0, 1, or None for what a pair has, which is 0 in a file without such a key. Returns all labels.

    Raises:
        UserError: the file cannot be read or written, or an entry is not a pair.
    """
    text, entries = _load(path, columns)
    before = _pair_file(entries, columns)
    before.check()
    key = before.layout.name("high_quality")
    for (_, entry), pair in zip(entries, before.pairs):
        new_label = label(pair)
        entry[key] = entry.get(key, 0) if new_label is None else new_label
    # Without the byte order mark, spreadsheets take a CSV file for one of an older encoding.
    encoding = "utf-8-sig" if _is_csv(path) and path.read_bytes().startswith(BOM_UTF8) else "utf-8"
    line_end = "\r\n" if re.match(r"[^\n]*\r\n", text) else "\n"
    with atomic_write(path) as temporary, temporary.open("w", encoding=encoding, newline="") as file:
        if _is_csv(path):
            _, header = next(_rows(text, path))
            if len(header) < len(entries[0][1]):
                header.append(key)
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
    return [entry[key] for _, entry in entries]


def pairs_of_lines(
    data: bytes, offset: int, line: int, first_line: bytes, path: Path, columns: Columns = ()
) -> list[Pair]:
    """Return the pairs of lines as `read_lines` reads them, or raise a UserError that names a line that is none."""
    file = read_lines(data, offset, line, first_line, path, columns)
    file.check()
    return file.pairs


def read_lines(data: bytes, offset: int, line: int, first_line: bytes, path: Path, columns: Columns = ()) -> PairFile:
    """Read some whole lines of a JSONL file, which begin at this offset and line of it.

    All have the layout of the file's first line that is not blank. Raises UserError where a line is no JSON.
    """
    layout = Layout.of(_parse_json(_decode(first_line, 0, path), line, path), f"{path}, pair 1", columns)
    lines = _json_lines(_decode(data, offset, path), line, path)
    return _pairs_in(layout, ((f"{path}, line {number}", value) for number, value in lines))


def _load(path: Path, columns: Columns) -> tuple[str, list[tuple[str, Any]]]:
    """Return the text of a file and its entries, one at least, each behind its place, for messages."""
    try:
        text = _decode(path.read_bytes(), 0, path)
    except OSError as error:
        raise cannot_read(path, error) from error
    if _is_csv(path):
        entries = _csv_entries(text, path, columns)
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
        raise UserError(
            f"{path} is not UTF-8 text (byte {offset + error.start})", "save it as UTF-8, a spreadsheet as CSV"
        ) from error
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
        return json.loads(document, object_pairs_hook=Object)
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


def _csv_entries(text: str, path: Path, columns: Columns) -> list[tuple[str, Any]]:
    rows = list(_rows(text, path))
    if len(rows) < 2:  # a header alone
        return []
    (first, header), *rows = rows
    known = {_folded(name): name for name in (*KNOWN_KEYS, *(column.partition("=")[2] for column in columns))}
    names = [known.get(_folded(name), name) for name in header]
    names[0] = names[0] or "column 1"  # numbers of rows, as pandas writes them
    if "" in names or len(set(names)) < len(names):
        raise UserError(f"{path}: give every column a name of its own; the header is {listed(header)}")
    label = Layout.of(Object(zip(names, names)), f"{path}, row {first}", columns).name("high_quality")
    uneven = [(number, len(row)) for number, row in rows if len(row) != len(header)]
    if uneven:
        (number, cells), *others = uneven
        cause = f"{path}, row {number}: has {cells} cells, and the header has {len(header)}"
        if others:
            cause += f"; others: {list_others([f'row {other} ({count})' for other, count in others])}"
        raise UserError(cause, f'put "quotes" around a cell that holds {DELIMITERS[_delimiter(text)]}')
    entries = []
    for number, row in rows:
        place = f"{path}, row {number}"
        entry = Object(zip(names, row))
        if entry.get(label) in ("0", "1"):  # a cell is text, whatever it holds
            entry[label] = int(entry[label])
        entries.append((place, entry))
    return entries


def _folded(name: str) -> str:
    return re.sub(r"\s+", "_", name.strip().lower())


def _pair_file(entries: list[tuple[str, Any]], columns: Columns) -> PairFile:
    place, first = entries[0]
    return _pairs_in(Layout.of(first, place, columns), entries)


def _pairs_in(layout: Layout, entries: Iterable[tuple[str, Any]]) -> PairFile:
    pairs, faults = [], []
    for place, value in entries:
        try:
            pairs.append(layout.pair(value, place))
        except UserError as error:
            faults.append((place, error))
    return PairFile(layout, with_turns(pairs), faults)
