"""What a command says while it works: lines that stand above the bars of a terminal, and are kept by a log."""

from __future__ import annotations

import sys

from tqdm import tqdm


def log(line: str) -> None:
    """Prints a line at once, also where stdout is a file, which Python would fill in blocks."""
    tqdm.write(line)
    sys.stdout.flush()
