"""What all commands have in common: options, mistakes that are told in one line, and exit statuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from part3_pretrain.runtime.cli import (
    ABOVE_ZERO,
    PATH,
    SEED,
    UserError,
    at_least,
    deciding_options,
    first_line,
    option,
    parse,
    same_as,
)
from tests.conftest import ROOT, Command, assert_refused

WITHOUT_PACKAGES = [sys.executable, "-S", "-m"]  # a Python in which nothing is installed
COMMANDS = [
    *("part3_pretrain.pretrain", "part3_pretrain.convert"),
    *(f"part4_sft.{name}" for name in ("sft", "chat", "label", "compare", "walkthrough")),
]


@pytest.mark.parametrize("module", COMMANDS)
def test_help_needs_no_package(module: str) -> None:
    done = subprocess.run([*WITHOUT_PACKAGES, module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m {module} ") and "example: " in done.stdout


def test_a_package_that_is_missing_is_told_in_one_line(tmp_path: Path) -> None:
    command = [*WITHOUT_PACKAGES, "part3_pretrain.convert", "to-hf", "model.pt", str(tmp_path / "folder")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert_refused((done.returncode, done.stdout, done.stderr), "this Python has no package torch; activate its")
    assert done.stdout == "" and not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------- options


@dataclass(frozen=True)
class Config:
    batch_size: int = option(8, "pairs in a step", **at_least(2))
    rate: float = option(0.5, "learning rate", **ABOVE_ZERO)
    seed: int = option(0, "seed", **SEED)
    out_dir: Path = option(Path("outputs"), "folder", **PATH)
    resume: bool = option(False, "go on", action="store_true", decides_training=False)


@dataclass(frozen=True)
class OtherConfig:
    batch_size: int = same_as(Config, "batch_size")


def parsed(*arguments: str, config: Any = Config) -> Any:
    return parse(config, "prog", "Does.", "prog", list(arguments))


def test_options_are_the_fields_of_a_dataclass() -> None:
    assert parsed() == Config(8, 0.5, 0, Path("outputs"), False)
    given = parsed("--batch-size", "2", "--rate", "1e-9", "--seed", str(2**63 - 1), "--out-dir", "a", "--resume")
    assert given == Config(2, 1e-9, 2**63 - 1, Path("a"), True)
    assert parsed("--batch-size", "2", config=OtherConfig) == OtherConfig(2)
    assert deciding_options(given) == {"--batch-size": 2, "--rate": 1e-9, "--seed": 2**63 - 1}


def test_help_tells_what_an_option_does_and_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        parsed("--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "Does." in text and "--batch-size BATCH_SIZE pairs in a step (default: 8)" in text
    assert "--out-dir PATH folder (default: outputs)" in text and text.endswith("example: prog")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--batch-size", "1"], "--batch-size must be 2 or more, not 1"),
        (["--rate", "0"], "--rate must be above 0, not 0.0"),
        (["--rate", "inf"], "--rate must be above 0, not inf"),
        (["--rate", "nan"], "--rate must be above 0, not nan"),
        (["--seed", "-1"], "--seed must be 0 to 2^63 - 1, not -1"),
        (["--seed", str(2**63)], f"--seed must be 0 to 2^63 - 1, not {2**63}"),
        (["--out-dir", "caf\udce9"], r"'caf\udce9' is not UTF-8 text"),
        (["--x\ny"], "unrecognized arguments: --x y"),
    ],
)
def test_a_mistyped_option_is_told_in_one_line(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parsed(*arguments)
    assert_refused((stop.value.code, *capsys.readouterr()), f"{complaint}; see prog --help\n")


# ---------------------------------------------------------------------------------------------------- exit status


def raising(error: BaseException) -> Any:
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "status", "stderr"),
    [
        (UserError("it is\nbroken", "mend it"), 2, "error: it is broken; mend it\n"),
        (UserError("it is broken"), 2, "error: it is broken\n"),
        (KeyboardInterrupt(), 130, "interrupted: nothing half-written was left behind\n"),
        (KeyboardInterrupt("kept"), 130, "interrupted: kept\n"),
    ],
)
def test_the_exit_status_tells_how_a_command_ended(
    error: BaseException, status: int, stderr: str, run_main: Command
) -> None:
    assert run_main(raising(error)) == (status, "", stderr)


def test_sigterm_ends_a_command_as_ctrl_c_does(run_main: Command) -> None:
    stderr = "interrupted: nothing half-written was left behind\n"
    assert run_main(lambda: signal.raise_signal(signal.SIGTERM)) == (143, "", stderr)


def test_a_reader_that_stops_is_no_mistake() -> None:
    code = "from part3_pretrain.runtime.cli import exit_status; raise SystemExit(exit_status(lambda: print(10**4000)))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_once_on_each_machine_a_mistake_is_told(run_main: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "tests")
    for local_rank, stderr in {"0": "error: it is broken\n", "1": ""}.items():
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert run_main(raising(UserError("it is broken"))) == (2, "", stderr)


def test_the_message_of_a_library_is_cut_to_its_first_line() -> None:
    assert first_line(ValueError("x" * 400 + "\nmore")) == "x" * 300
    assert first_line(ValueError()) == "ValueError"
