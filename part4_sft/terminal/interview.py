"""Asks a person about one item after another by single keys, and keeps every key in a journal.

The journal is a file with one JSON object a line, to which lines are only ever appended. It is the truth: the answers
and the position are what its keys, pressed once more, come to. So nothing is lost when the terminal goes, and work
resumes where it stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import chain, pairwise
from pathlib import Path
from shutil import get_terminal_size
from statistics import median

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import cannot_read
from part4_sft.terminal.screen import BOLD, DIM, full_screen, read_keys, show, styled, wrapped

BACK, SKIP, UNDO, QUIT, NEXT_PAGE = "-", "s", "u", "q", " "
COMMANDS = {BACK: "back", SKIP: "skip", UNDO: "undo", QUIT: "quit"}  # keys that are in the journal beside the answers
OLD_BACK = "b"  # in journals of old, and under people's fingers; no command where it is an answer, as in a blind test
SITTING_BEGINS = "begin"  # stands in the journal before the keys of each sitting


@dataclass(frozen=True)
class Item:
    """What is asked about: texts, each under a heading, and where they are from, such as "pair 3"."""

    parts: tuple[tuple[str, str], ...]
    place: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """A hash of the texts, so the same wherever they stand in a file."""
        return sha256(repr(self.parts).encode()).hexdigest()[:16]


class Answers:
    """What keys have come to so far, of which `choices` are answers, on the items with these ids, all different."""

    def __init__(self, ids: list[str], choices: Iterable[str]) -> None:
        self.ids, self.choices = ids, set(choices)
        self.positions = {id: position for position, id in enumerate(ids)}
        self.given: dict[str, str] = {}  # id: key
        self.position = 0  # len(ids) where all are answered
        self.undoable: list[tuple[str, str | None]] = []  # ids, and the answers that they had before
        self.again: set[str] = set()  # ids of items to ask about once more, though they may have an answer

    @property
    def current_id(self) -> str:
        """The id of the item that is asked about now; "" at the end."""
        return self.ids[self.position] if self.position < len(self.ids) else ""

    def press(self, id: str, key: str) -> None:
        """Apply a key that was pressed while the item with this id (or "", the end) was asked about."""
        if key == SITTING_BEGINS:
            self.undoable.clear()  # earlier answers have been used since: they can be changed, but not undone
        if id and id not in self.positions:  # the file has changed since
            return
        position = self.positions.get(id, len(self.ids))
        if key in self.choices and id:
            self.undoable.append((id, self.given.get(id)))
            self.given[id] = key
            self.again.discard(id)
            self.position = self._next_unanswered(position)
        elif key == SKIP:
            self.position = self._next_unanswered(position)
        elif key in (BACK, OLD_BACK):
            self.position = max(position - 1, 0)
        elif key == UNDO and self.undoable:
            id, before = self.undoable.pop()
            del self.given[id]
            if before is not None:
                self.given[id] = before
            self.position = self.positions[id]

    def ask_again(self, ids: Iterable[str]) -> None:
        """Go to the first of these items, and ask about each of them until it is answered anew."""
        self.again = set(ids)
        self.position = min((self.positions[id] for id in self.again), default=self.position)

    def _next_unanswered(self, position: int) -> int:
        """Return the next position to ask about, going round, so that what was skipped comes again."""
        in_turn = self.ids[position + 1 :] + self.ids[: position + 1]
        asked = (self.positions[id] for id in in_turn if id not in self.given or id in self.again)
        return next(asked, len(self.ids))


def replay(items: list[Item], journal: Path, choices: Iterable[str]) -> Answers:
    """Press the keys of a journal once more, but for lines that a power cut broke; raise UserError if unreadable."""
    answers = Answers(list(dict.fromkeys(item.id for item in items)), choices)
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


def stacked(item: Item, columns: int) -> list[str]:
    """Return the lines that show the texts of an item one below another, each under its heading."""
    lines = [line for heading, text in item.parts for line in (styled(heading, BOLD), *wrapped(text, columns), "")]
    return lines[:-1]


def interview(
    items: list[Item],
    journal: Path,
    choices: dict[str, str],
    title: str,
    progress: Callable[[dict[str, str]], str],
    lay_out: Callable[[Item, int], list[str]] = stacked,
    again: Iterable[str] = (),
) -> None:
    """Ask about the items until the person quits; append every key to the journal before it has any effect.

    Args:
        choices: a word for each key that is an answer.
        progress: says how far the answers given (key by id) have come.
        lay_out: returns the lines that show an item in so many columns.
        again: ids of items to begin with, though they may have been answered.

    Raises:
        UserError: there is no terminal, or the journal cannot be written or is in use.
    """
    item_by_id = {item.id: item for item in items}
    answers = replay(items, journal, choices)
    answers.ask_again(again)
    answer_times: list[float] = []
    page = 0
    try:
        with full_screen(), journal.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if file.tell():
                file.write(b"\n")  # the last line may not be whole
            for key in chain([SITTING_BEGINS], read_keys()):
                id = answers.current_id if key != SITTING_BEGINS else ""
                page = page + 1 if key == NEXT_PAGE else 0
                if key in (SITTING_BEGINS, *choices, *COMMANDS, OLD_BACK):
                    press = {"at": round(time.time(), 1), "item": id, "key": key}
                    file.write(json.dumps(press).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
                    answers.press(id, key)
                if key in choices and id:
                    answer_times.append(time.monotonic())
                if key == QUIT:
                    return
                id = answers.current_id
                item = item_by_id.get(id)
                status = progress(answers.given) + pace(answer_times, len(answers.ids) - len(answers.given))
                head = f"{title}, {item.place}" if item else title
                head += f" (you said {answers.given[id]})" if id in answers.given else ""
                draw_page(item, choices, head, status, page, lay_out)
    except KeyboardInterrupt as error:
        raise type(error)(f"{journal} holds what was answered; the same command goes on") from error
    except BlockingIOError as error:
        raise UserError(f"{journal} is in use", "quit the other one, or choose another --annotator") from error
    except OSError as error:
        raise UserError(f"cannot write {journal}: {error.strerror}", "what was answered before is kept") from error


def draw_page(
    item: Item | None,
    choices: dict[str, str],
    head: str,
    status: str,
    page: int,
    lay_out: Callable[[Item, int], list[str]],
) -> None:
    """Fill the screen with a page of the item, the keys and the status; of no item, say that all are answered."""
    columns, lines = get_terminal_size()
    columns -= 1  # in a line that is full to the last column, some terminals break once more
    body = lay_out(item, columns) if item else [f"That was the last one. Thank you! Press {QUIT} to leave."]
    answers = "  ".join(f"{key} {word}" for key, word in choices.items()) if item else ""
    commands = "  ".join(f"{key} {word}" for key, word in COMMANDS.items() if key not in choices)
    foot = [line for text in (answers, f"{commands}  space next page", status) for line in wrapped(text, columns)]
    room = max(1, lines - len(foot) - 4)
    pages = [body[start : start + room] for start in range(0, len(body), room)]
    page %= len(pages)
    if len(pages) > 1:
        head += f" page {page + 1} of {len(pages)}, space for the next"
    blank = [""] * (room - len(pages[page]))
    show([styled(wrapped(head, columns)[0], DIM), "", *pages[page], *blank, "", *foot])


def pace(times: list[float], remaining: int) -> str:
    """Say how many answers a minute there are now and how long the rest will take; "" before the second answer."""
    seconds_between = [after - before for before, after in pairwise(times)][-20:]
    if not seconds_between or not remaining:
        return ""
    seconds = max(median(seconds_between), 0.01)
    minutes = round(remaining * seconds / 60)
    left = f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(1, minutes)} min"
    return f"; {60 / seconds:.0f} a minute, {left} left"
