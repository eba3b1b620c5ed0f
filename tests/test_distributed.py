"""Any number of processes learn the same, replicated or sharded; one that dies ends the job, and the state stays."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from part3_pretrain import pretrain
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft import evaluation, sft
from part4_sft.extras.bfloat16_adam import BFloat16Adam
from tests.conftest import ROOT, Command, assert_refused, in_folder
from tests.processes import SMALL_STEPS, at_step, in_ranks, kill_self, small_sft

ACCUMULATE = ["--micro-batch-size", "1"]


def test_collectives_combine_what_the_ranks_have_and_rank_0_alone_prints(capfd: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with distributed.process_group(shard=False):
            rank, items = distributed.rank(), list(range(8))
            assert distributed.world_size() == 3
            assert distributed.shard(items) == [[0, 3, 6], [1, 4, 7], [2, 5]][rank]
            assert distributed.all_gather(distributed.shard(items)) == items
            assert distributed.all_reduce_sum(rank, 0.5) == [3, 1.5]
            assert distributed.all_reduce_max(5 - rank) == 5
            assert distributed.on_rank_0(lambda: f"said by {rank}") == "said by 0"
            print("rank", rank)
            print("rank", rank, file=sys.stderr)

    assert in_ranks(main, 3) == [0, 0, 0]
    out, err = capfd.readouterr()
    assert out == "rank 0\n" and err.count("rank") == 1


def test_another_ones_death_is_told_and_an_error_of_ones_own_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    def wait_for_the_dead() -> None:
        with distributed.process_group(shard=False):
            if distributed.rank() == 1:
                kill_self()
            distributed.all_reduce_max(0)

    assert in_ranks(wait_for_the_dead, 2) == [2, -signal.SIGKILL]
    cause = "error: another process of this job was killed, or said why it ended"
    assert f"{cause}; the same command with --resume goes on from the state" in capfd.readouterr().err

    def fail() -> None:
        with distributed.process_group(shard=False):
            raise RuntimeError("of our own")

    assert in_ranks(fail, 1) == [99]


def test_sharding_needs_torchrun(run_main: Command, tmp_path: Path) -> None:
    folders = ["--checkpoint", tmp_path / "made.pt", "--out-dir", tmp_path]
    assert_refused(run_main(pretrain.main, *folders, "--shard"), "--shard needs several processes; put torchrun ")


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return small_sft(tmp_path_factory.mktemp("data"), tiny_checkpoint)


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process wrote what it came to."""
    folder = tmp_path_factory.mktemp("straight")
    assert in_ranks(sft.main, 1, [*options, *in_folder(folder)]) == [0]
    return folder


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "outputs" / "evaluation.json").read_text())


def assert_same_weights(one: Path, other: Path) -> None:
    ours, theirs = (load_checkpoint(path).model.state_dict() for path in (one, other))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def assert_same_training(folder: Path, straight: Path) -> None:
    """Loss and gradient norm of every step, what validation says, all replies, and the weights."""
    actual, expected = results(folder), results(straight)
    for measure in ("loss", "gradient_norm"):
        assert len(expected["steps"][measure]) == SMALL_STEPS
        assert actual["steps"][measure] == pytest.approx(expected["steps"][measure], rel=1e-5)
    for ours, theirs in zip(actual["by_epoch"], expected["by_epoch"], strict=True):
        del ours["train_loss"], theirs["train_loss"]  # the mean of the steps', and None before the first
        assert ours == pytest.approx(theirs, rel=1e-4)
    replies, model = Path("outputs/replies.json"), Path("checkpoints/sft_model.pt")
    assert (folder / replies).read_text() == (straight / replies).read_text()
    assert_same_weights(folder / model, straight / model)
    assert list((folder / "checkpoints").iterdir()) == [folder / model]


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"], ACCUMULATE, [*ACCUMULATE, "--shard"]], ids=" ".join)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_more_processes_learn_the_same(
    world_size: int, more: list[str], options: list[str], straight: Path, tmp_path: Path
) -> None:
    assert in_ranks(sft.main, world_size, [*options, *more, *in_folder(tmp_path)]) == [0] * world_size
    assert_same_training(tmp_path, straight)
    assert results(tmp_path)["environment"]["processes"] == world_size


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"]])
def test_gradients_of_several_processes_are_scaled_down_as_a_whole(
    more: list[str], options: list[str], tmp_path: Path
) -> None:
    recipe = ["--schedule", "linear", "--warmup-steps", "2", "--max-grad-norm", "2.5"]
    assert in_ranks(sft.main, 1, [*options, *recipe, *in_folder(tmp_path / "one")]) == [0]
    assert in_ranks(sft.main, 2, [*options, *recipe, *more, *in_folder(tmp_path / "two")]) == [0, 0]
    norms = results(tmp_path / "one")["steps"]["gradient_norm"]
    assert min(norms) < 2.5 < max(norms)
    assert_same_training(tmp_path / "two", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--shard"]])
def test_pretraining_in_more_processes_learns_the_same(more: list[str], tmp_path: Path) -> None:
    small = ["--conversations", "60", "--vocab-size", "400", "--tokens-per-batch", "1024", "--dtype", "float32"]
    small += ["--learning-rate", "1e-3"]  # a larger step of Muon's moves far where a gradient is little but rounding
    for world_size, options in ((1, small), (3, [*small, *more])):
        files = ["--checkpoint", str(tmp_path / f"{world_size}.pt"), "--out-dir", str(tmp_path)]
        assert in_ranks(pretrain.main, world_size, [*options, *files]) == [0] * world_size
    assert_same_weights(tmp_path / "1.pt", tmp_path / "3.pt")


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--lora-rank", "2"], ["--dtype", "bfloat16"], ["--dtype", "bfloat16", "--shard"]])
def test_other_ways_to_train_end_well_and_lower_the_loss(more: list[str], options: list[str], tmp_path: Path) -> None:
    assert in_ranks(sft.main, 2, [*options, *more, *in_folder(tmp_path)]) == [0, 0]
    losses = results(tmp_path)["steps"]["loss"]
    assert len(losses) == SMALL_STEPS and sum(losses[6:]) / 6 < sum(losses[:6]) / 6 - 0.01
    model = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt", dtype=None).model
    assert model.norm.weight.dtype == (torch.bfloat16 if more == ["--dtype", "bfloat16"] else torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "more"), [(4, 2, []), (2, 4, []), (4, 2, ["--shard"]), (1, 3, ["--shard"])]
)
def test_a_training_that_is_killed_goes_on_in_another_number_of_processes(
    before: int, after: int, more: list[str], options: list[str], straight: Path, tmp_path: Path
) -> None:
    arguments = [*options, *more, *in_folder(tmp_path)]
    statuses = in_ranks(sft.main, before, arguments, at_step(8), rank=before - 1)
    assert statuses.pop() == -signal.SIGKILL and set(statuses) <= {2}  # none hangs, none ends in a traceback
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()
    assert in_ranks(sft.main, after, [*arguments, "--resume"], at_step(SMALL_STEPS)) == [0] * after  # of fewer
    assert_same_training(tmp_path, straight)


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_the_state_is_kept(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*options, *in_folder(tmp_path)]

    def stopped_at(step: int, rank: int) -> Path:
        assert in_ranks(sft.main, 2, arguments, at_step(step, signal.SIGTERM), rank) == [143, 143]
        (save,) = (tmp_path / "checkpoints" / "sft_model.state").iterdir()
        assert len(json.loads((save / "values.json").read_text())["values"]["steps"]) == step
        return save

    stopped_at(9, rank=1)
    stderr = capfd.readouterr().err
    assert stderr.count("interrupted: ") == 1 and "--resume" in stderr
    statuses = in_ranks(sft.main, 2, [*arguments, "--resume", "--learning-rate", "0.002"])
    stderr = capfd.readouterr().err
    # Where one process ends before the other, torch's own code may have something to say, too.
    assert statuses == [2, 2] and stderr.count("error: ") == 1
    assert "--learning-rate was 0.001 and is 0.002" in stderr
    save = stopped_at(5, rank=0)  # anew, not resumed
    (save / "values.json").write_text("{}")
    assert in_ranks(sft.main, 2, [*arguments, "--resume"]) == [2, 2]
    assert "sft_model.state is damaged" in capfd.readouterr().err


@pytest.mark.parametrize(("world_size", "batches"), [(1, 3), (2, 2)])
def test_a_signal_to_one_process_ends_the_validation_of_all_and_a_resumed_training_does_it_anew(
    world_size: int, batches: int, options: list[str], straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "VALIDATION_BATCH", 1)
    arguments, generate, calls = [*options, *in_folder(tmp_path)], evaluation.generate_replies, count(1)

    def generate_then_signal(*arguments: Any) -> Any:
        """The signal comes in the first batch of the second validation, after which none is computed."""
        replies, call = generate(*arguments), next(calls)
        assert call <= batches + 1
        if call == batches + 1:
            kill_self(signal.SIGTERM)
        return replies

    def signal_in_validation() -> None:
        evaluation.generate_replies = generate_then_signal  # type: ignore[assignment]

    assert in_ranks(sft.main, world_size, arguments, signal_in_validation) == [143] * world_size
    (save,) = (tmp_path / "checkpoints" / "sft_model.state").iterdir()
    values = json.loads((save / "values.json").read_text())["values"]
    assert (len(values["steps"]), len(values["by_epoch"])) == (SMALL_STEPS // 2, 1)
    assert in_ranks(sft.main, world_size, [*arguments, "--resume"]) == [0] * world_size
    assert_same_training(tmp_path, straight)


def test_processes_whose_weights_drift_apart_are_told_before_that_is_saved(tmp_path: Path) -> None:
    """Weights in bfloat16 are rounded by chance; here one process draws a number that the other does not."""
    torch.manual_seed(0)
    model = nn.Linear(30, 20, dtype=torch.bfloat16)
    optimizer = BFloat16Adam(model.parameters(), lr=0.1, moments_dtype=torch.float32)

    def step() -> None:
        model(torch.ones(30, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()

    def main() -> None:
        with distributed.process_group(shard=False):
            state = TrainingState(tmp_path / "state.pt", {})
            step()
            state.save(model, optimizer, {"steps": 1})
            torch.rand(distributed.rank())
            step()
            with pytest.raises(UserError, match=r"^the processes no longer have the same weights; go on with --resume"):
                state.save(model, optimizer, {"steps": 2})
            state.store.finish()
            assert TrainingState(tmp_path / "state.pt", {}, resume=True).saved_values == {"steps": 1}

    assert in_ranks(main, 2) == [0, 0]


def test_the_first_process_decides_for_all_what_to_resume(tmp_path: Path) -> None:
    """The other is on a machine that does not see yet what is in the folder on the network drive."""
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())
    glob = Path.glob

    def glob_but_saves(folder: Path, pattern: str) -> Iterator[Path]:
        return iter(()) if pattern.startswith("save-") else glob(folder, pattern)

    def main() -> None:
        with distributed.process_group(shard=False):
            state = TrainingState(tmp_path / "state.pt", {})
            state.save(model, optimizer, {"steps": 1})
            state.store.finish()
            if distributed.rank() == 1:
                Path.glob = glob_but_saves  # type: ignore[assignment, method-assign]
            state = TrainingState(tmp_path / "state.pt", {}, resume=True)
            assert state.restore(model, optimizer) == {"steps": 1}
            state.save(model, optimizer, {"steps": 2})
            state.store.finish()
            assert TrainingState(tmp_path / "state.pt", {}, resume=True).saved_values == {"steps": 2}

    assert in_ranks(main, 2) == [0, 0]
    assert [save.name for save in (tmp_path / "state").iterdir()] == ["save-000002"]


def test_a_full_disk_is_told_in_one_line(options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    limit = (20_000, 20_000)  # bytes a file
    arguments = [*options, *in_folder(tmp_path)]
    (status,) = in_ranks(sft.main, 1, arguments, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    assert_refused((status, *capfd.readouterr()), "sft_model.state: ")


@pytest.mark.slow
def test_torchrun_restarts_a_job_whose_process_is_killed_from_its_state(
    options: list[str], straight: Path, tmp_path: Path
) -> None:
    job = tmp_path / "job.py"
    job.write_text(
        "import os, sys\n"
        "sys.path.insert(0, os.getcwd())\n"
        "from part3_pretrain.runtime.cli import exit_status\n"
        "from part4_sft import sft\n"
        "from tests.processes import at_step\n"
        "if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0' and os.environ['RANK'] == '1':\n"
        "    at_step(8)()\n"
        "raise SystemExit(exit_status(sft.main))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", str(job), *options, *in_folder(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "error: another process of this job was killed" in done.stderr, done.stderr
    assert done.stdout.count("resuming after step ") == 1  # rank 0 alone speaks
    assert_same_training(tmp_path, straight)
