"""What a command prints reaches a pipe while it works; notes go to stderr."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_a_line_reaches_a_pipe_while_the_command_goes_on_and_a_note_goes_to_stderr() -> None:
    # At its end a process would write what is still in the buffer, but for one that ends like this.
    code = "from part3_pretrain.runtime.log import log, note; import os; log('half'); note('slow\\nly'); os._exit(0)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert (done.stdout, done.stderr) == ("half\n", "note: slow ly\n")
