"""What several test files share: made data, a small vocabulary, and a model so small that it runs in milliseconds."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; commands started by tests inherit it

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pyte
import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.corpus import draw_conversation
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import exit_status
from part3_pretrain.tokenizer import train_tokenizer
from part4_sft.dataset import Pair, make_datasets
from part4_sft.encoding import PairEncoder

Command = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the `main` of a command with arguments; returns its exit status and what went to stdout and stderr."""

    def call(main: Callable[[], None], *arguments: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        try:
            status: int | str | None = exit_status(main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


def _interactive() -> None:
    """Lets Ctrl-C reach this process, though the tests may have been started in the background."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


class Terminal:
    """A command in a pseudo-terminal of 80 columns and 24 lines, and what a person would see on it."""

    def __init__(self, module: str, *arguments: object, **environment: str) -> None:
        self.screen = pyte.Screen(80, 24)
        self.stream = pyte.ByteStream(self.screen)
        self.sent = b""  # by the command
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        command = [sys.executable, "-m", module, *map(str, arguments)]
        settings = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        settings |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path(__file__).parents[1])} | environment
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=settings,
            start_new_session=True,
            preexec_fn=_interactive,
        )
        os.close(slave)

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.screen.display)

    @property
    def last_words(self) -> str:
        """What was printed once the full screen had been left."""
        return self.sent.decode().rpartition("\x1b[?1049l")[2].replace("\r\n", "\n")

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Returns once the screen shows this, and nothing has been added for a moment."""
        end = time.monotonic() + seconds
        while text not in self.text:
            assert self._read(end), f"{text!r} was awaited; the screen shows:\n{self.text}"
        while self._read(time.monotonic() + 0.05):
            pass

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def end(self, seconds: float = 60) -> int:
        """The exit status, once the command has ended."""
        while self._read(time.monotonic() + seconds):
            pass
        return self.process.wait(seconds)

    def _read(self, end: float) -> bool:
        """Takes in what the command has written; False where it has ended, or does not write before `end`."""
        if not select.select([self.master], [], [], max(0, end - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.master, 65536)
        except OSError:  # so Linux says that the other side is closed
            return False
        self.sent += data
        self.stream.feed(data)
        return bool(data)


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts commands in pseudo-terminals, and ends those that still run after the test."""
    started: list[Terminal] = []

    def start(module: str, *arguments: object, **environment: str) -> Terminal:
        started.append(Terminal(module, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        os.close(one.master)


@pytest.fixture(scope="session")
def made() -> dict[str, list[Pair]]:
    """The five synthetic data sets of seed 0."""
    return make_datasets(0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = Random(0)
    return train_tokenizer([draw_conversation(rng) for _ in range(300)], vocab_size=600)


@pytest.fixture(scope="session")
def encoder(tokenizer: Tokenizer) -> PairEncoder:
    return PairEncoder(tokenizer, eos_id=tokenizer.token_to_id("<EOS>"))


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> Transformer:
    """Random weights; a test that trains it takes a copy."""
    torch.manual_seed(0)
    shape = ModelConfig(tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_layers=2)
    return Transformer(shape).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, Checkpoint(tiny_model, tokenizer, {"seed": 0}))
    return path
