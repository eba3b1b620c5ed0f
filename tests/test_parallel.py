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

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from part3_pretrain import pretrain
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.command_line import exit_status
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


def evaluation(folder: Path) -> dict[str, object]:
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


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (2, []),
        (4, []),
        (2, ["--shard"]),
        (4, ["--shard"]),
        (1, ["--shard"]),
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


def test_the_processes_of_a_job_are_told_apart_from_none(options: list[str], straight: Path, tmp_path: Path) -> None:
    """What one process does without torchrun is the same again."""
    command = [sys.executable, "-m", "part4_sft.sft", *options, *in_folder(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert_same_training(tmp_path, straight, 0)
