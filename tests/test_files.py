"""Files are whole or not there, and what cannot be written to or is in use is told early, in one line."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

import pytest
import torch

from part3_pretrain import convert, pretrain
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_folder, atomic_write, check_not_folder, check_writable
from part3_pretrain.runtime.locks import LOCK_FILE, locked
from part4_sft import chat, sft
from tests.conftest import Command, assert_refused
from tests.processes import Main, in_a_process, kill_self


def test_a_file_appears_under_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        assert not path.exists()
    for error in (ValueError, RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), atomic_write(path) as temporary:
            temporary.write_text("half of the ne")
            raise error
        assert path.read_text() == "new"
        assert list(path.parent.iterdir()) == [path]


def test_all_files_are_on_disk_and_so_are_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    with atomic_write(tmp_path / "file") as temporary:
        temporary.touch()
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").touch()
    for path in (tmp_path, *tmp_path.rglob("*")):
        assert path.stat().st_ino in synced, path
    assert synced[1] == synced[-1] == tmp_path.stat().st_ino  # once the file has its name


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(tmp_path / "file") as temporary:
        temporary.touch()
    assert (tmp_path / "file").exists()


def test_a_link_stays_and_who_may_read_the_file_stays_too(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "file", tmp_path / "link"
    link.symlink_to(real)
    for content in ("first", "second"):  # at first the link leads nowhere yet
        with atomic_write(link) as temporary:
            temporary.write_text(content)
            if content == "second":
                assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        assert link.is_symlink() and real.read_text() == content
        if content == "first":
            real.chmod(0o440)
            temporary.touch(0o644)  # as a killed process may leave it
    assert stat.S_IMODE(real.stat().st_mode) == 0o440
    assert {*tmp_path.iterdir(), *real.parent.iterdir()} == {link, real, real.parent}


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path: Path) -> None:
    message = r"^cannot write .*report.txt: No space left on device; what was there before is untouched; make room or"
    for write in (lambda file: file.write(b"0" * 10**6), lambda file: torch.save(torch.zeros(10**6), file)):
        with pytest.raises(UserError, match=message), atomic_write(tmp_path / "report.txt") as temporary:
            temporary.symlink_to("/dev/full")
            with temporary.open("wb", buffering=0) as file:
                write(file)
        assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_readable_by_others_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "half").touch()
        raise ValueError
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "file").touch()
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "file"]
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o755
    message = r"^cannot write .*model: Directory not empty; make room or choose another$"
    with pytest.raises(UserError, match=message), atomic_folder(tmp_path / "model"):
        pass
    with atomic_folder(tmp_path / "model", replace=True) as temporary:
        (temporary / "other").touch()
        assert (tmp_path / "model" / "file").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "other"]


def test_what_stands_in_the_way_is_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    check_not_folder(path, tmp_path / "missing")
    with pytest.raises(UserError, match=r"^\S+ is a folder, and a file of that name is to be written; move it or"):
        check_not_folder(path, tmp_path)
    for folder in (path, path / "folder", Path("/proc")):  # where nobody can make a file
        with pytest.raises(UserError, match=r"^cannot write to the folder \S+: .*; choose another$"):
            check_writable(folder)
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_another_run_writes_to_is_refused_until_that_run_is_gone(
    run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "outputs", tmp_path / "checkpoints"):
        with locked(folder):
            for command in (sft.main, pretrain.main):
                complaint = f"another run is writing to {folder}; wait for its end or choose another"
                assert_refused(run_main(command), complaint)
        assert list(tmp_path.iterdir()) == []  # of what was made for nothing, nothing stays

    def lock_and_die() -> None:
        with locked(tmp_path):
            kill_self()

    assert in_a_process(lock_and_die) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [LOCK_FILE]  # that of the killed one keeps nobody out
    with locked(tmp_path, tmp_path):
        (tmp_path / "file").touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_no_folder_stays_of_those_that_were_made_for_nothing(run_main: Command, tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b", tmp_path / "a" / "c" / "d"):
        assert (tmp_path / "a" / "c" / "d").exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    command = (sft.main, "--out-dir", tmp_path / "new" / "outputs", "--checkpoint-dir", tmp_path / "file")
    assert_refused(run_main(*command), f"cannot write to the folder {tmp_path / 'file'}: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize(
    ("main", "options", "complaint"),
    [
        (sft.main, ["--out-dir", "LONG"], "cannot write to the folder "),
        (sft.main, ["--model", "LONG"], "cannot read "),
        (chat.main, ["--model", "LONG"], "there is no "),
        (convert.main, ["from-hf", "LONG", "new.pt"], "there is no folder "),
        (convert.main, ["from-hf", "FOLDER", "LONG"], "cannot write "),
        (convert.main, ["to-hf", "TINY", "LONG"], "cannot write "),
    ],
)
def test_a_name_that_is_too_long_is_told_in_one_line(
    run_main: Command, tiny_checkpoint: Path, tmp_path: Path, main: Main, options: list[str], complaint: str
) -> None:
    run_main(convert.main, "to-hf", tiny_checkpoint, tmp_path / "folder")
    places = {"LONG": tmp_path / ("long" * 70), "FOLDER": tmp_path / "folder", "TINY": tiny_checkpoint}
    assert_refused(run_main(main, *(places.get(option, option) for option in options)), complaint)
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_rank_0_locks_for_all_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with locked(tmp_path), locked(tmp_path) if rank == "1" else pytest.raises(UserError), locked(tmp_path):
            pass


def test_a_drive_without_locks_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"cannot lock .*; choose one on a local disk"), locked(tmp_path):
        pass
