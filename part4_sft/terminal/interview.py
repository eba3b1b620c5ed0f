"""Asks a person about one item after another by single keys; every key is kept in a journal.

The journal, a file of one JSON object a line to which is only ever appended, is the truth: answers and place follow
from its keys, pressed once more. So nothing is lost, whenever the terminal goes, and work resumes where it stopped.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import re
import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from getpass import getuser
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import cannot_read
from part4_sft.terminal.screen import BOLD, DIM, full_screen, show, size, styled, wrapped
from part4_sft.terminal.screen import keys as typed

BACK, SKIP, UNDO, QUIT, MORE = "b", "s", "u", "q", " "
BEGIN = "begin"  # in the journal, stands before the keys of a sitting
MOVES = {BACK: "back", SKIP: "skip", UNDO: "undo", QUIT: "quit"}
RECENT = 20  # answers whose pace counts


def annotator(name: str) -> str:
    """A person's name, which becomes a part of a file's name. Raises ArgumentTypeError where it cannot be one."""
    if not re.fullmatch(r"[\w-]{1,100}", name):
        raise ArgumentTypeError(f"{name!r} must be letters, digits, - and _")
    return name


def login_name() -> str:
    """The person's name on this machine, as a name of an annotator."""
    try:
        return re.sub(r"[^\w-]", "_", getuser())
    except (OSError, KeyError):  # a container may run as a number that has no name
        return "somebody"


@dataclass(frozen=True)
class Item:
    """What is asked about: texts, each under a heading."""

    parts: tuple[tuple[str, str], ...]

    @property
    def id(self) -> str:
        """The same for the same texts, wherever they stand in a file."""
        return sha256(repr(self.parts).encode()).hexdigest()[:16]


class Answers:
    """What keys have come to so far: the answer to each item, and the place of the item that is asked about now.

    Args:
        ids: of the items, all different.
        keys: those that are answers.
    """

    def __init__(self, ids: list[str], keys: Iterable[str]) -> None:
        self.ids, self.keys = ids, set(keys)
        self.places = {id: place for place, id in enumerate(ids)}
        self.given: dict[str, str] = {}  # id: key
        self.place = 0  # len(ids) where all are answered
        self.changes: list[tuple[str, str | None]] = []  # ids, and the answers that they had before

    def press(self, id: str, key: str) -> None:
        """A key that was pressed while the item with this id (or "", the end) was asked about."""
        if key == BEGIN:
            self.changes.clear()  # what an earlier sitting came to has been used: it can be changed, but not undone
        if id and id not in self.places:  # the file has changed since
            return
        place = self.places.get(id, len(self.ids))
        if key in self.keys and id:
            self.changes.append((id, self.given.get(id)))
            self.given[id] = key
            self.place = self._unanswered(place)
        elif key == SKIP:
            self.place = self._unanswered(place)
        elif key == BACK:
            self.place = max(place - 1, 0)
        elif key == UNDO and self.changes:
            changed, before = self.changes.pop()
            self.given.pop(changed)
            if before is not None:
                self.given[changed] = before
            self.place = self.places[changed]

    def _unanswered(self, after: int) -> int:
        """The next place without an answer, going round, so that what was skipped comes again."""
        for place in [*range(after + 1, len(self.ids)), *range(min(after + 1, len(self.ids)))]:
            if self.ids[place] not in self.given:
                return place
        return len(self.ids)


def journal_of(path: Path, annotator: str) -> Path:
    """Where the keys of this person are kept that concern this file."""
    return path.with_name(f"{path.name}.{annotator}.jsonl")


def journals(path: Path) -> dict[str, Path]:
    """All journals beside a file, by annotator."""
    found = sorted(path.parent.glob(f"{glob.escape(path.name)}.*.jsonl"))
    return {journal.name[len(path.name) + 1 : -len(".jsonl")]: journal for journal in found}


def replay(items: list[Item], journal: Path, keys: Iterable[str]) -> Answers:
    """Presses the keys of a journal once more; a line that is not whole, as a power cut leaves it, counts as none.

    Raises UserError where the journal cannot be read.
    """
    answers = Answers(list(dict.fromkeys(item.id for item in items)), keys)
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace").split("\n") if journal.exists() else []
    except OSError as error:
        raise cannot_read(journal, error) from error
    for line in lines:
        try:
            press = json.loads(line)
            answers.press(press["item"], press["key"])
        except (ValueError, TypeError, KeyError):
            continue
    return answers


def interview(
    items: list[Item], journal: Path, keys: dict[str, str], title: str, progress: Callable[[dict[str, str]], str]
) -> None:
    """Asks until the person quits; who is asked already knows what the keys are for.

    Args:
        journal: to which every key is appended before anything else is done with it.
        keys: those that are answers, and a word for each.
        progress: says in a few words how far the answers given (key by id) have come.

    Raises:
        UserError: there is no terminal, or the journal cannot be written or is in use.
    """
    by_id = {item.id: item for item in items}
    answers = replay(items, journal, keys)
    times: list[float] = []
    page = 0

    def draw() -> str:
        id = answers.ids[answers.place] if answers.place < len(answers.ids) else ""
        status = progress(answers.given) + _pace(times, len(answers.ids) - len(answers.given))
        _draw(by_id.get(id), keys, answers.given.get(id), title, status, page)
        return id

    try:
        with full_screen(), journal.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

            def press(id: str, key: str) -> None:
                file.write(json.dumps({"at": round(time.time(), 1), "item": id, "key": key}).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                answers.press(id, key)

            file.write(b"\n" * bool(file.tell()))  # the last line may not be whole
            press("", BEGIN)
            id = draw()
            for key in typed():
                page = page + 1 if key == MORE else 0
                if key in keys or key in MOVES:
                    press(id, key)
                    if key in keys and id:
                        times.append(time.monotonic())
                if key == QUIT:
                    return
                id = draw()
    except KeyboardInterrupt as error:
        raise type(error)(f"{journal} holds what was answered; the same command goes on") from error
    except BlockingIOError as error:
        raise UserError(f"{journal} is in use; quit the other one, or choose another --annotator") from error
    except OSError as error:
        raise UserError(f"cannot write {journal}: {error.strerror}; what was answered before is kept") from error


def _draw(item: Item | None, keys: dict[str, str], given: str | None, title: str, status: str, page: int) -> None:
    columns, lines = size()
    body: list[str] = []
    for heading, text in item.parts if item else ():
        body += [styled(heading, BOLD), *wrapped(text, columns - 1), ""]
    if item is None:
        body = [f"That was the last one. Thank you! Press {QUIT} to leave."]
    answers = "  ".join(f"{key} {word}" for key, word in keys.items()) if item else ""
    moves = "  ".join([*(f"{key} {word}" for key, word in MOVES.items() if key not in keys), "space next page"])
    foot = [*wrapped(answers, columns - 1), *wrapped(moves, columns - 1), *wrapped(status, columns - 1)]
    room = max(1, lines - len(foot) - 4)
    pages = [body[start : start + room] for start in range(0, len(body), room)]
    shown = pages[page % len(pages)]
    note = f"(you said {given})" if given else ""
    if len(pages) > 1:
        note += f" page {page % len(pages) + 1} of {len(pages)}, space for the next"
    blank = [""] * (room - len(shown))
    show([styled(f"{title} {note}"[: columns - 1], DIM), "", *shown, *blank, "", *foot])


def _pace(times: list[float], remaining: int) -> str:
    """Answers a minute now and the time that the rest will take, once there is something to go by."""
    gaps = [after - before for before, after in pairwise(times)][-RECENT:]
    if not gaps or not remaining:
        return ""
    seconds = max(median(gaps), 0.01)
    minutes = round(remaining * seconds / 60)
    left = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
    return f"; {60 / seconds:.0f} a minute, {left} left"
