"""Trainings that are killed at any moment and resumed end with the same bits; what does not fit is refused."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft  # noqa: F401, so that not every process of a test imports it anew
import pytest
import torch
from torch import nn

from part3_pretrain import pretrain
from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint
from part3_pretrain.runtime.cli import Terminated, UserError
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs
from tests.conftest import Command, assert_refused, in_folder
from tests.processes import Prepare, at_step, in_a_process, in_save, small_sft

RUN = {"--epochs": 2, "--learning-rate": 0.1}


class Training:
    """A few steps on random numbers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.model(torch.randn(4, 3)).square().sum().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def save(self, state: TrainingState, **values: Any) -> None:
        state.save(self.model, self.optimizer, values)

    def restore(self, state: TrainingState) -> dict[str, Any]:
        return state.restore(self.model, self.optimizer)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a training that was interrupted after two steps, with some values."""
    training = Training()
    with pytest.raises(RuntimeError), TrainingState(tmp_path / "state.pt", RUN) as state:
        training.steps(2)
        training.save(state, losses=[2.0, 1.0])
        raise RuntimeError
    return tmp_path / "state.pt"


def test_restored_training_goes_on_with_the_same_bits(path: Path) -> None:
    straight, resumed = Training(), Training()
    straight.steps(3)
    assert resumed.restore(TrainingState(path, RUN, resume=True)) == {"losses": [2.0, 1.0]}
    resumed.steps(1)
    assert torch.equal(straight.model.weight, resumed.model.weight)


def test_without_a_file_nothing_is_saved_and_nothing_restored() -> None:
    training = Training()
    with TrainingState() as state, state.signals_wait():
        assert training.restore(state) == {}
        assert not state.is_due()
        training.save(state)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # it has nothing to wait for


def test_a_save_is_due_every_so_many_steps_and_is_removed_after_a_good_end(tmp_path: Path) -> None:
    training, due = Training(), []
    with TrainingState(tmp_path / "state.pt", save_every=3) as state:
        assert training.restore(state) == {}
        for step in range(1, 9):
            due.append(state.is_due())
            if due[-1] or step == 4:
                training.save(state)
        assert (tmp_path / "state.pt").exists()
    assert due == [False, False, True, False, False, False, True, False]  # the third after the save at step 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_waits_for_the_next_save_and_a_second_one_does_not(
    number: int, error: type[BaseException], tmp_path: Path
) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    training, path = Training(), tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt, match=r"^$"), TrainingState(path) as state, state.signals_wait():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # before the first save: nothing is promised
    state = TrainingState(path, save_every=100)
    message = f"^{path} holds the state; the same command with --resume goes on$"
    with pytest.raises(error, match=message) as interrupt, state, state.signals_wait():
        signal.raise_signal(number)
        assert state.is_due()
        training.save(state, step=7)
    assert interrupt.type is error
    assert training.restore(TrainingState(path, resume=True)) == {"step": 7}
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_thread_that_gets_no_signals_saves_as_any_other(tmp_path: Path) -> None:
    def train() -> None:
        with TrainingState(tmp_path / "state.pt") as state, state.signals_wait():
            Training().save(state, step=7)
            raise RuntimeError

    with ThreadPoolExecutor() as threads, pytest.raises(RuntimeError):
        threads.submit(train).result()
    assert Training().restore(TrainingState(tmp_path / "state.pt", resume=True)) == {"step": 7}


def test_another_run_is_refused_by_what_has_changed(path: Path) -> None:
    cure = "go on with what it was, or start anew without --resume"
    for run, change in (
        (RUN | {"--epochs": 3}, "--epochs was 2 and is 3"),
        ({"--epochs": 2}, "--learning-rate was 0.1 and is None"),
        (RUN | {"--seed": 1}, "--seed was None and is 1"),
    ):
        with pytest.raises(UserError, match=f"^{path} cannot be resumed: {change}; {cure}$"):
            TrainingState(path, run, resume=True)


def test_a_damaged_state_is_refused(path: Path) -> None:
    """One that would run code is in test_damaged_checkpoints."""
    contents = path.read_bytes()
    for damaged in (contents.replace(b"losses", b"lasses"), contents[:1000], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"^.*state.pt is damaged \(.+\); start anew without --resume$"):
            TrainingState(path, RUN, resume=True)


def test_it_says_what_it_finds(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TrainingState(path, {"--epochs": 3})
    note = f"note: {path} holds an interrupted training, which --resume would have gone on with; starting anew\n"
    assert capsys.readouterr() == ("", note)
    path.unlink()
    TrainingState(path, RUN, resume=True)
    assert capsys.readouterr() == (f"nothing to resume: there is no {path}; starting from the beginning\n", "")


PRETRAINING = ["--conversations", "30", "--vocab-size", "400", "--tokens-per-batch", "256", "--warmup-steps", "2"]
COMMANDS = {  # different things are in their states
    "pretraining": (pretrain.main, [*PRETRAINING, "--save-every", "3"]),
    "fine-tuning": (sft.main, []),
    "bfloat16": (sft.main, ["--dtype", "bfloat16"]),
    "bfloat16 moments": (sft.main, ["--dtype", "bfloat16", "--moments-dtype", "bfloat16"]),
    "LoRA": (sft.main, ["--lora-rank", "2", "--micro-batch-size", "2"]),
}
TELL_TIME = ("evaluation.json", "README_Part4_SFT_Comprehensive.md")  # the files that do
Run = Callable[..., int]


@pytest.fixture(scope="module")
def sft_options(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_sft(tmp_path_factory.mktemp("data"), tiny_checkpoint)


@pytest.fixture(scope="module")
def run(sft_options: list[str]) -> Run:
    """Runs a command in a process and a folder of its own, with --resume; returns its exit status."""

    def run(name: str, folder: Path, prepare: Prepare = dict) -> int:
        main, options = COMMANDS[name]
        shared = sft_options if main is sft.main else []

        def prepare_in_folder() -> None:
            os.chdir(folder)
            prepare()

        return in_a_process(main, [*shared, *options, "--resume"], prepare_in_folder)

    return run


def results(folder: Path) -> dict[str, bytes]:
    """All files below a folder by their names, without those that tell the time that was taken."""
    files = {path for path in folder.rglob("*") if path.is_file()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name not in TELL_TIME}


@pytest.fixture(scope="module")
def uninterrupted(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folders = {name: tmp_path_factory.mktemp("uninterrupted") for name in COMMANDS}
    assert all(run(name, folder) == 0 for name, folder in folders.items())
    return {name: results(folder) for name, folder in folders.items()}


@pytest.mark.parametrize(
    ("name", "interruptions", "resumed_at"),
    [
        ("fine-tuning", [at_step(5), at_step(3), at_step(3)], 8),  # each counted from where it goes on
        ("fine-tuning", [at_step(4, signal.SIGINT, after=False)], 4),
        ("fine-tuning", [in_save(7)], 12),  # in the model's: an epoch's last step is saved with its validation
        ("fine-tuning", [at_step(6, signal.SIGTERM)], 6),  # an epoch's last step: resumed with its validation
        ("bfloat16", [at_step(7, signal.SIGTERM)], 7),
        ("bfloat16 moments", [at_step(10, after=False)], 8),
        ("LoRA", [in_save(2)], 2),
        ("pretraining", [at_step(7)], 6),
        ("pretraining", [in_save(3)], 6),
        ("pretraining", [at_step(4, signal.SIGTERM)], 4),
        *(pytest.param(name, [at_step(step)], "", marks=pytest.mark.slow) for name in COMMANDS for step in (5, 9)),
    ],
)
def test_a_command_that_is_interrupted_and_resumed_ends_with_the_same_bits(
    name: str,
    interruptions: list[Prepare],
    resumed_at: object,
    run: Run,
    uninterrupted: dict[str, dict[str, bytes]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for interruption in interruptions:
        assert run(name, tmp_path, interruption) in (-signal.SIGKILL, 130, 143)
        assert not list(tmp_path.glob("checkpoints/*d.pt"))
    capfd.readouterr()
    assert run(name, tmp_path) == 0
    assert f"\nresuming after step {resumed_at}" in "\n" + capfd.readouterr().out
    assert results(tmp_path) == uninterrupted[name]


def test_another_setting_data_or_model_is_refused_by_name_and_nothing_is_lost(
    run_main: Command, run: Run, sft_options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert run("fine-tuning", tmp_path, at_step(7)) == -signal.SIGKILL
    state, others, changed = tmp_path / "checkpoints/sft_model.state.pt", tmp_path / "others.json", tmp_path / "new.pt"
    before = state.read_bytes()
    save_pairs(others, [Pair(f"What is {n} plus {n}?", f"It is {2 * n}.") for n in range(18)])
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.model.norm.weight.data[0] += 0.5
    save_checkpoint(changed, checkpoint)
    reshaped, retokenised = tmp_path / "reshaped.pt", tmp_path / "retokenised.pt"
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.tokenizer.add_special_tokens([checkpoint.tokenizer.id_to_token(300)])
    save_checkpoint(retokenised, checkpoint)
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.model.config = replace(checkpoint.model.config, rope_theta=5e5)
    save_checkpoint(reshaped, checkpoint)
    options = [*sft_options, *in_folder(tmp_path), "--resume"]
    for option, value, complaint in (
        ("--temperature", 0, "--temperature was 0.4 and is 0.0"),
        ("--data", others, "the digest of sft_dataset was"),
        ("--test-data", others, "the digest of sft_test was"),
        ("--model", changed, "the digest of the weights to begin with was"),
        ("--model", reshaped, "the shape of the model was"),
        ("--model", retokenised, "the digest of the tokenizer was"),
    ):
        outcome = run_main(sft.main, *options, option, value)
        assert_refused(outcome, f"{state} cannot be resumed: {complaint}")
        assert state.read_bytes() == before
    assert run_main(sft.main, *options, "--save-every", "5")[0] == 0  # what decides nothing may change


@pytest.mark.parametrize("size", [10_000, 300_000])
def test_a_full_disk_is_told_in_one_line_and_the_previous_model_stays(
    size: int, run: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "checkpoints" / "sft_model.pt"
    model.parent.mkdir()
    model.write_bytes(b"the previous one")
    status = run("fine-tuning", tmp_path, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    assert_refused((status, *capfd.readouterr()), "cannot write")
    assert model.read_bytes() == b"the previous one"
    assert not list(tmp_path.rglob(".partial*"))
