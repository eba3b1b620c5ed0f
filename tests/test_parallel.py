"""Any number of processes learn the same, replicated or sharded; one that dies ends the job, and the state stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from part3_pretrain import pretrain
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.runtime.cli import exit_status
from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs

ROOT = Path(__file__).parents[1]
PAIRS, EPOCHS, STEPS = 33, 12, 60  # five steps an epoch, whose last has one pair


@pytest.fixture(scope="module")
def options(made: dict[str, list[Pair]], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a small run, whose contexts are not of the retail world: its test sets would take a second to make."""
    folder = tmp_path_factory.mktemp("data")
    found = ["--model", str(tiny_checkpoint), "--epochs", str(EPOCHS), "--learning-rate", "0.001"]
    found += ["--max-new-tokens", "8", "--samples-per-context", "2", "--save-every", "7"]
    for name, first, last in (("data", 0, PAIRS), ("validation-data", 40, 43), ("test-data", 50, 57)):
        pairs = [Pair(f"What is {n} and {n}?", made["sft_dataset"][n].response) for n in range(first, last)]
        save_pairs(folder / f"{name}.json", pairs)
        found += [f"--{name}", str(folder / f"{name}.json")]
    return found


def in_folder(folder: Path) -> list[str]:
    return ["--out-dir", str(folder / "outputs"), "--checkpoint-dir", str(folder / "checkpoints")]


def in_processes(
    main: Callable[[], None], arguments: list[str], count: int, before: Callable[[int], object] = lambda rank: None
) -> list[int]:
    """Runs a command in so many processes, as torchrun would, each prepared by `before`; their exit statuses."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        status = 99
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "localhost"}
            os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": str(port)}
            os.environ["TORCHELASTIC_RUN_ID"] = "tests"
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            sys.argv = [main.__module__, *arguments]
            before(rank)
            status = exit_status(main)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def evaluation(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outputs" / "evaluation.json").read_text())


def assert_same_training(folder: Path, straight: Path, tolerance: float = 1e-5) -> None:
    """Loss and gradient norm of every step, what validation says, all replies, and the weights."""
    found, wanted = evaluation(folder), evaluation(straight)
    for measure in ("loss", "gradient_norm"):
        assert len(wanted["steps"][measure]) == STEPS
        assert found["steps"][measure] == pytest.approx(wanted["steps"][measure], rel=tolerance)
    for here, there in zip(found["by_epoch"], wanted["by_epoch"], strict=True):
        assert (here.pop("train_loss") is None) == (there.pop("train_loss") is None)  # the mean of the steps'
        assert here == pytest.approx(there, rel=10 * tolerance)
    texts = [(path / "outputs" / "replies.json").read_text() for path in (folder, straight)]
    assert texts[0] == texts[1]
    ours, theirs = (load_checkpoint(path / "checkpoints" / "sft_model.pt").model for path in (folder, straight))
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process came to."""
    folder = tmp_path_factory.mktemp("straight")
    assert in_processes(sft.main, [*options, *in_folder(folder)], 1) == [0]
    return folder


# ---------------------------------------------------------------------------------------------------- the same


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "more"),
    [
        (2, []),
        (4, []),
        (1, ["--shard"]),
        (2, ["--shard"]),
        (4, ["--shard"]),
        (2, ["--gradient-accumulation-steps", "3"]),
        (4, ["--gradient-accumulation-steps", "3", "--shard"]),
    ],
)
def test_more_processes_learn_the_same(
    count: int, more: list[str], options: list[str], straight: Path, tmp_path: Path
) -> None:
    assert in_processes(sft.main, [*options, *more, *in_folder(tmp_path)], count) == [0] * count
    assert_same_training(tmp_path, straight)
    assert evaluation(tmp_path)["environment"]["processes"] == count
    assert not (tmp_path / "checkpoints" / "sft_model.state").exists()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"]])
def test_pretraining_in_more_processes_learns_the_same(more: list[str], tmp_path: Path) -> None:
    small = ["--conversations", "60", "--vocab-size", "400", "--tokens-per-batch", "256", "--warmup-steps", "2"]
    found = []
    for count in (1, 3):
        path = tmp_path / f"{count}.pt"
        arguments = [*small, "--dtype", "float32", "--checkpoint", str(path), "--out-dir", str(tmp_path / str(count))]
        assert in_processes(pretrain.main, [*arguments, *more], count) == [0] * count
        found.append(load_checkpoint(path).model)
    for (name, weight), other in zip(found[0].named_parameters(), found[1].parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--lora-rank", "2"], ["--dtype", "bfloat16"], ["--dtype", "bfloat16", "--shard"]])
def test_other_ways_to_train_end_well_and_lower_the_loss(more: list[str], options: list[str], tmp_path: Path) -> None:
    assert in_processes(sft.main, [*options, *more, *in_folder(tmp_path)], 2) == [0, 0]
    losses = evaluation(tmp_path)["steps"]["loss"]
    assert len(losses) == STEPS and losses[-1] < losses[0] - 0.01
    weights = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt", dtype=None).model
    assert weights.norm.weight.dtype == (torch.bfloat16 if "bfloat16" in more else torch.float32)


# ---------------------------------------------------------------------------------------------------- interrupted


def at_step(wanted: int, number: int, victim: int = 0) -> Callable[[int], object]:
    """Prepares one process to send itself a signal behind one of its steps."""
    steps = iter(range(1, wanted + 1))

    def count(*arguments: object) -> None:
        if next(steps, None) == wanted:
            os.kill(os.getpid(), number)

    return lambda rank: register_optimizer_step_post_hook(count) if rank == victim else None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "more"), [(4, 2, []), (2, 4, []), (4, 2, ["--shard"]), (1, 3, ["--shard"])]
)
def test_a_training_that_is_killed_goes_on_in_another_number_of_processes(
    before: int, after: int, more: list[str], options: list[str], straight: Path, tmp_path: Path
) -> None:
    arguments = [*options, *more, *in_folder(tmp_path)]
    victim = before - 1
    statuses = in_processes(sft.main, arguments, before, at_step(40, signal.SIGKILL, victim))
    assert statuses[victim] == -signal.SIGKILL and set(statuses[:victim]) <= {2}  # none hangs, none ends in a traceback
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()
    assert in_processes(sft.main, [*arguments, "--resume"], after, at_step(30, signal.SIGKILL)) == [0] * after
    assert_same_training(tmp_path, straight)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["sft_model.pt"]


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_the_state_is_kept(
    options: list[str], straight: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options, *in_folder(tmp_path)]
    assert in_processes(sft.main, arguments, 2, at_step(23, signal.SIGTERM, victim=1)) == [143, 143]
    complained = capfd.readouterr().err
    assert complained.count("interrupted: ") == 1 and "--resume" in complained
    (latest,) = (tmp_path / "checkpoints" / "sft_model.state").iterdir()
    assert len(json.loads((latest / "values.json").read_text())["history"]) == 23
    status = in_processes(sft.main, [*arguments, "--resume", "--learning-rate", "0.002"], 2)
    complained = capfd.readouterr().err
    # Where one process ends before the other, torch's own code may have something to say, too.
    assert status == [2, 2] and complained.count("error: ") == 1
    assert "--learning-rate was 0.001 and is 0.002" in complained
    assert in_processes(sft.main, arguments, 2, at_step(5, signal.SIGTERM)) == [143, 143]  # anew, not resumed
    (latest,) = (tmp_path / "checkpoints" / "sft_model.state").iterdir()
    assert len(json.loads((latest / "values.json").read_text())["history"]) == 5
    capfd.readouterr()
    (latest / "values.json").write_text("{")
    assert in_processes(sft.main, [*arguments, "--resume"], 2) == [2, 2]
    assert "is damaged" in capfd.readouterr().err


# ---------------------------------------------------------------------------------------------------- torchrun


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("restart_count", [0, 1])
def test_torchrun_ends_a_job_whose_process_is_killed_or_restarts_it_from_its_state(
    restart_count: int, options: list[str], straight: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        "import os, signal\n"
        "from torch.optim.optimizer import register_optimizer_step_post_hook\n"
        "from part3_pretrain.runtime.cli import exit_status\n"
        "from part4_sft import sft\n"
        "steps = iter(range(1, 41))\n"
        "def count(*arguments):\n"
        "    if next(steps, None) == 40:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1':\n"
        "    register_optimizer_step_post_hook(count)\n"
        "raise SystemExit(exit_status(sft.main))\n"
    )
    command = torchrun("--max-restart_count", str(restart_count), str(job), *options, *in_folder(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert "error: another process of this job was killed" in done.stderr, done.stderr
    assert (done.returncode == 0) == bool(restart_count), done.stderr
    if restart_count:
        assert_same_training(tmp_path, straight)
        assert done.stdout.count("trained on 33 of 33 pairs") == 1  # the first process alone speaks
    else:
        assert (tmp_path / "checkpoints" / "sft_model.state").exists()


@pytest.mark.slow
def test_a_mistake_is_told_once(options: list[str], tmp_path: Path) -> None:
    for mistake in (["--learning-rate", "-1"], ["--shard", "--lora-rank", "2"]):
        command = torchrun("-m", "part4_sft.sft", *options, *in_folder(tmp_path), *mistake)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
        assert done.returncode and done.stderr.count("error: ") == 1


def test_sharding_needs_torchrun(
    run_main: Callable[..., tuple[object, str, str]], options: list[str], tmp_path: Path
) -> None:
    small = ["--conversations", "5", "--checkpoint", tmp_path / "made.pt", "--out-dir", tmp_path]
    for command, arguments in ((sft.main, [*options, *in_folder(tmp_path)]), (pretrain.main, small)):
        status, _, complained = run_main(command, *arguments, "--shard")
        assert status == 2 and complained.startswith("error: --shard needs") and complained.count("\n") == 1
