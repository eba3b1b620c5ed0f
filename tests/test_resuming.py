"""Trainings that are killed at any moment and resumed end with the same bits; what does not fit is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import IO, Any

import peft  # noqa: F401, so that not every process of a test imports it anew
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from part3_pretrain import pretrain
from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint
from part3_pretrain.runtime.cli import exit_status
from part3_pretrain.runtime.files import locked
from part4_sft import sft, training
from part4_sft.dataset import Pair, save_pairs
from part4_sft.encoding import shuffled_steps

Command = Callable[..., tuple[int | str | None, str, str]]
WAYS = {  # of training: different things are in the state
    "as it comes": [],
    "bfloat16": ["--dtype", "bfloat16"],
    "bfloat16 moments": ["--dtype", "bfloat16", "--moments-dtype", "bfloat16"],
    "LoRA": ["--lora-rank", "2", "--gradient-accumulation-steps", "2"],
}
SFT_STEPS = 12  # two epochs of 18 pairs in threes
PRETRAINING = ["--conversations", "30", "--vocab-size", "400", "--tokens-per-batch", "256", "--warmup-steps", "2"]


def in_a_process(main: Callable[[], None], arguments: list[str], before: Callable[[], object] = lambda: None) -> int:
    """Runs a command in a process of its own, which `before` can prepare; the exit status, or minus the signal."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 99
    try:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        sys.argv = [main.__module__, *arguments]
        before()
        status = exit_status(main)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def kill_self(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def at_step(wanted: int, after: bool = True, number: int = signal.SIGKILL) -> Callable[[], object]:
    """Prepares a process to send itself a signal before or after the weights change at one of its steps."""
    register = register_optimizer_step_post_hook if after else register_optimizer_step_pre_hook
    steps = iter(range(1, wanted + 1))

    def count(*arguments: object) -> None:
        if next(steps, None) == wanted:
            kill_self(number)

    return lambda: register(count)


def in_save(wanted: int) -> Callable[[], None]:
    """Prepares a process to kill itself when half of a checkpoint or state is written."""
    save, saves = torch.save, iter(range(1, wanted + 1))

    def save_half(contents: object, file: IO[bytes]) -> None:
        save(contents, file)
        if next(saves) == wanted:
            file.flush()
            os.truncate(file.name, file.tell() // 2)
            kill_self()

    return lambda: setattr(torch, "save", save_half)


def before_rename(wanted: int) -> Callable[[], None]:
    """Prepares a process to kill itself when a file is whole, but still has its temporary name."""
    syncs = iter(range(1, wanted + 1))
    return lambda: setattr(os, "fsync", lambda descriptor: kill_self() if next(syncs) == wanted else None)


@pytest.fixture(scope="module")
def sft_options(
    made: dict[str, list[Pair]], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Options of a small run; its pairs are not of the retail world, whose test sets would take a second to make."""
    folder = tmp_path_factory.mktemp("data")
    options = ["--model", str(tiny_checkpoint), "--epochs", "2", "--batch-size", "3", "--max-new-tokens", "3"]
    options += ["--samples-per-context", "1", "--learning-rate", "0.001", "--save-every", "2"]
    for name, numbers in {"data": range(18), "validation-data": range(20, 23), "test-data": range(30, 33)}.items():
        save_pairs(folder / f"{name}.json", [Pair(f"What is {n} and {n}?", f"It is {2 * n}.") for n in numbers])
        options += [f"--{name}", str(folder / f"{name}.json")]
    return options


def in_folder(folder: Path) -> list[str]:
    return ["--out-dir", str(folder / "outputs"), "--checkpoint-dir", str(folder / "checkpoints")]


def result(folder: Path) -> dict[str, object]:
    """All that a fine-tuning came to."""
    evaluation = json.loads((folder / "outputs" / "evaluation.json").read_text())
    found = {name: evaluation[name] for name in ("by_epoch", "steps", "sft", "pretrained")}
    model = load_checkpoint(folder / "checkpoints" / "sft_model.pt", dtype=None).model
    found |= {name: weight.view(-1).view(torch.uint8).tolist() for name, weight in model.named_parameters()}
    return found | {name: (folder / "outputs" / name).read_bytes() for name in ("loss_curve.png", "replies.json")}


@pytest.fixture(scope="module")
def straight(sft_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the uninterrupted run of each way came to."""
    found = {}
    for way, options in WAYS.items():
        folder = tmp_path_factory.mktemp("straight")
        assert in_a_process(sft.main, [*sft_options, *options, *in_folder(folder)]) == 0
        found[way] = result(folder)
    return found


# ---------------------------------------------------------------------------------------------------- killed


def moments(count: int, steps: int, seed: int) -> list[tuple[int, bool]]:
    """Steps, and whether before or after the weights change."""
    rng = Random(seed)
    return [(rng.randint(1, steps), rng.random() < 0.5) for _ in range(count)]


def numbers(count: int, quick: int) -> list[object]:
    """So many tests, of which the first ones are run every time."""
    return [*range(quick), *(pytest.param(number, marks=pytest.mark.slow) for number in range(quick, count))]


@pytest.mark.parametrize("number", numbers(12, quick=4))
def test_fine_tuning_that_is_killed_and_resumed_ends_with_the_same_bits(
    number: int, sft_options: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    way = list(WAYS)[number % len(WAYS)]
    options = [*sft_options, *WAYS[way], *in_folder(tmp_path)]
    kill = in_save(2) if number == 3 else at_step(*moments(12, SFT_STEPS, seed=0)[number])
    assert in_a_process(sft.main, options, before=kill) == -signal.SIGKILL
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()
    assert in_a_process(sft.main, [*options, "--resume"]) == 0
    assert result(tmp_path) == straight[way]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["sft_model.pt"]


def test_fine_tuning_that_is_killed_again_and_again_ends_with_the_same_bits(
    sft_options: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    options = [*sft_options, *in_folder(tmp_path)]
    for step in (5, 3, 4):  # counted from where it goes on
        assert in_a_process(sft.main, [*options, "--resume"], before=at_step(step)) == -signal.SIGKILL
    assert in_a_process(sft.main, [*options, "--resume"]) == 0
    assert result(tmp_path) == straight["as it comes"]


def test_a_run_that_is_killed_after_its_training_need_not_train_again(
    sft_options: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    options = [*sft_options, *in_folder(tmp_path)]
    saves = SFT_STEPS // 2  # every second step's, an epoch's last with its validation: the next is the model's
    assert in_a_process(sft.main, options, before=in_save(saves + 1)) == -signal.SIGKILL
    assert in_a_process(sft.main, [*options, "--resume"], before=at_step(1)) == 0  # it would be killed
    assert result(tmp_path) == straight["as it comes"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, object], int]:
    """What an uninterrupted pretraining came to, and after how many steps."""
    folder = tmp_path_factory.mktemp("pretrained")
    steps = tmp_path_factory.mktemp("steps") / "steps"

    def count(*arguments: object) -> None:
        with steps.open("a") as file:
            file.write(".")

    assert in_a_process(pretrain.main, pretraining(folder), lambda: register_optimizer_step_post_hook(count)) == 0
    return its_result(folder), len(steps.read_text())


def pretraining(folder: Path) -> list[str]:
    files = ["--checkpoint", str(folder / "pretrained.pt"), "--out-dir", str(folder), "--save-every", "3"]
    return [*PRETRAINING, *files]


def its_result(folder: Path) -> dict[str, object]:
    checkpoint = load_checkpoint(folder / "pretrained.pt")
    weights = {name: weight.tolist() for name, weight in checkpoint.model.named_parameters()}
    return weights | {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


@pytest.mark.parametrize("number", numbers(8, quick=2))
def test_pretraining_that_is_killed_and_resumed_ends_with_the_same_bits(
    number: int, pretrained: tuple[dict[str, object], int], tmp_path: Path
) -> None:
    straight, steps = pretrained
    kill = before_rename(3) if number == 1 else at_step(*moments(8, steps, seed=1)[number])
    assert in_a_process(pretrain.main, pretraining(tmp_path), kill) == -signal.SIGKILL
    assert in_a_process(pretrain.main, [*pretraining(tmp_path), "--resume"]) == 0
    assert its_result(tmp_path) == straight
    assert {path.name for path in tmp_path.iterdir()} == {"pretrained.pt", "pretraining_loss_curve.png"}


# ---------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_the_state_of_the_step_and_tells_how_to_go_on(
    number: int,
    status: int,
    sft_options: list[str],
    straight: dict[str, dict[str, object]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = [*sft_options, *in_folder(tmp_path), "--save-every", "1000"]
    assert in_a_process(sft.main, options, before=at_step(4, False, number)) == status
    state = tmp_path / "checkpoints" / "sft_model.state.pt"
    told = capfd.readouterr().err
    assert told == f"interrupted: {state} holds the state; the same command with --resume goes on\n"
    assert len(torch.load(state, weights_only=True)["values"]["history"]) == 4
    assert in_a_process(sft.main, [*options, "--resume"]) == 0
    assert "resuming after step 4 of " in capfd.readouterr().out
    assert result(tmp_path) == straight["as it comes"]


def test_pretraining_is_interrupted_likewise(
    pretrained: tuple[dict[str, object], int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_a_process(pretrain.main, pretraining(tmp_path), before=at_step(4, True, signal.SIGTERM)) == 143
    assert "--resume" in capfd.readouterr().err
    assert in_a_process(pretrain.main, [*pretraining(tmp_path), "--resume"]) == 0
    assert "resuming after step 4 of " in capfd.readouterr().out
    assert its_result(tmp_path) == pretrained[0]


def test_an_interrupt_before_there_is_a_state_says_that_nothing_is_left_behind(run_main: Command) -> None:
    def main() -> None:
        raise KeyboardInterrupt

    assert run_main(main) == (130, "", "interrupted: nothing half-written was left behind\n")


# ---------------------------------------------------------------------------------------------------- refused


def test_with_nothing_to_resume_it_says_so_and_starts(
    run_main: Command, sft_options: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    status, printed, _ = run_main(sft.main, *sft_options, *in_folder(tmp_path), "--resume")
    assert status == 0 and "\nnothing to resume: there is no " in printed
    assert result(tmp_path) == straight["as it comes"]


@pytest.fixture
def interrupted(sft_options: list[str], tmp_path: Path) -> list[str]:
    """The options of a run that was killed."""
    options = [*sft_options, *in_folder(tmp_path)]
    assert in_a_process(sft.main, options, before=at_step(7)) == -signal.SIGKILL
    return options


def test_another_setting_data_or_model_is_refused_by_name_and_nothing_is_lost(
    run_main: Command,
    interrupted: list[str],
    tiny_checkpoint: Path,
    straight: dict[str, dict[str, object]],
    tmp_path: Path,
) -> None:
    state = tmp_path / "checkpoints" / "sft_model.state.pt"
    before = state.read_bytes()
    save_pairs(tmp_path / "others.json", [Pair(f"What is {n} and {n}?", f"It is {2 * n + 1}.") for n in range(18)])
    checkpoint = load_checkpoint(tiny_checkpoint)
    checkpoint.model.norm.weight.data[0] += 0.5
    changed = tmp_path / "changed.pt"
    save_checkpoint(changed, checkpoint)
    for options, name in {
        ("--learning-rate", "0.002"): "--learning-rate was 0.001 and is 0.002",
        ("--epochs", "3"): "--epochs was 2 and is 3",
        ("--temperature", "0"): "--temperature was 0.7 and is 0.0",
        ("--data", str(tmp_path / "others.json")): "the digest of sft_dataset was",
        ("--model", str(changed)): "the digest of the weights to begin with was",
    }.items():
        status, _, complained = run_main(sft.main, *interrupted, *options, "--resume")
        assert status == 2 and complained.count("\n") == 1, complained
        assert complained.startswith(f"error: {state} cannot be resumed: {name}")
        assert state.read_bytes() == before
    # What changes nothing may change.
    assert run_main(sft.main, *interrupted, "--save-every", "5", "--resume")[0] == 0
    assert result(tmp_path) == straight["as it comes"]


def test_a_damaged_state_is_refused_in_one_line(run_main: Command, interrupted: list[str], tmp_path: Path) -> None:
    state = tmp_path / "checkpoints" / "sft_model.state.pt"
    contents = bytearray(state.read_bytes())
    contents[len(contents) // 2] ^= 1
    for damaged in (bytes(contents), bytes(contents[:1000]), b""):
        state.write_bytes(damaged)
        status, _, complained = run_main(sft.main, *interrupted, "--resume")
        assert status == 2 and complained.startswith(f"error: {state} is damaged") and complained.count("\n") == 1


def test_a_training_that_is_not_resumed_starts_anew_and_says_so(
    run_main: Command, interrupted: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    status, printed, _ = run_main(sft.main, *interrupted)
    assert status == 0 and "holds an interrupted training" in printed
    assert result(tmp_path) == straight["as it comes"]


# ---------------------------------------------------------------------------------------------------- gone wrong


def test_a_loss_that_is_not_finite_ends_the_training_and_names_step_and_pairs(
    run_main: Command, sft_options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked_loss, calls = training.masked_loss, iter(range(1, 10_000))

    def overflowing(*given: Any) -> torch.Tensor:
        loss = masked_loss(*given)
        return loss * float("inf") if torch.is_grad_enabled() and next(calls) == 5 else loss

    monkeypatch.setattr(training, "masked_loss", overflowing)
    status, _, complained = run_main(sft.main, *sft_options, *in_folder(tmp_path))
    assert status == 2 and complained.count("\n") == 1
    places = shuffled_steps(18, 3, 1, 0)[4]
    assert complained.startswith("error: the loss of step 5 is inf")
    assert f"(training pairs {', '.join(str(place + 1) for place in places)})" in complained
    state = torch.load(tmp_path / "checkpoints" / "sft_model.state.pt", weights_only=True)
    assert len(state["values"]["history"]) == 4 and all(weight.isfinite().all() for weight in state["model"].values())
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()


# ---------------------------------------------------------------------------------------------------- the disk


def with_room_for(size: int) -> None:
    """No file of this process may become longer, as if the disk were full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [10_000, 300_000])
def test_a_full_disk_is_told_in_one_line_and_the_previous_model_stays(
    size: int, sft_options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "checkpoints" / "sft_model.pt"
    model.parent.mkdir()
    model.write_bytes(b"the previous one")
    options = [*sft_options, *in_folder(tmp_path)]
    assert in_a_process(sft.main, options, before=lambda: with_room_for(size)) == 2
    complained = capfd.readouterr().err
    assert complained.startswith("error: cannot write") and complained.count("\n") == 1
    assert model.read_bytes() == b"the previous one"
    assert not list(tmp_path.rglob(".partial*"))


def test_a_second_run_into_the_same_folder_is_refused_until_the_first_is_gone(
    run_main: Command, sft_options: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    for shared in ("outputs", "checkpoints"):
        folders = in_folder(tmp_path)
        with locked(tmp_path / shared):
            status, _, complained = run_main(sft.main, *sft_options, *folders)
        assert status == 2 and complained.startswith(f"error: another run is writing to {tmp_path / shared}")
        assert complained.count("\n") == 1

    def lock_and_die() -> None:
        locked(tmp_path / "outputs").__enter__()
        kill_self()

    assert in_a_process(sft.main, [], before=lock_and_die) == -signal.SIGKILL
    assert run_main(sft.main, *sft_options, *in_folder(tmp_path))[0] == 0
    assert result(tmp_path) == straight["as it comes"]


@pytest.mark.parametrize("name", ["outputs/evaluation.json", "outputs/loss_curve.png", "checkpoints/sft_model.pt"])
def test_a_folder_in_the_place_of_a_file_is_told_before_any_work(
    name: str, sft_options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert in_a_process(sft.main, [*sft_options, *in_folder(tmp_path)], before=at_step(1)) == 2
    complained = capfd.readouterr().err
    assert complained.startswith(f"error: {tmp_path / name} is a folder") and complained.count("\n") == 1


def test_a_folder_that_vanishes_while_training_is_made_again(
    sft_options: list[str], straight: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    def vanish() -> None:
        register_optimizer_step_post_hook(lambda *arguments: shutil.rmtree(tmp_path / "outputs", ignore_errors=True))

    assert in_a_process(sft.main, [*sft_options, *in_folder(tmp_path)], before=vanish) == 0
    assert result(tmp_path) == straight["as it comes"]
