"""Commands in forked processes, ways to interrupt them, and a fine-tuning that is small enough for it."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from part3_pretrain.runtime.cli import exit_status
from part4_sft.dataset import Pair, save_pairs

Main = Callable[[], None]
Prepare = Callable[[], object]  # called in a process before its command; `dict` does nothing
SMALL_STEPS = 12  # of `small_sft`: two epochs of 16 pairs in threes, so that an epoch's last step has one pair


def small_sft(folder: Path, checkpoint: Path) -> list[str]:
    """Options of a fine-tuning on pairs that are not of the retail world, whose test sets would take a second."""
    options = ["--model", str(checkpoint), "--epochs", "2", "--batch-size", "3", "--max-new-tokens", "3"]
    options += ["--samples-per-context", "1", "--learning-rate", "0.001", "--save-every", "2"]
    for name, numbers in {"data": range(16), "validation-data": range(20, 23), "test-data": range(30, 35)}.items():
        save_pairs(folder / f"{name}.json", [Pair(f"What is {n} and {n}?", f"It is {2 * n}.") for n in numbers])
        options += [f"--{name}", str(folder / f"{name}.json")]
    return options


def in_a_process(main: Main, arguments: Sequence[str] = (), prepare: Prepare = dict) -> int:
    """The exit status of a command in a process of its own, or minus the signal that killed it."""
    return _exit_status(_fork(main, arguments, prepare, {}))


def in_ranks(
    main: Main, world_size: int, arguments: Sequence[str] = (), prepare: Prepare = dict, rank: int = 0
) -> list[int]:
    """The exit statuses of a command in so many processes, as torchrun would start them; one rank is prepared."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        job = {"MASTER_PORT": free.getsockname()[1], "MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "tests"}
    job |= {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    children = [
        _fork(main, arguments, prepare if each == rank else dict, job | {"RANK": each, "LOCAL_RANK": each})
        for each in range(world_size)
    ]
    return [_exit_status(child) for child in children]


def _exit_status(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fork(main: Main, arguments: Sequence[str], prepare: Prepare, environment: dict[str, object]) -> int:
    if child := os.fork():
        return child
    status = 99
    try:
        os.environ.update({name: str(value) for name, value in environment.items()})
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        sys.argv = [main.__module__, *arguments]
        prepare()
        status = exit_status(main)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def at_step(step: int, number: int = signal.SIGKILL, after: bool = True) -> Prepare:
    """Prepare a process to send itself a signal after or before the weights change at one of its steps."""
    register = register_optimizer_step_post_hook if after else register_optimizer_step_pre_hook
    steps = iter(range(1, step + 1))
    return lambda: register(lambda *arguments: kill_self(number) if next(steps, None) == step else None)


def in_save(number: int) -> Prepare:
    """Prepare a process to kill itself when half of a checkpoint or state is written."""
    save, saves = torch.save, iter(range(1, number + 1))

    def save_half(contents: object, file: IO[bytes]) -> None:
        save(contents, file)
        if next(saves) == number:
            file.flush()
            os.truncate(file.name, file.tell() // 2)
            kill_self()

    return lambda: setattr(torch, "save", save_half)
