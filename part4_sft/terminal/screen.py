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

from part3_pretrain.runtime.cli import UserError

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
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


def wrapped(text: str, columns: int) -> list[str]:
    """Break the text into lines of at most so many columns; show what could steer the terminal as a question mark."""
    printable = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    return [line for part in printable.split("\n") for line in textwrap.wrap(part, columns) or [""]]


def styled(text: str, style: str) -> str:
    """Return the text in bold or dim; plain where NO_COLOR is set (no-color.org) or stdout is no terminal."""
    return text if os.environ.get("NO_COLOR") or not sys.stdout.isatty() else f"{style}{text}{PLAIN}"
