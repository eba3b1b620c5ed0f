"""What a command says while it works."""

from __future__ import annotations

import sys

from tqdm import tqdm

from part3_pretrain.runtime.printable import printable


def log(line: str) -> None:
    """Print a line above the progress bars, at once even where stdout is a file, which Python would fill in blocks."""
    tqdm.write(line)
    sys.stdout.flush()


def note(line: str) -> None:
    """Print something that the user should know, but need not act on, to stderr."""
    print("note:", *map(printable, line.splitlines()), file=sys.stderr)  # a file's name may have a line break
