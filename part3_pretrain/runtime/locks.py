"""Folders that one run at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import check_writable
from part3_pretrain.runtime.torchrun import is_main_process

LOCK_FILE = ".writing.lock"  # in a folder, while a run writes to it


@contextmanager
def locked(*folders: Path) -> Iterator[None]:
    """Keep other runs out of the folders, which are made where they are missing, until the block or process ends.

    Of the processes of one job, rank 0 holds the locks for all. Folders that were made for nothing go away again.
    Raises UserError where one cannot be written to, or another run is in it.
    """
    made = [place for folder in folders for place in (folder, *folder.parents) if not os.path.exists(place)]
    try:
        check_writable(*folders)
        with ExitStack() as stack:
            for folder in {folder.resolve() for folder in folders if is_main_process()}:
                stack.enter_context(_locked(folder))
            yield
    finally:
        for place in made:
            with suppress(OSError):  # it is not empty, or could not be made
                place.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder / LOCK_FILE
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(f"another run is writing to {folder}", "wait for its end or choose another") from error
    except OSError as error:  # as on some network drives
        raise UserError(f"cannot lock {folder}: {error.strerror}", "choose one on a local disk") from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink()  # while it is locked: once it is not, it may be another run's
        lock.release()
