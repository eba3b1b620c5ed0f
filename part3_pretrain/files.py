"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from part3_pretrain.command_line import UserError


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
