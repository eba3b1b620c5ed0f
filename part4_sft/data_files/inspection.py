"""A file of pairs on one page, before anybody labels or trains: how it is read, how long it is, what may be wrong."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from part3_pretrain.runtime.cli import UserError, unescape
from part3_pretrain.runtime.printable import printable, printable_json
from part4_sft.config import DEFAULT_TEMPLATE
from part4_sft.data_files.findings import Finding, find_all, row_of
from part4_sft.data_files.layouts import Columns
from part4_sft.dataset import Pair
from part4_sft.formats import PairFile, load_pairs, read
from part4_sft.terminal.screen import columns_of, wrapped

WIDTH = 80  # columns
ENOUGH = 1000  # characters of either end of a text to fill the lines that are shown
ROWS_SHOWN, LINES_SHOWN, BAR = 10, 6, 36  # of a finding, of a run of tokens, columns of the longest bar


@dataclass(frozen=True)
class Reading:
    """How pairs are read.

    Args:
        unit: what lengths are counted in.
        lengths: of pairs, context and response together, by their places.
        first: the first pair, in runs of what is learnt and what is not.
        max_length: how much of a pair is kept; 0 where that is not known.
        cut, too_long: places of pairs whose context loses its beginning, and of those whose response has no room.
        every: which pairs are counted; 5 for each fifth.
    """

    unit: str
    lengths: dict[str, int]
    first: list[tuple[bool, str]]
    max_length: int = 0
    cut: Sequence[str] = ()
    too_long: Sequence[str] = ()
    every: int = 1


def read_without_model(pairs: Sequence[Pair], template: str | None = None) -> Reading:
    """Return how many words each pair has, and the first one in a template, as `--prompt-template` gives it."""
    lengths = {pair.place: len(pair.context.split()) + len(pair.response.split()) for pair in pairs}
    prompt = unescape(template or DEFAULT_TEMPLATE).replace("{context}", pairs[0].context)
    first = [(False, prompt), (True, f" {pairs[0].response}")]
    return Reading("words", lengths, first)


def inspect(
    path: Path,
    columns: Columns,
    test_data: Path | None,
    read_pairs: Callable[[Sequence[Pair]], Reading],
    model: str,
    as_json: bool,
) -> None:
    """Print what is in a file of pairs.

    Args:
        columns: what the file calls our keys.
        test_data: another file, whose contexts should not be in this one.
        read_pairs: how a model reads pairs.
        model: its name; "" where there is none.

    Raises:
        UserError: a file cannot be read; where only some of its entries cannot, what the others say is printed before.
    """
    file = read(path, columns)
    if not file.pairs:
        file.check()
    test_pairs = load_pairs(test_data, columns) if test_data else []
    refused: UserError | None = None
    try:
        reading = read_pairs(file.pairs)
    except UserError as error:  # the chat template refuses a conversation
        refused, reading, model = error, read_without_model(file.pairs), ""
    findings = [_unreadable(file), *_long(reading), *find_all(file.pairs, test_pairs)]
    if as_json:
        print(printable_json(_as_object(path, file, reading, model, findings)))
    else:
        for line in _page(path, file, reading, model, findings):
            print(line)
    file.check()
    if refused:
        raise refused


def _unreadable(file: PairFile) -> Finding:
    rows = {row_of(place): [str(error).removeprefix(f"{place}: ")] for place, error in file.faults}
    return Finding("unreadable", "are no pairs, so no run would begin", "Correct or remove them.", rows)


def _long(reading: Reading) -> Iterator[Finding]:
    if not reading.max_length:
        return
    lengths = {place: f"{length:,} {reading.unit}" for place, length in reading.lengths.items()}
    limit = f"into --max-length {reading.max_length} {reading.unit}"
    rows = {row_of(place): [lengths[place]] for place in reading.too_long}
    yield Finding(
        "too_long", f"responses that do not fit {limit}, so no run would begin", "Shorten or remove them.", rows
    )
    rows = {row_of(place): [lengths[place]] for place in reading.cut}
    cure = "Shorten them, or raise --max-length, if the beginning matters."
    yield Finding("cut", f"contexts that lose their beginning, to fit {limit}", cure, rows)


def _labels(pairs: Sequence[Pair]) -> Counter[int]:
    return Counter(pair.high_quality for pair in pairs)


def _histogram(lengths: Collection[int]) -> list[tuple[int, int]]:
    """Return how many lengths are at most each power of two, and more than the one before."""
    counts = Counter(max(3, (length - 1).bit_length()) for length in lengths)
    return [(2**power, counts[power]) for power in range(min(counts), max(counts) + 1)]


def _as_object(path: Path, file: PairFile, reading: Reading, model: str, findings: list[Finding]) -> dict[str, Any]:
    labels, lengths = _labels(file.pairs), reading.lengths.values()
    return {
        "file": str(path),
        "layout": str(file.layout),
        "left_out": list(file.layout.left_out),
        "pairs": len(file.pairs),
        "high_quality": {"1": labels[1], "0": labels[0]},
        "model": model or None,
        "first_pair": [{"learnt": is_learnt, "text": text} for is_learnt, text in reading.first],
        "lengths": {
            "unit": reading.unit,
            "counted": len(lengths),
            "median": median(lengths),
            "longest": max(lengths),
            "at_most": dict(_histogram(lengths)),
        },
        **{finding.key: list(finding.rows) for finding in findings},
        "groups": {finding.key: finding.groups for finding in findings if finding.groups},
    }


def _page(path: Path, file: PairFile, reading: Reading, model: str, findings: list[Finding]) -> Iterator[str]:
    pairs, labels, lengths = file.pairs, _labels(file.pairs), reading.lengths.values()
    yield from wrapped(f"{path}: {len(pairs):,} pairs, read as {file.layout}", WIDTH)
    if file.layout.left_out:
        yield from wrapped(f"left out: {', '.join(map(json.dumps, file.layout.left_out))}", WIDTH)
    told = f"high_quality: {labels[1]:,} pairs have 1 and train, {labels[0]:,} have 0 and do not"
    yield told if "high_quality" in file.layout.first else "no labels (high_quality), so all pairs train"

    yield ""
    yield from wrapped(f"The first pair, as {model or 'a model without a chat template'} reads it:", WIDTH)
    for is_learnt, text in reading.first:
        yield from _run("learnt" if is_learnt else "read", text)
    if not model:
        yield "Behind it, the token that ends a reply is learnt. --model counts in tokens."

    yield ""
    counted = "a pair" if reading.every == 1 else f"a pair, of each {reading.every}th"
    yield f"{reading.unit.capitalize()} {counted}: {median(lengths):,g} (median), at most {max(lengths):,}"
    bins = _histogram(lengths)
    most = max(count for _, count in bins)
    for upper, count in bins:
        bar = "#" * -(-BAR * count // most)
        yield f"  up to {upper:6,}  {bar:{BAR}}  {count:,}".rstrip()

    yield ""
    is_csv = file.pairs[0].place.rpartition(", ")[2].startswith("row")
    yield f"Rows are counted {'as in a spreadsheet: the header is row 1' if is_csv else 'from 1, one for each entry'}."
    for finding in findings:
        if finding.rows:
            yield from _paragraph(finding)
    nothing = ", ".join(_name(finding) for finding in findings if not finding.rows)
    yield from wrapped(f"None found (by patterns, which miss some): {nothing}.", WIDTH)


def _name(finding: Finding) -> str:
    return finding.key.replace("_", " ")


def _run(name: str, text: str) -> Iterator[str]:
    """Yield the lines of what is read or learnt, the first and the last of many, under its name."""
    if len(text) > 2 * ENOUGH:
        text = f"{text[:ENOUGH]} ... {text[-ENOUGH:]}"
    lines = wrapped(text.replace("\n", "\\n"), WIDTH - 11)
    if len(lines) > LINES_SHOWN:
        lines = [*lines[: LINES_SHOWN // 2], "...", *lines[-LINES_SHOWN // 2 + 1 :]]
    for number, line in enumerate(lines):
        yield f"  {'' if number else name:6} | {line}"


def _paragraph(finding: Finding) -> Iterator[str]:
    """Yield how many rows were found, which, one of them, and what to do."""
    yield from wrapped(f"{_name(finding).capitalize()}: {len(finding.rows):,} ({finding.told})", WIDTH)
    rows = [str(row) for row in finding.rows]
    more = f" and {len(rows) - ROWS_SHOWN:,} more (--json lists them)" if len(rows) > ROWS_SHOWN else ""
    row, (why, *others) = next(iter(finding.rows.items()))
    lines = wrapped(f"rows {', '.join(rows[:ROWS_SHOWN])}{more}", WIDTH - 2)
    lines += [_shortened(line, WIDTH - 2) for line in (f"row {row}: {why}", *others)]
    yield from (f"  {line}" for line in [*lines, *wrapped(finding.cure, WIDTH - 2)])


def _shortened(text: str, columns: int) -> str:
    """Return the text in one line of at most so many columns."""
    line = " ".join(printable(text[: 4 * columns]).split())
    if columns_of(line) <= columns and len(text) <= 4 * columns:
        return line
    while columns_of(line) > columns - 3:
        line = line[:-1]
    return f"{line}..."
