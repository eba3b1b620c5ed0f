"""Training that can be interrupted: all of its state in one file, from which --resume goes on to the same bits."""

from __future__ import annotations

import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from part3_pretrain.checkpoint import check_sums
from part3_pretrain.command_line import Terminated, UserError, first_line
from part3_pretrain.files import written_whole


class TrainingState:
    """What a training changes as it goes, and the file that this is kept in until the training has ended well.

    Used as a context manager around all that a command does from the first step on: the file goes away when the block
    ends well, and stays when it does not.

    Args:
        path: of the file; without it, nothing is kept.
        run: all that decides the result, by names that tell the user what it is; plain values.
        save_every: optimizer steps from one save to the next.
        resume: whether to go on from the file, if there is one.

    Raises:
        UserError: the file is damaged, or belongs to a run that something else decided.
    """

    def __init__(
        self, path: Path | None = None, run: dict[str, Any] | None = None, save_every: int = 1, resume: bool = False
    ) -> None:
        self.path, self.run, self.save_every = path, run or {}, save_every
        self.parts: dict[str, Any] = {}
        self.unsaved_steps = 0
        self.signal: int | None = None
        self.saved: dict[str, Any] = {}
        if path is None:
            return
        if resume and path.exists():
            self.saved = self._read(path)
        elif resume:
            print(f"nothing to resume: there is no {path}; starting from the beginning")
        elif path.exists():
            print(f"note: {path} holds an interrupted training, which --resume would have gone on with; starting anew")

    def attach(self, **parts: Any) -> None:
        """Makes lists of plain values, or objects with a `state_dict`, parts of the state; restores what was saved."""
        self.parts |= parts
        for name, part in parts.items():
            if name not in self.saved:
                continue
            if isinstance(part, list):
                part[:] = self.saved.pop(name)
            else:
                part.load_state_dict(self.saved.pop(name))
        if "random" in self.saved:  # again each time, since making the parts may have drawn numbers
            torch.set_rng_state(self.saved["random"])
            if torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self.saved["random_cuda"])

    def step_done(self) -> None:
        """Saves the state every `save_every` steps, and where a signal waits for that."""
        self.unsaved_steps += 1
        if self.signal or self.unsaved_steps >= self.save_every:
            self.save()

    def save(self) -> None:
        """Writes the file. Raises KeyboardInterrupt where a signal has waited for that."""
        if self.path is None:
            return
        contents = {name: part if isinstance(part, list) else part.state_dict() for name, part in self.parts.items()}
        # The only generators that a training draws from: the order of the data is computed from seed and epoch.
        contents["random"] = torch.get_rng_state()
        contents["random_cuda"] = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        with written_whole(self.path) as temporary, temporary.open("wb") as file:
            torch.save(contents | {"run": self.run}, file)
        self.unsaved_steps = 0
        if self.signal:
            raise Terminated if self.signal == signal.SIGTERM else KeyboardInterrupt

    @contextmanager
    def signals_wait(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM wait for the next save, so that it is of a whole step; a second one does not."""
        signals = (signal.SIGINT, signal.SIGTERM) if self.path is not None else ()
        before = {number: signal.getsignal(number) for number in signals}

        def wait(number: int, frame: object) -> None:
            self.signal = number
            for waiting, handler in before.items():
                signal.signal(waiting, handler)

        for number in before:
            signal.signal(number, wait)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> TrainingState:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.path is None or not self.path.exists():
            return
        if error is None:
            self.path.unlink()
        elif isinstance(error, KeyboardInterrupt):
            raise type(error)(f"{self.path} holds the state; the same command with --resume goes on") from error

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            check_sums(path)
            saved = torch.load(path, map_location="cpu", weights_only=True)
            before = dict(saved["run"])
        except Exception as error:  # torch and zipfile raise kinds of their own
            reason = first_line(error)
            raise UserError(f"{path} is damaged ({reason}); start anew without --resume") from error
        for name in sorted(before.keys() | self.run.keys()):
            was, is_now = before.get(name), self.run.get(name)
            if was != is_now:
                advice = "go on with what it was, or start anew without --resume"
                raise UserError(f"{path} cannot be resumed: {name} was {was} and is {is_now}; {advice}")
        return saved


def settings(config: Any, but: set[str]) -> dict[str, Any]:
    """The options that a dataclass of settings holds, by their names on the command line, but for some."""
    return {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items() if name not in but}


def digest_of_weights(model: nn.Module) -> str:
    """A checksum of all weights."""
    found = 0
    for parameter in model.parameters():
        found = zlib.crc32(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), found)
    return f"{found:08x}"
