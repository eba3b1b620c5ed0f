"""What a command prints reaches a pipe while it works; notes go to stderr."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from part3_pretrain.runtime.log import note
from tests.conftest import ROOT


def test_a_line_reaches_a_pipe_while_the_command_goes_on() -> None:
    # At its end a process would write what is still in the buffer, but for one that ends like this.
    command = "from part3_pretrain.runtime.log import log; import os, time; log('half'); time.sleep(20); os._exit(0)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    ) as working:
        assert working.stdout.readline() == "half\n"
        working.kill()


def test_a_note_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    note("it is slow")
    assert capsys.readouterr() == ("", "note: it is slow\n")
