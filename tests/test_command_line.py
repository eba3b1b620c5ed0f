"""What all commands have in common, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
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
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: this Python has no package torch; ") and done.stderr.count("\n") == 1
