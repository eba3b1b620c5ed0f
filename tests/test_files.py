"""Files are whole or not there, and a folder that cannot be written to is found out early."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, check_writable, locked


def test_a_file_appears_under_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mistake", [ValueError, KeyboardInterrupt])
def test_an_interruption_leaves_the_old_file_and_nothing_else(tmp_path: Path, mistake: type[BaseException]) -> None:
    path = tmp_path / "report.txt"
    path.write_text("old")
    with pytest.raises(mistake), atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        raise mistake
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made_and_left_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check_writable(folder, folder)
    assert list(folder.iterdir()) == []


def test_folders_that_were_locked_for_nothing_go_away_again(tmp_path: Path) -> None:
    with locked(tmp_path / "empty", tmp_path / "filled"):
        (tmp_path / "filled" / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["filled"]


def test_a_drive_without_locks_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"cannot lock .*; choose one on a local disk"), locked(tmp_path):
        pass


@pytest.mark.parametrize("below", ["", "folder"])
def test_a_file_where_a_folder_should_be_is_told_in_one_line(tmp_path: Path, below: str) -> None:
    path = tmp_path / "file"
    path.write_text("not a folder")
    with pytest.raises(UserError, match=r"\Acannot write to the folder .*; choose another\Z"):
        check_writable(path / below)
