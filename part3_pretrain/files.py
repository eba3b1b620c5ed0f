"""Files that are either whole or not there, and mistakes of the user that end in one line."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something that the user gave cannot be used; the message says what to do."""


def exit_status(main: Callable[[], None]) -> int:
    """Runs a command: 0, 2 after a user's mistake (told in one line), 130 after Ctrl-C."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130
    return 0


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives the path of a temporary file beside `path` that takes its place, on disk, once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Keeps the suffix: matplotlib chooses the picture's format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(*folders: Path) -> None:
    """Makes the folders where they are missing. Raises UserError where one cannot be written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to the folder {folder}: {error.strerror}; choose another") from error
