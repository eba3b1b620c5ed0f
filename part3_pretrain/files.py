"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
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


@contextmanager
def folder_written_whole(folder: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `folder` that takes its place once the block has ended well.

    Raises UserError where that cannot be written; `folder` must be missing or empty.
    """
    check_writable(folder.absolute().parent)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.absolute().parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # `mkdtemp` makes it for the owner alone
        temporary.replace(folder.absolute())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(*folders: Path) -> None:
    """Makes the folders where they are missing. Raises UserError where one cannot be written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to the folder {folder}: {error.strerror}; choose another") from error
