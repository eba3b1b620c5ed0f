"""Settings that must not change what is learnt: step by step the same loss and gradient norm, by the real command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft import sft
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, save_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.training import shuffled_batches
from tests.conftest import Command, in_folder, not_of_retail

Trajectory = list[tuple[float, float]]
REFERENCE = Path(__file__).with_name("reference_trajectory.json")
TRAINED = 40  # pairs: five steps an epoch
BATCH_SIZE = 8
FAST = ("--epochs", "2", "--learning-rate", "0.001", "--batch-size", str(BATCH_SIZE))


@pytest.fixture
def trajectory(
    run_main: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> Callable[..., Trajectory]:
    """Runs the command with options more; gives loss and gradient norm of every step."""

    def run(*options: str, model: Path = tiny_checkpoint, pairs: int = TRAINED) -> Trajectory:
        given = ["--model", str(model), "--max-new-tokens", "1", "--samples-per-context", "1", *in_folder(tmp_path)]
        for name, part in {
            "--data": made["sft_dataset"][:pairs],
            "--validation-data": made["sft_validation"][:2],
            "--test-data": made["sft_test"][:2],
        }.items():
            save_pairs(tmp_path / f"{name}.json", not_of_retail(part))
            given += [name, str(tmp_path / f"{name}.json")]
        status, _, complained = run_main(sft.main, *given, *options)
        assert status == 0, complained
        steps = json.loads((tmp_path / "outputs" / "evaluation.json").read_text())["steps"]
        return list(zip(steps["loss"], steps["gradient_norm"]))

    return run


def assert_close(one: Trajectory, other: Trajectory, tolerance: float) -> None:
    assert len(one) == len(other)
    for step, (ours, theirs) in enumerate(zip(one, other), start=1):
        assert ours == pytest.approx(theirs, rel=tolerance), f"step {step}"


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        (["--micro-batch-size", "1"], 1e-5),
        pytest.param(["--micro-batch-size", "3"], 1e-5, marks=pytest.mark.slow),
        pytest.param(["--gradient-checkpointing"], 1e-6, marks=pytest.mark.slow),
        pytest.param(["--compile"], 1e-4, marks=[pytest.mark.slow, needs_compiler]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_how_a_step_is_computed_does_not_change_the_trajectory(
    options: list[str], tolerance: float, trajectory: Callable[..., Trajectory]
) -> None:
    straight = trajectory(*FAST)
    assert_close(trajectory(*FAST, *options), straight, tolerance)
    assert straight[-1][0] < straight[0][0] - 0.1


@pytest.mark.slow
def test_one_thread_is_two_and_another_batch_size_is_another_trajectory(trajectory: Callable[..., Trajectory]) -> None:
    threads = torch.get_num_threads()
    by_threads = []
    for count in (1, 2):
        torch.set_num_threads(count)
        by_threads.append(trajectory(*FAST))
    torch.set_num_threads(threads)
    assert_close(by_threads[0], by_threads[1], 1e-5)
    with pytest.raises(AssertionError):
        assert_close(trajectory(*FAST, "--batch-size", "4")[:10], by_threads[0], 1e-5)


def test_examples_one_behind_another_are_examples_in_padded_rows(
    trajectory: Callable[..., Trajectory],
    tiny_model: Transformer,
    encoder: PairEncoder,
    made: dict[str, list[Pair]],
    tmp_path: Path,
) -> None:
    """The rows, padded on the right, go through transformers' own model and torch's own loop."""
    write_folder(tmp_path / "model", Checkpoint(tiny_model, encoder.tokenizer, {}))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    examples = encoder.encode_all(not_of_retail(made["sft_dataset"][:TRAINED]))
    theirs = []
    for epoch in (1, 2):
        for places in shuffled_batches(TRAINED, BATCH_SIZE, epoch, SFTConfig.seed):
            step = [examples[place] for place in places]
            longest = max(len(example.ids) for example in step)
            ids = torch.tensor([example.ids + [0] * (longest - len(example.ids)) for example in step])
            labels = torch.tensor([example.labels + [-100] * (longest - len(example.ids)) for example in step])
            mask = torch.tensor([[1] * len(example.ids) + [0] * (longest - len(example.ids)) for example in step])
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
            loss.backward()
            norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
            theirs.append((loss.item(), norm.item()))
            optimizer.step()
            optimizer.zero_grad()
    assert_close(trajectory(*FAST), theirs, 1e-4)


def test_the_default_setting_learns_as_it_did_when_this_was_written(
    trajectory: Callable[..., Trajectory], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """30 steps of a model of the default shape; where a change is meant, delete the file and run this twice."""
    torch.manual_seed(0)
    path = tmp_path / "default.pt"
    save_checkpoint(path, Checkpoint(Transformer(ModelConfig(tokenizer.get_vocab_size())), tokenizer, {}))
    found = trajectory("--epochs", "1", "--batch-size", str(BATCH_SIZE), model=path, pairs=30 * BATCH_SIZE)
    if not REFERENCE.exists():
        REFERENCE.write_text(json.dumps(found, indent=0) + "\n")
        pytest.fail(f"{REFERENCE} was missing and is written anew: look at it, then commit it")
    assert_close(found, [tuple(step) for step in json.loads(REFERENCE.read_text())], 1e-4)
    assert len(found) == 30 and found[-1][0] < found[0][0] - 0.5
