"""Commands: options that are the fields of a dataclass, and a user's mistakes that end in one line."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from part3_pretrain.runtime.printable import printable
from part3_pretrain.runtime.torchrun import is_local_main_process

Config = TypeVar("Config")


class UserError(Exception):
    """What the user gave cannot be used: what is wrong with it, and what can be done about it."""

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(f"{cause}; {cure}" if cure else cause)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `kill` and schedulers send; it ends a command as Ctrl-C does."""


def exit_status(main: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    0 where it ends well; 2 after a user's mistake, which is told in one line; 130 after Ctrl-C and 143 after SIGTERM;
    141 where nobody reads its output any more, as behind `| head`, which is no mistake.
    """

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    if sys.stdout is None:  # closed, as by >&-
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal that knows no é gets \\xe9
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:
        if error.filename or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        _discard_output()  # files that a command writes itself end in a UserError
        cause = f"cannot write the output: {error.strerror}"
        _print_error(str(UserError(cause, "make room or choose another place")))
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, without an import of torch
            raise
        cure = "a smaller --micro-batch-size, --gradient-checkpointing or --dtype bfloat16 need less"
        _print_error(str(UserError("the GPU has too little memory", cure)))
        return 2
    except UserError as error:
        _print_error(str(error))
        return 2
    except ModuleNotFoundError as error:
        cure = "activate its environment (source .venv/bin/activate), or pip install -r requirements.txt"
        _print_error(str(UserError(f"this Python has no package {error.name}", cure)))
        return 2
    except KeyboardInterrupt as interrupt:
        _print_error(str(interrupt) or "nothing half-written was left behind", kind="interrupted")
        return 143 if isinstance(interrupt, Terminated) else 130
    return 0


def _discard_output() -> None:
    """Let what has not been written go nowhere, else Python would complain when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def first_line(error: BaseException) -> str:
    """Return what a library's error says, short enough for a `UserError`; its class where it says nothing."""
    lines = str(error).splitlines() or [type(error).__name__]
    return lines[0][:300]


def _print_error(message: str, kind: str = "error") -> None:
    """Print one line, though a file's name may have a line break, and once on each machine, where all say the same."""
    if is_local_main_process():
        print(f"{kind}:", *map(printable, message.splitlines()), file=sys.stderr, flush=True)


def option(
    default: Any,
    help: str,
    allowed: str = "",
    is_valid: Callable[[Any], bool] = lambda value: True,
    decides_training: bool = True,
    **keywords: Any,
) -> Any:
    """Return a dataclass field that is also a command-line option; one that is False by default takes no value.

    One without a default, MISSING, is no option but has to be given by its place.

    Args:
        allowed, is_valid: which values are allowed, in words and as a test.
        decides_training: whether another value would make another training, which --resume has to refuse.
        keywords: passed on to `ArgumentParser.add_argument`.
    """
    metadata = {"allowed": allowed, "is_valid": is_valid, "decides_training": decides_training}
    return field(default=default, metadata={**metadata, "argument": {"help": help, **keywords}})


# For `option`. What decides a training is what a file holds, and not its name.
PATH: dict[str, Any] = {"type": Path, "metavar": "PATH", "decides_training": False}
ABOVE_ZERO: dict[str, Any] = {"allowed": "above 0", "is_valid": lambda value: 0 < value < float("inf")}
SEED: dict[str, Any] = {"allowed": "0 to 2^63 - 1", "is_valid": lambda seed: 0 <= seed < 2**63}


def unescape(text: str) -> str:
    r"""Return the text of an option with a new line wherever \n is written."""
    return text.replace(r"\n", "\n")


def at_least(minimum: int) -> dict[str, Any]:
    """Allow numbers of at least `minimum`, but not infinity."""
    return {"allowed": f"{minimum} or more", "is_valid": lambda value: minimum <= value < float("inf")}


def same_as(config: type, name: str) -> Any:
    """Return a dataclass field that is the same option as that of another command."""
    original = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return field(default=original.default, metadata=original.metadata)


def flag(name: str) -> str:
    """Return how a field is given on the command line: `--max-length` for `max_length`."""
    return f"--{name.replace('_', '-')}"


def deciding_options(config: Any) -> dict[str, Any]:
    """Return the options that decide what a training comes to, by how they are given, and their values."""
    return {flag(f.name): getattr(config, f.name) for f in fields(config) if f.metadata["decides_training"]}


def parse(
    config: type[Config], prog: str, description: str, example: str, arguments: list[str] | None = None
) -> Config:
    """Read the command line into the dataclass. Raises UserError where it cannot be used."""
    show_defaults = argparse.ArgumentDefaultsHelpFormatter
    parser = OneLineParser(
        prog=prog, description=description, epilog=f"example: {example}", formatter_class=show_defaults
    )
    options = fields(config)  # type: ignore[arg-type]
    for one in options:
        if one.default is MISSING:  # which argparse tells of by itself
            parser.add_argument(one.name, **one.metadata["argument"])
            continue
        kind = {"action": "store_true"} if one.default is False else {"type": type(one.default)}
        parser.add_argument(flag(one.name), default=one.default, **(kind | one.metadata["argument"]))
    parsed = config(**vars(parser.parse_args(arguments)))
    for one in options:
        value = getattr(parsed, one.name)
        if not one.metadata["is_valid"](value):
            given = value if str(value).strip() else repr(value)
            parser.error(f"{flag(one.name)} must be {one.metadata['allowed']}, not {given}")
    return parsed


class OneLineParser(argparse.ArgumentParser):
    """Tells of a mistake in one line, by a UserError instead of an exit; --epoch is one, and no --epochs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        for argument in sys.argv[1:] if args is None else args:
            if re.search(r"[\ud800-\udfff]", argument):  # it could not be written to any file
                self.error(f"{argument!a} is not UTF-8 text")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(" ".join(message.splitlines()), f"see {self.prog} --help")
