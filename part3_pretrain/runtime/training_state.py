"""Training that can be interrupted: all of its state in one file, from which --resume goes on to the same bits."""

from __future__ import annotations

import signal
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from part3_pretrain.checkpoint import check_sums
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import Terminated, UserError, first_line, launched_by_torchrun, restart_count
from part3_pretrain.runtime.files import atomic_write

if TYPE_CHECKING:
    from part3_pretrain.runtime.state_folder import StateFolder


class TrainingState:
    """What a training changes as it goes, and the file that this is kept in until the training has ended well.

    Started by torchrun, it is kept in a folder instead, which any number of processes can go on from.

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
        self.run, self.save_every = run or {}, save_every
        self.parts: dict[str, Any] = {}
        self.unsaved_steps = 0
        self.signal = 0
        self.saved: dict[str, Any] = {}
        self.store: StateFile | StateFolder | None = None
        if path is None:
            return
        if launched_by_torchrun():
            from part3_pretrain.runtime.state_folder import StateFolder  # takes a while to import

            self.store = StateFolder(path.with_suffix(""))
        else:
            self.store = StateFile(path)
        resume = resume or restart_count() > 0
        if resume and self.store.exists():
            self.saved = self.store.read()
            self._check_run(self.store.path)
        elif resume:
            print(f"nothing to resume: there is no {self.store.path}; starting from the beginning")
        elif self.store.exists():
            fault = f"{self.store.path} holds an interrupted training"
            print(f"note: {fault}, which --resume would have gone on with; starting anew")

    def attach(self, **parts: Any) -> None:
        """Makes parts of the state, and restores what was saved of them.

        Args:
            parts: lists of plain values and objects whose `state_dict` has plain values; and, both in one call, the
                `model` and its `optimizer`.
        """
        self.parts |= parts
        for name in self.saved.keys() & parts.keys():
            if isinstance(parts[name], list):
                parts[name][:] = self.saved[name]
            else:
                parts[name].load_state_dict(self.saved[name])
        if self.store and self.saved and "model" in parts:
            self.store.restore_tensors(parts["model"], parts["optimizer"])

    def step_done(self) -> None:
        """Saves the state every `save_every` steps, and where a signal waits for that."""
        self.unsaved_steps += 1
        if distributed.all_reduce_max(self.signal) or self.unsaved_steps >= self.save_every:
            self.save()

    def save(self) -> None:
        """Saves the state. Raises KeyboardInterrupt where a signal, to any of the processes, has waited for that."""
        if self.store is None:
            return
        values: dict[str, Any] = {"run": self.run}
        for name, part in self.parts.items():
            if name not in ("model", "optimizer"):
                values[name] = part if isinstance(part, list) else part.state_dict()
        self.store.save(values, self.parts["model"], self.parts["optimizer"])
        self.unsaved_steps = 0
        if number := distributed.all_reduce_max(self.signal):
            self.store.finish()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    @contextmanager
    def signals_wait(self) -> Iterator[None]:
        """Inside, Ctrl-C and SIGTERM wait for the next save, so that it is of a whole step; a second one does not."""
        signals = (signal.SIGINT, signal.SIGTERM) if self.store else ()
        before = {number: signal.getsignal(number) for number in signals}

        def wait(number: int, frame: object) -> None:
            self.signal = number
            for waiting, handler in before.items() if not launched_by_torchrun() else ():  # it sends more than one
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
        if self.store is None:
            return
        if error is None:
            self.store.remove()
            return
        with suppress(UserError):
            self.store.finish()
        if isinstance(error, KeyboardInterrupt) and self.store.exists():
            raise type(error)(f"{self.store.path} holds the state; the same command with --resume goes on") from error

    def _check_run(self, path: Path) -> None:
        before = self.saved.pop("run")
        for name in sorted(before.keys() | self.run.keys()):
            was, is_now = before.get(name), self.run.get(name)
            if was != is_now:
                advice = "go on with what it was, or start anew without --resume"
                raise UserError(f"{path} cannot be resumed: {name} was {was} and is {is_now}; {advice}")


class StateFile:
    """Keeps a `TrainingState` of one process in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved: dict[str, Any] = {}

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> dict[str, Any]:
        """All that is not a tensor. Raises UserError where the file is damaged."""
        try:
            check_sums(self.path)
            self.saved = torch.load(self.path, map_location="cpu", weights_only=True)
            return self.saved.pop("values")
        except Exception as error:  # torch and zipfile raise kinds of their own
            raise UserError(f"{self.path} is damaged ({first_line(error)}); start anew without --resume") from error

    def restore_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Puts weights, moments and random numbers back, in place."""
        model.load_state_dict(self.saved.pop("model"))
        optimizer.load_state_dict(self.saved.pop("optimizer"))
        set_random_numbers(self.saved.pop("random"))

    def save(self, values: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Raises UserError where the file cannot be written; what was there before stays."""
        contents = {"values": values, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            torch.save(contents | {"random": random_numbers()}, file)

    def finish(self) -> None:
        """Nothing is ever being written when `save` has returned."""

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def random_numbers() -> dict[str, Tensor]:
    """The states of the only generators that a training draws from: its data come in an order that the seed decides."""
    found = {"cpu": torch.get_rng_state()}
    return found | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else found


def set_random_numbers(states: dict[str, Tensor]) -> None:
    """Restores what `random_numbers` gave."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def settings(config: Any, but: set[str]) -> dict[str, Any]:
    """The options that a dataclass of settings holds, by their names on the command line, but for some."""
    return {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items() if name not in but}


def digest_of_weights(model: nn.Module) -> str:
    """A checksum of all weights."""
    found = 0
    for parameter in model.parameters():
        found = zlib.crc32(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"
