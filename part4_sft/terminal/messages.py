"""Messages to reply to, from a person who types or from a program."""

from __future__ import annotations

import readline
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from part3_pretrain.runtime.cli import UserError
from part4_sft.terminal.screen import DIM, styled

HISTORY, HISTORY_LENGTH = Path("~/.part4_sft_history"), 1000


def read_messages() -> Iterator[str]:
    """Yield what a person types until Ctrl-D; without a terminal, every line of the input that is not blank.

    Raises UserError where the input is of another encoding.
    """
    if sys.stdin.isatty():
        yield from _typed_messages()
        return
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"the input is not {error.encoding} text", "convert it with iconv") from error


def _typed_messages() -> Iterator[str]:
    """Yield the lines that a person types, which can be edited, and recalled in this conversation and the next."""
    with suppress(OSError):
        readline.read_history_file(HISTORY.expanduser())
    print(styled("What does a customer want? For example: The tiered planter has a large crack.", DIM))
    try:
        with suppress(EOFError):
            while True:
                message = input("\n> ").strip()
                if message:
                    yield message
    finally:
        print()  # what comes next should not stand behind the prompt
        readline.set_history_length(HISTORY_LENGTH)
        with suppress(OSError):
            readline.write_history_file(HISTORY.expanduser())
