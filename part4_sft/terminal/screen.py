"""A person at a terminal: single keys in, screens out. Works over ssh and in 80 columns by 24 lines."""

from __future__ import annotations

import os
import re
import shutil
import sys
import termios
import textwrap
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from part3_pretrain.runtime.cli import UserError

BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"
_OTHER_SCREEN, _FIRST_SCREEN, _CLEAR = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l", "\x1b[H\x1b[2J"


@contextmanager
def full_screen() -> Iterator[None]:
    """Inside, keys come one by one and unseen; at the end, what stood on the screen before is there again.

    Raises UserError where there is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError("this asks a person and needs a terminal; start it in one, without pipes or redirection")
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        settings = termios.tcgetattr(sys.stdin)
        settings[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the other screen on, and the keys unseen
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        print(end=_OTHER_SCREEN, flush=True)
        yield
    finally:
        print(end=_FIRST_SCREEN, flush=True)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def keys() -> Iterator[str]:
    """Characters as they are typed, without end unless the terminal goes; arrows and their like are left out."""
    with suppress(OSError):
        while typed := os.read(sys.stdin.fileno(), 1024):
            yield from re.sub(r"\x1b(\[[0-9;]*[@-~]|O.)?", "", typed.decode("utf-8", "replace"))


def show(lines: list[str]) -> None:
    """Makes these lines the whole screen, in one write, so that nothing flickers over a slow line."""
    print(end=_CLEAR + "\n".join(lines), flush=True)


def size() -> tuple[int, int]:
    """Columns and lines of the terminal now."""
    return shutil.get_terminal_size()


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines of so many columns; what could steer the terminal is shown as a question mark."""
    printable = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)
    return [line for part in printable.split("\n") for line in textwrap.wrap(part, columns) or [""]]


def styled(text: str, style: str) -> str:
    """The text in bold or dim, unless the user has set NO_COLOR (no-color.org) or it does not go to a terminal."""
    return text if os.environ.get("NO_COLOR") or not sys.stdout.isatty() else f"{style}{text}{PLAIN}"
