"""Where a person's answers about a file are kept: in a journal beside it, FILE.NAME.jsonl."""

from __future__ import annotations

import glob
import re
from argparse import ArgumentTypeError
from getpass import getuser
from pathlib import Path

ANNOTATOR = r"[\w-]{1,100}"  # names that can be a part of a file's


def annotator(name: str) -> str:
    """Check a person's name, which becomes a part of a file's name. Raises ArgumentTypeError where it cannot be one."""
    if not re.fullmatch(ANNOTATOR, name):
        raise ArgumentTypeError(f"{name!r} must be letters, digits, - and _")
    return name


def login_name() -> str:
    """Return the user's name on this machine, in characters that `annotator` allows."""
    try:
        return re.sub(r"[^\w-]", "_", getuser())
    except (OSError, KeyError):  # a container may run as a number that has no name
        return "somebody"


def journal_of(path: Path, annotator: str) -> Path:
    """Return the path of the journal that keeps what this person answers about this file."""
    return path.with_name(f"{path.name}.{annotator}.jsonl")


def journals(path: Path) -> dict[str, Path]:
    """Find all journals beside a file, by annotator, but those of other files whose names begin with its name."""
    paths = sorted(path.parent.glob(f"{glob.escape(path.name)}.*.jsonl"))
    by_name = {journal.name[len(path.name) + 1 : -len(".jsonl")]: journal for journal in paths}
    return {name: journal for name, journal in by_name.items() if re.fullmatch(ANNOTATOR, name)}
