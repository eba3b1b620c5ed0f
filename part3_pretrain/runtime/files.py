"""Files that are either whole or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from part3_pretrain.runtime.cli import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary file that takes the place of `path`, on disk, once the block has ended well.

    A link stays, and the file that it leads to is replaced; who may read that file may read the new one, nobody else.
    Raises UserError where it cannot be written, as on a full disk; what was there before stays.
    """
    target = Path(os.path.realpath(path))
    # Always the same name, so that what a killed process left is removed; its suffix tells matplotlib the format.
    temporary = target.with_name(f".partial.{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        if target.exists():
            temporary.touch(mode=0o600)  # for nobody else, from its first byte on
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error, RuntimeError) else error  # torch.save raises one on top
        if not isinstance(cause, OSError):
            raise
        cure = "what was there before is untouched; make room or choose another folder"
        raise UserError(f"cannot write {path}: {cause.strerror or cause}", cure) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def atomic_folder(folder: Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `folder` once the block has ended well.

    Raises UserError where that cannot be written; unless all in it may be replaced, it must be missing or empty.
    """
    target = Path(os.path.realpath(folder))
    check_writable(target.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            temporary = Path(name)
            yield temporary
            temporary.chmod(0o755)  # it is made for the owner alone
            for path in [*temporary.rglob("*"), temporary]:
                _sync(path)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as before:
                if moved := replace and os.path.isdir(target):
                    target.replace(before)  # goes in the end
                try:
                    temporary.replace(target)
                except BaseException:
                    if moved:
                        Path(before).replace(target)
                    raise
                _sync(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror or error}", "make room or choose another") from error


def _sync(path: Path) -> None:
    """Wait until a file is on disk, or the names in a folder are, where they can be waited for."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # a folder may be closed to readers
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_read(path: Path, error: OSError) -> UserError:
    """Return what to raise where a file that the user named cannot be read."""
    return UserError(f"cannot read {path}: {error.strerror}", "name a file that is there and may be read")


def check_not_folder(*paths: Path) -> None:
    """Raise UserError where a folder stands in the place of a file that is to be written."""
    for path in paths:
        if os.path.isdir(path):  # unlike Path.is_dir, it never raises: why a file cannot be written is told later
            cause = f"{path} is a folder, and a file of that name is to be written"
            raise UserError(cause, "move it or choose another")


def same_file(path: Path, other: Path) -> bool:
    """Return whether both names are there and mean one file."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


def check_kept(read: list[Path], *written: Path) -> None:
    """Raise UserError where a file that is to be read is one that is to be written."""
    for path in written:
        if any(same_file(path, other) for other in read):
            raise UserError(f"{path} is read by this run, which would write over it", "choose another place to write")


def check_writable(*folders: Path) -> None:
    """Make the folders where they are missing. Raise UserError where one cannot be written to."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise UserError(f"cannot write to the folder {folder}: {error.strerror}", "choose another") from error
