"""What all commands have in common: options, mistakes that are told in one line, and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from part3_pretrain.runtime import cli
from part3_pretrain.runtime.cli import UserError, at_least, option
from tests.conftest import ROOT, Command, Outcome, assert_refused

COMMANDS = [
    *("part3_pretrain.pretrain", "part3_pretrain.convert"),
    *(f"part4_sft.{name}" for name in ("sft", "chat", "label", "compare", "walkthrough")),
]


def without_packages(*arguments: object) -> Outcome:
    command = [sys.executable, "-S", "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("module", COMMANDS)
def test_help_needs_no_package(module: str) -> None:
    status, stdout, stderr = without_packages(module, "--help")
    assert (status, stderr) == (0, "")
    assert stdout.startswith(f"usage: python -m {module} ") and "example: " in stdout


def test_a_package_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    outcome = without_packages("part3_pretrain.convert", "to-hf", "model.pt", tmp_path / "folder")
    assert_refused(outcome, "this Python has no package torch; activate its")
    assert outcome[1] == "" and not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Config:
    batch_size: int = option(8, "pairs in a step", **at_least(2))
    rate: float = option(0.5, "learning rate", **cli.ABOVE_ZERO)
    seed: int = option(0, "seed", **cli.SEED)
    out_dir: Path = option(Path("outputs"), "folder", **cli.PATH)
    resume: bool = option(False, "go on", decides_training=False)


@dataclass(frozen=True)
class OtherConfig:
    batch_size: int = cli.same_as(Config, "batch_size")


def parsed(*arguments: str, config: Any = Config) -> Any:
    return cli.parse(config, "prog", "Does.", "prog", list(arguments))


def test_options_are_the_fields_of_a_dataclass() -> None:
    assert parsed() == Config(8, 0.5, 0, Path("outputs"), False)
    given = parsed("--batch-size", "2", "--rate", "1e-9", "--seed", str(2**63 - 1), "--out-dir", "a", "--resume")
    assert given == Config(2, 1e-9, 2**63 - 1, Path("a"), True)
    assert parsed("--batch-size", "2", config=OtherConfig) == OtherConfig(2)
    assert cli.deciding_options(given) == {"--batch-size": 2, "--rate": 1e-9, "--seed": 2**63 - 1}


def test_help_tells_what_an_option_does_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Does." in text and "--batch-size BATCH_SIZE pairs in a step (default: 8)" in text
    assert "--out-dir PATH folder (default: outputs)" in text and text.endswith("example: prog")


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--batch-size=1", "--batch-size must be 2 or more, not 1"),
        ("--rate=0", "--rate must be above 0, not 0.0"),
        ("--rate=inf", "--rate must be above 0, not inf"),
        ("--rate=nan", "--rate must be above 0, not nan"),
        ("--seed=-1", "--seed must be 0 to 2^63 - 1, not -1"),
        (f"--seed={2**63}", f"--seed must be 0 to 2^63 - 1, not {2**63}"),
        ("caf\udce9", r"'caf\udce9' is not UTF-8 text"),
        ("--x\ny", "unrecognized arguments: --x y"),
    ],
)
def test_a_mistyped_option_is_told_in_one_line(argument: str, complaint: str, run_main: Command) -> None:
    assert_refused(run_main(lambda: parsed(argument)), f"{complaint}; see prog --help\n")


def test_the_exit_status_tells_how_a_command_ended(run_main: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing_left = "interrupted: nothing half-written was left behind\n"
    broken = UserError("it is\nbroken", "mend it")
    for end, status, stderr in (
        (None, 0, ""),
        (broken, 2, "error: it is broken; mend it\n"),
        (UserError("it is broken"), 2, "error: it is broken\n"),
        (UserError("the tensor \x1b[2J\x9b\u202e"), 2, "error: the tensor ?[2J??\n"),
        (KeyboardInterrupt, 130, nothing_left),
        (KeyboardInterrupt("kept"), 130, "interrupted: kept\n"),
        (lambda: signal.raise_signal(signal.SIGTERM), 143, nothing_left),
    ):
        assert run_main(Mock(side_effect=end)) == (status, "", stderr)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
    for local_rank, stderr in {"0": "error: it is broken; mend it\n", "1": ""}.items():  # told once on each machine
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert run_main(Mock(side_effect=broken)) == (2, "", stderr)


def test_a_reader_that_stops_is_no_mistake() -> None:
    code = "from part3_pretrain.runtime.cli import exit_status; raise SystemExit(exit_status(lambda: print(10**4000)))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("redirection", "status", "stdout", "stderr"),
    [
        ("> /dev/full", 2, "", "error: cannot write the output: No space left on device; "),
        (">&-", 0, "", ""),
        ("", 0, "\\xe9\n", ""),
    ],
)
def test_an_output_that_takes_no_text_gives_no_traceback(
    redirection: str, status: int, stdout: str, stderr: str
) -> None:
    code = 'from part3_pretrain.runtime.cli import exit_status; exit(exit_status(lambda: print("é", flush=True)))'
    shell = f"PYTHONIOENCODING=ascii '{sys.executable}' -c '{code}' {redirection}"
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, stdout)
    assert done.stderr.startswith(stderr) and done.stderr.count("\n") == bool(stderr)


def test_too_little_memory_names_the_options_that_need_less(run_main: Command) -> None:

    outcome = run_main(Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB\nmore")))
    assert_refused(outcome, "--gradient-checkpointing")
    with pytest.raises(RuntimeError):
        run_main(Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(OSError, match="a bug"):
        run_main(Mock(side_effect=OSError("a bug")))


def test_the_message_of_a_library_is_cut_to_its_first_line() -> None:
    assert cli.first_line(ValueError("x" * 400 + "\nmore")) == "x" * 300
    assert cli.first_line(ValueError()) == "ValueError"
