"""What several test files share: made data, a small vocabulary, and a model so small that it runs in milliseconds."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; commands started by tests inherit it

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pyte
import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.corpus import draw_document
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.retail import world
from part3_pretrain.runtime.cli import exit_status
from part3_pretrain.tokenizer import train_tokenizer
from part4_sft.dataset import Pair, make_datasets, save_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.terminal import interview

Outcome = tuple[int | str | None, str, str]  # exit status, stdout, stderr
Command = Callable[..., Outcome]
TypeKeys = Callable[..., tuple[str, list[str]]]  # what is printed at the end, and the screens
ROOT = Path(__file__).parents[1]


def in_folder(folder: Path) -> list[str]:
    """Options that make a command write below this folder."""
    return ["--out-dir", str(folder / "outputs"), "--checkpoint-dir", str(folder / "checkpoints")]


def assert_refused(outcome: Outcome, complaint: str) -> None:
    """A user's mistake ends with status 2 and one line that says what is wrong and what to do."""
    status, _, stderr = outcome
    assert status == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1 and complaint in stderr, stderr


def weights(model: Transformer) -> torch.Tensor:
    """All weights in one row."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def not_of_retail(pairs: list[Pair]) -> list[Pair]:
    """The same responses to other contexts, for which the retail world's test sets are not made."""
    return [Pair(f"What is {number} and {number}?", pair.response) for number, pair in enumerate(pairs)]


def draw_scenarios(count: int, seed: int = 0, two_problems: float = 0.1) -> list[world.Scenario]:
    """Scenarios of the retail world; the combinations of every other one are held out."""
    rng = Random(seed)
    return [world.draw_scenario(rng, held_out_item=index % 2 == 0, two_problems=two_problems) for index in range(count)]


def wording(context: str) -> str:
    """The sentence pattern of a context: without its order number, and with a slot where the item stands."""
    without_order = re.sub(r" \(order \d+\)|, order \d+| from order \d+", "", context)
    return re.sub(r"\ban \{item}", "a {item}", world.PRODUCT.sub("{item}", without_order))


def tell_tale(phrase: str) -> str:
    """The longest part of a customer's phrase between its slots: where it stands, the phrase was said."""
    return max(re.split(r"\{\w+}", phrase), key=len).lower()


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the `main` of a command with arguments; returns its exit status and what went to stdout and stderr."""

    def call(main: Callable[[], None], *arguments: object) -> Outcome:
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
        settings |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | environment
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        self.process = subprocess.Popen(
            command, **streams, env=settings, start_new_session=True, preexec_fn=_interactive
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


@pytest.fixture
def type_keys(run_main: Command, monkeypatch: pytest.MonkeyPatch) -> TypeKeys:
    """Calls a command that asks a person who types these keys; returns what it printed and all screens it drew."""

    def call(main: Callable[[], None], keys: str, *arguments: object) -> tuple[str, list[str]]:
        screens: list[str] = []
        monkeypatch.setattr(interview, "full_screen", nullcontext)
        monkeypatch.setattr(interview, "read_keys", lambda: iter(keys))
        monkeypatch.setattr(interview, "show", lambda lines: screens.append("\n".join(lines)))
        status, printed, _ = run_main(main, *arguments)
        assert status == 0
        return printed, screens

    return call


@pytest.fixture(scope="session")
def made() -> dict[str, list[Pair]]:
    """The five synthetic data sets of seed 0."""
    return make_datasets(0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = Random(0)
    return train_tokenizer([draw_document(rng) for _ in range(300)], vocab_size=600)


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


@dataclass(frozen=True)
class FinishedRun:
    """A run of `python -m part4_sft.sft`: what was given to it, where it wrote, and what it printed."""

    options: list[str]
    out: Path
    checkpoint: Path
    printed: str

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def finished_run(
    made: dict[str, list[Pair]], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> FinishedRun:
    """One run in a process of its own: 16 of 24 pairs are of high quality."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--model", str(tiny_checkpoint), "--epochs", "2", "--max-new-tokens", "12", "--learning-rate", "0.001"]
    options += ["--samples-per-context", "2", "--batch-size", "8"]
    for option, pairs in {
        "--data": made["sft_dataset"][500:504] + made["sft_dataset"][:16] + made["sft_dataset"][504:508],
        "--validation-data": made["sft_validation"][:6],
        "--test-data": made["sft_test"][:10],
    }.items():
        save_pairs(folder / f"{option}.json", pairs)
        options += [option, str(folder / f"{option}.json")]
    before = tiny_checkpoint.read_bytes()
    command = [sys.executable, "-m", "part4_sft.sft", *options, *in_folder(folder)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert tiny_checkpoint.read_bytes() == before
    return FinishedRun(options, folder / "outputs", folder / "checkpoints" / "sft_model.pt", finished.stdout)
