"""Commands: options that are the fields of a dataclass, and mistakes of the user that end in one line."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Config = TypeVar("Config")


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `kill` and schedulers send; it ends a command as Ctrl-C does."""


class UserError(Exception):
    """Something that the user gave cannot be used.

    Args:
        cause: what is wrong.
        cure: what the user can do about it.
    """

    def __init__(self, cause: str, cure: str = "") -> None:
        super().__init__(f"{cause}; {cure}" if cure else cause)


def first_line(error: BaseException) -> str:
    """What a library's error says, short enough for a `UserError`; its kind where it says nothing."""
    return f"{(str(error).splitlines() or [type(error).__name__])[0]:.300}"


def exit_status(main: Callable[[], None]) -> int:
    """Runs a command: 0, 2 after a user's mistake (told in one line), 130 after Ctrl-C, 143 after SIGTERM.

    141 where whoever reads the output has stopped, as `head` does, which is no mistake.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python would complain at its end
        return 141
    except UserError as error:
        _tell("error:", *str(error).splitlines())  # a file's name may hold a line's end
        return 2
    except ModuleNotFoundError as missing:
        advice = "activate its environment (source .venv/bin/activate), or pip install -r requirements.txt"
        _tell("error:", str(UserError(f"this Python has no package {missing.name}; {advice}")))
        return 2
    except KeyboardInterrupt as interrupt:
        _tell(f"interrupted: {str(interrupt) or 'nothing half-written was left behind'}")
        return 143 if isinstance(interrupt, Terminated) else 130
    return 0


def launched_by_torchrun() -> bool:
    """Whether this is one of the processes of a job; see `distributed.py`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restart_count() -> int:
    """How often torchrun's --max-restart_count has begun this job anew, after a process died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_main_process() -> bool:
    """Whether this is the process of its job that writes; known before torch is imported."""
    return not launched_by_torchrun() or os.environ["RANK"] == "0"


def _tell(*words: str) -> None:
    """To stderr; once on each machine, where its processes have the same to say."""
    if not launched_by_torchrun() or os.environ["LOCAL_RANK"] == "0":
        print(*words, file=sys.stderr, flush=True)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def option(
    default: Any, help: str, allowed: str = "", is_valid: Callable[[Any], bool] = lambda value: True, **keywords: Any
) -> Any:
    """A dataclass field that is also a command-line option.

    Args:
        help: what `--help` says of it.
        allowed, is_valid: which values are allowed, in words and as a test.
        keywords: passed on to `ArgumentParser.add_argument`.
    """
    return field(
        default=default, metadata={"allowed": allowed, "is_valid": is_valid, "argument": {"help": help, **keywords}}
    )


ABOVE_ZERO: dict[str, Any] = {"allowed": "above 0", "is_valid": lambda value: 0 < value < float("inf")}  # for `option`
SEED: dict[str, Any] = {"allowed": "0 to 2^63 - 1", "is_valid": lambda seed: 0 <= seed < 2**63}  # for `option`


def at_least(minimum: int) -> dict[str, Any]:
    """For `option`: a number of at least `minimum`, and not infinite."""
    return {"allowed": f"{minimum} or more", "is_valid": lambda value: minimum <= value < float("inf")}


def same_as(config: type, name: str) -> Any:
    """A dataclass field that is the same option as that of another command."""
    setting = config.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return field(default=setting.default, metadata=setting.metadata)


def parse(
    config: type[Config], prog: str, description: str, example: str, arguments: list[str] | None = None
) -> Config:
    """Reads the command line into the dataclass. Exits with status 2 and one line where it cannot be used."""
    parser = OneLineParser(
        prog=prog,
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for setting in fields(config):  # type: ignore[arg-type]
        keywords = dict(setting.metadata["argument"])
        if "action" not in keywords:
            keywords.setdefault("type", type(setting.default))
        parser.add_argument(f"--{setting.name.replace('_', '-')}", default=setting.default, **keywords)
    parsed = config(**vars(parser.parse_args(arguments)))
    for setting in fields(config):  # type: ignore[arg-type]
        value = getattr(parsed, setting.name)
        if not setting.metadata["is_valid"](value):
            parser.error(f"--{setting.name.replace('_', '-')} must be {setting.metadata['allowed']}, not {value}")
    return parsed


class OneLineParser(argparse.ArgumentParser):
    """Tells of a mistake in one line."""

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        for argument in sys.argv[1:] if args is None else args:
            if re.search(r"[\ud800-\udfff]", argument):  # it could not be written to any file
                self.error(f"{argument!a} is not UTF-8 text")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        _tell("error:", f"{' '.join(message.splitlines())}; see {self.prog} --help")
        self.exit(2)


PATH: dict[str, Any] = {"type": Path, "metavar": "PATH"}  # for `option`
