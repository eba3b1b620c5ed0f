"""Training that can be interrupted: its whole state is saved, and --resume goes on from it.

On a CPU it comes to the same bits as if it had not been interrupted; GPUs do not add up in a fixed order.
"""

from __future__ import annotations

import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread

import torch
from torch import nn

from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import Terminated, UserError
from part3_pretrain.runtime.log import log, note
from part3_pretrain.runtime.state_store import StateFile, StateFolder, Values
from part3_pretrain.runtime.torchrun import launched_by_torchrun, restart_count


class SignalWaits(Exception):
    """A signal has come while something was computed that does not change the weights."""


class TrainingState(AbstractContextManager["TrainingState"]):
    """Saves a training as it goes, and restores one that was interrupted.

    A context manager around all that a command does from the first step on: what was saved is removed when the block
    ends well, and stays when it does not.
    Raises UserError where that is damaged, or belongs to a run that something else decided.

    Args:
        path: the file; started by torchrun, a folder beside its place is used instead. Without it, nothing is saved.
        run: all that decides the result, by names that tell the user what it is; plain values.
        save_every: optimizer steps from one save to the next.
        resume: whether to go on from what was saved, if there is anything.
    """

    def __init__(
        self, path: Path | None = None, run: Values | None = None, save_every: int = 1, resume: bool = False
    ) -> None:
        self.run, self.save_every, self.steps_since_save = run or {}, save_every, 0
        self.signal = 0  # the number of the one that waits
        self.saved_values: Values | None = None
        self.store: StateFile | StateFolder | None = None
        if path is not None:
            self.store = StateFolder(path.with_suffix("")) if launched_by_torchrun() else StateFile(path)
            self._read(self.store, resume or restart_count() > 0)

    def _read(self, store: StateFile | StateFolder, resume: bool) -> None:
        if not store.exists():
            if resume:
                log(f"nothing to resume: there is no {store.path}; starting from the beginning")
            return
        if not resume:
            note(f"{store.path} holds an interrupted training, which --resume would have gone on with; starting anew")
            return
        saved_run, self.saved_values = store.read()
        for name in sorted(saved_run.keys() | self.run.keys()):
            before, now = saved_run.get(name), self.run.get(name)
            if before != now:
                cause = f"{store.path} cannot be resumed: {name} was {before} and is {now}"
                raise UserError(cause, "go on with what it was, or start anew without --resume")

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Values:
        """Put weights, moments and random numbers of the last save back in place, and return its plain values.

        Where there is nothing to resume, these are `{}`.
        """
        if self.store is None or self.saved_values is None:
            return {}
        self.store.restore_tensors(model, optimizer)
        return self.saved_values

    def is_due(self) -> bool:
        """Count a step, and return whether to save after it: every `save_every` steps, and where a signal waits.

        Every process calls this once after each step, and all get the same answer.
        """
        if self.store is None:
            return False
        self.steps_since_save += 1
        return bool(distributed.all_reduce_max(self.signal)) or self.steps_since_save >= self.save_every

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, values: Values) -> None:
        """Save the state between two steps, and in `values` all else that the training goes on from.

        Raises UserError where it cannot be written and the save before stays, or where the processes no longer have
        the same weights; KeyboardInterrupt after a save for which a signal to any of the processes waited.
        """
        if self.store is None:
            return
        if not distributed.is_sharded(model) and len(set(distributed.all_gather([digest_of_weights(model)]))) > 1:
            cure = "go on with --resume from the state before, and should it happen again, look for a faulty machine"
            raise UserError("the processes no longer have the same weights", cure)
        self.store.save(self.run, values, model, optimizer)
        self.steps_since_save = 0
        if number := distributed.all_reduce_max(self.signal):
            self.store.finish()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def look_for_signal(self) -> None:
        """Raise SignalWaits on all processes where a signal to any of them waits. All call this equally often."""
        if self.store is not None and distributed.all_reduce_max(self.signal):
            raise SignalWaits

    @contextmanager
    def signals_wait(self, save: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM wait for the next save, so that it is of a whole step; a second one does not wait.

        Where `look_for_signal` has ended the block, `save` is called, and has to call that of this object.
        """
        if self.store is None or current_thread() is not main_thread():  # which alone gets signals
            yield
            return
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def restore_handlers() -> None:
            for number, handler in handlers.items():
                signal.signal(number, handler)

        def wait(number: int, frame: object) -> None:
            self.signal = number
            if not launched_by_torchrun():  # which sends more than one
                restore_handlers()

        for number in handlers:
            signal.signal(number, wait)
        try:
            yield
        except SignalWaits:
            save()
        finally:
            restore_handlers()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self.store is None:
            return
        if error is None:
            self.store.remove()
            return
        if isinstance(error, UserError | KeyboardInterrupt):  # after another process's death, all would wait for all
            with suppress(UserError):
                self.store.finish()
        if isinstance(error, KeyboardInterrupt) and self.store.exists():
            raise type(error)(f"{self.store.path} holds the state; the same command with --resume goes on") from error


def digest_of_weights(model: nn.Module) -> str:
    """Return a checksum of all weights."""
    checksum = 0
    for parameter in model.parameters():
        data = parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
        checksum = zlib.crc32(data, checksum)
    return f"{checksum:08x}"
