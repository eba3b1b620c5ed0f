"""A person at a terminal: single keys in, screens out. Works over ssh and in 80 columns by 24 lines."""

from __future__ import annotations

import os
import re
import sys
import termios
import textwrap
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import zip_longest
from unicodedata import category, east_asian_width

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.printable import printable

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
GAP = "   "  # between texts side by side
_ALTERNATE_SCREEN, _MAIN_SCREEN, _CLEAR = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[2J"


@contextmanager
def full_screen() -> Iterator[None]:
    """Switch to the alternate screen, where keys arrive one by one and unechoed; raise UserError without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("this asks a person and needs a terminal", "start it in one, without pipes or redirection")
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        settings = termios.tcgetattr(sys.stdin)
        settings[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the alternate screen on, and the keys unseen
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        print(end=_ALTERNATE_SCREEN, flush=True)
        yield
    finally:
        print(end=_MAIN_SCREEN, flush=True)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def read_keys() -> Iterator[str]:
    """Yield characters as they are typed until the terminal is closed; leave out arrows and other escape sequences."""
    with suppress(OSError):
        while data := os.read(sys.stdin.fileno(), 1024):
            yield from re.sub(r"\x1b(\[[0-9;]*[@-~]|O.)?", "", data.decode("utf-8", "replace"))


def show(lines: list[str]) -> None:
    """Make these lines the whole screen, in one write, so that nothing flickers over a slow line."""
    print(end=_CLEAR + "\n".join(lines), flush=True)


def columns_of(text: str) -> int:
    """Return how many columns a text takes: two for each Chinese letter or emoji, none for a combining accent."""
    # U+FE0F is a mark too, but widens what it follows.
    letters = (letter for letter in text if category(letter) not in ("Mn", "Me") or letter == "\ufe0f")
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in letters)


def wrapped(text: str, columns: int) -> list[str]:
    """Break the text into lines of at most so many columns; see `printable` for what could steer the terminal."""
    wrapper = _Wrapper(columns)
    return [line for part in printable(text).split("\n") for line in wrapper.wrap(part) or [""]]


class _Chunk(str):
    def __len__(self) -> int:
        return columns_of(self)


class _Wrapper(textwrap.TextWrapper):
    """Counts columns instead of characters, and may break beside each wide one, for Chinese has no spaces."""

    def _split(self, text: str) -> list[str]:
        apart = "".join(f"\0{letter}\0" if columns_of(letter) > 1 else letter for letter in text)
        split = super()._split
        return [_Chunk(chunk) for part in apart.split("\0") for chunk in split(part)]


def side_by_side(texts: list[str], width: int) -> list[str]:
    """Return lines that hold the texts beside each other, each wrapped in so many columns."""
    rows = zip_longest(*(wrapped(text, width) for text in texts), fillvalue="")
    return [GAP.join(cell + " " * (width - columns_of(cell)) for cell in row).rstrip() for row in rows]


def styled(text: str, style: str) -> str:
    """Return the text in bold or dim; plain where NO_COLOR is set (no-color.org) or stdout is no terminal."""
    return text if os.environ.get("NO_COLOR") or not sys.stdout.isatty() else f"{style}{text}{PLAIN}"
