"""What may be wrong with the pairs of a file: which rows, an example, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple
from unicodedata import category, normalize

from part4_sft.data_files.personal import (
    Span,
    card_numbers,
    email_addresses,
    phone_numbers,
    placeholders,
    signatures,
)
from part4_sft.dataset import Pair

_OPEN_END = re.compile(r"[\w,;(-]\s*\Z")
MOST_UNFINISHED = 0.1  # of the responses
SHORT = 20  # characters; a response that has fewer, and less than a fifth of the usual, may be broken off


class Finding(NamedTuple):
    """One kind of fault.

    Args:
        key: its name in the JSON.
        told: what the rows are or do, such as "repeat an earlier row".
        cure: what to do.
        rows: why, in a line or several, by the number of the row as messages of `formats.py` have it.
        groups: the rows that belong together, where it takes several.
    """

    key: str
    told: str
    cure: str
    rows: dict[int, list[str]]
    groups: Sequence[list[int]] = ()


def find_all(pairs: Sequence[Pair], test_pairs: Sequence[Pair]) -> list[Finding]:
    """Return every kind of finding that was looked for, also those that no row has."""
    shared = [_shared(pairs, test_pairs)] if test_pairs else []
    of_responses = _short(pairs), _unfinished(pairs)
    return [*_repeated(pairs), _contradictions(pairs), *_in_texts(pairs), *of_responses, *shared]


def row_of(place: str) -> int:
    """Return the number in the place of a pair, such as "pairs.csv, row 7"."""
    return int(re.search(r"(\d+)\Z", place)[1])  # type: ignore[index]


class _Folding(dict[int, "str | int | None"]):
    """What `str.translate` makes of each character: a digit 0, and nothing of punctuation, symbols and spaces."""

    def __missing__(self, code: int) -> str | int | None:
        kind = category(chr(code))
        self[code] = "0" if kind == "Nd" else None if kind[0] in "PSZC" else code
        return self[code]


class _FoldingButDigits(_Folding):
    def __missing__(self, code: int) -> str | int | None:
        return code if category(chr(code)) == "Nd" else super().__missing__(code)


_FOLDING, _FOLDING_BUT_DIGITS = _Folding(), _FoldingButDigits()


def fold(text: str) -> str:
    """Return the text without case, punctuation and spaces, with 0 for each number; what is left of none, as it is."""
    return re.sub("0+", "0", normalize("NFKC", text).casefold().translate(_FOLDING)) or text


def fold_but_digits(text: str) -> str:
    """Return the same with numbers as they are."""
    return normalize("NFKC", text).casefold().translate(_FOLDING_BUT_DIGITS) or text


def _repeated(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Yield the rows that say what an earlier one says, letter by letter, and those that nearly do."""
    exact: dict[tuple[str, str], int] = {}
    folded: dict[tuple[str, str], int] = {}
    duplicates: dict[int, list[str]] = {}
    near: dict[int, list[str]] = {}
    groups: dict[int, list[int]] = {}  # by their first row
    near_groups: dict[int, list[int]] = {}
    for pair in pairs:
        row, key, like = row_of(pair.place), (pair.context, pair.response), (fold(pair.context), fold(pair.response))
        if key in exact:
            duplicates[row] = [f"as row {exact[key]}: {pair.context}"]
            groups.setdefault(exact[key], [exact[key]]).append(row)
        elif like in folded:
            near[row] = [f"nearly as row {folded[like]}: {pair.context}"]
            near_groups.setdefault(folded[like], [folded[like]]).append(row)
        exact.setdefault(key, row)
        folded.setdefault(like, row)
    yield Finding(
        "duplicates",
        "repeat an earlier row",
        "Remove them: they weigh double, and copies may come to train and test both.",
        duplicates,
        [*groups.values()],
    )
    yield Finding(
        "near_duplicates",
        "repeat an earlier row but for case, digits and punctuation",
        "Keep the best of each; templates filled in anew teach little.",
        near,
        [*near_groups.values()],
    )


def _contradictions(pairs: Sequence[Pair]) -> Finding:
    """Return the rows of like contexts that have different responses.

    Where contexts are equal but for case and punctuation, numbers count: 14 days are not 30.
    """
    rows: dict[int, list[str]] = {}
    groups: dict[int, list[int]] = {}  # by their first row
    for of_text, of_answer in ((fold, fold), (fold_but_digits, fold_but_digits)):
        alike: dict[str, list[Pair]] = {}
        for pair in pairs:
            alike.setdefault(of_text(pair.context), []).append(pair)
        for group in (group for group in alike.values() if len(group) > 1):
            first, *_ = group
            answer = of_answer(first.response)
            other = next((pair for pair in group if of_answer(pair.response) != answer), None)
            if other:
                groups[row_of(first.place)] = [row_of(pair.place) for pair in group]
                for pair in group:
                    against = other if of_answer(pair.response) == answer else first
                    answers = [f"-> {pair.response}", f"row {row_of(against.place)} -> {against.response}"]
                    rows[row_of(pair.place)] = [pair.context, *answers]
    return Finding(
        "contradictions",
        "have a context like another's, and a different response",
        "Are both right? If not, remove the wrong one; if so, one is enough.",
        dict(sorted(rows.items())),
        [*groups.values()],
    )


_KINDS: tuple[tuple[str, str, str, Callable[[str], Iterator[Span]], bool], ...] = (  # the last: in the context as well
    (
        "placeholders",
        "nobody has filled them in",
        "Fill them in, in context and response alike, or the model will write them.",
        placeholders,
        True,
    ),
    (
        "email_addresses",
        "in the context or the response",
        "Replace them, unless it is your own that customers should be told.",
        email_addresses,
        True,
    ),
    (
        "phone_numbers",
        "in the context or the response",
        "Replace them, unless it is your own that customers should be told.",
        phone_numbers,
        True,
    ),
    (
        "card_numbers",
        "in the context or the response",
        "Remove them: what is learnt can be said to anybody.",
        card_numbers,
        True,
    ),
    (
        "signatures",
        "at the end of the response",
        "Cut them off, or the model will sign with that name.",
        signatures,
        False,
    ),
)


def _in_texts(pairs: Sequence[Pair]) -> Iterator[Finding]:
    for key, told, cure, find, in_context in _KINDS:
        rows = {}
        for pair in pairs:
            for text in (pair.context, pair.response) if in_context else (pair.response,):
                if span := next(find(text), None):
                    rows[row_of(pair.place)] = [_excerpt(text, *span)]
                    break
        yield Finding(key, told, cure, rows)


def _excerpt(text: str, start: int, end: int) -> str:
    """Return what was found, with a few words around it."""
    before, after = text[max(0, start - 25) : start], text[end : end + 25]
    return ("..." if start > 25 else "") + before + text[start : min(end, start + 60)] + after


def _short(pairs: Sequence[Pair]) -> Finding:
    limit = min(SHORT, median(len(pair.response) for pair in pairs) / 5) if pairs else 0
    rows = {row_of(pair.place): [pair.response] for pair in pairs if len(pair.response.strip()) < limit}
    told = "beside the others of this file"
    return Finding("short_responses", told, "Are they whole? Complete or remove them.", rows)


def _unfinished(pairs: Sequence[Pair]) -> Finding:
    """Return the rows whose response ends in a word or behind a comma, where nearly all others end a sentence."""
    rows = {row_of(pair.place): [f"...{pair.response[-60:]}"] for pair in pairs if _OPEN_END.search(pair.response)}
    if len(rows) > MOST_UNFINISHED * len(pairs):  # a habit of this file
        rows = {}
    told = "end without a full stop or the like, unlike nearly all others"
    return Finding("unfinished_responses", told, "Are they whole? Complete or remove them.", rows)


def _shared(pairs: Sequence[Pair], test_pairs: Sequence[Pair]) -> Finding:
    rows_of_test = {fold(pair.context): row_of(pair.place) for pair in test_pairs}
    rows = {
        row_of(pair.place): [f"as row {rows_of_test[like]} of the test: {pair.context}"]
        for pair in pairs
        if (like := fold(pair.context)) in rows_of_test
    }
    told = "have a context like one of the test data"
    return Finding("shared_with_test", told, "Remove them from one of the files: they are known by heart.", rows)
