"""--keep best: what is saved and tested is the model after the epoch of the lowest validation loss, come what may."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import peft  # noqa: F401, so that not every process of a test imports it anew
import pytest
import torch

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.formats import load_pairs
from part4_sft.training import mean_loss
from tests.conftest import Command, assert_refused, in_folder, weights
from tests.processes import at_step, in_a_process, in_ranks, in_save, small_sft

EPOCHS, STEPS = 4, 24
LORA = ["--lora-rank", "2"]


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A training that soon makes the validation loss worse: its answers are numbers, and those of validation words."""
    folder = tmp_path_factory.mktemp("data")
    given = small_sft(folder, tiny_checkpoint)
    save_pairs(folder / "validation-data.json", [Pair(f"What is {n}?", "A number, I would say.") for n in range(3)])
    return [*given, "--epochs", str(EPOCHS), "--learning-rate", "0.004", "--keep", "best"]


def result(folder: Path) -> tuple[dict[str, Any], Transformer]:
    evaluation = json.loads((folder / "outputs" / "evaluation.json").read_text())
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["sft_model.pt"]
    return evaluation, load_checkpoint(folder / "checkpoints" / "sft_model.pt", dtype=None).model


@pytest.fixture(scope="module")
def straight(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    assert in_a_process(sft.main, [*options, *in_folder(folder)]) == 0
    return folder


def test_the_model_is_that_of_the_best_epoch_and_the_files_say_so(
    straight: Path, options: list[str], encoder: PairEncoder, tmp_path: Path
) -> None:
    """It is what a training of so many epochs ends with, bit by bit, and has the loss that it was chosen for."""
    evaluation, model = result(straight)
    losses = [entry["validation_loss"] for entry in evaluation["by_epoch"]]
    best = losses.index(min(losses[1:]))
    assert 1 <= best < EPOCHS == len(losses) - 1
    assert evaluation["best_epoch"] == evaluation["kept_epoch"] == best
    pairs = load_pairs(Path(options[options.index("--validation-data") + 1]))
    assert mean_loss(model, encoder.encode_all(pairs)) == pytest.approx(losses[best], rel=1e-6)
    report = (straight / "outputs" / "README_Part4_SFT_Comprehensive.md").read_text()
    assert f"as it was after epoch {best} (`--keep best`)" in report

    shorter = [*options, "--epochs", str(best), "--keep", "last", *in_folder(tmp_path)]
    assert in_a_process(sft.main, shorter) == 0
    told, expected = result(tmp_path)
    assert torch.equal(weights(model), weights(expected)) and evaluation["sft"] == told["sft"]
    assert told["kept_epoch"] == best


def test_the_last_epoch_is_kept_by_default_and_the_best_is_told(options: list[str], tmp_path: Path) -> None:
    assert in_a_process(sft.main, [*options, "--keep", "last", *in_folder(tmp_path)]) == 0
    evaluation, _ = result(tmp_path)
    assert evaluation["best_epoch"] < evaluation["kept_epoch"] == EPOCHS


@pytest.mark.slow
@pytest.mark.parametrize(
    "interruption",
    [at_step(STEPS - 2), in_save(8), at_step(STEPS, signal.SIGTERM)],
    ids=["in the last epoch", "while the best is written", "before the last validation"],
)
def test_a_training_that_is_killed_keeps_the_same_bits(
    interruption: Any, straight: Path, options: list[str], tmp_path: Path
) -> None:
    arguments = [*options, *in_folder(tmp_path)]
    assert in_a_process(sft.main, arguments, interruption) in (-signal.SIGKILL, 143)
    assert in_a_process(sft.main, [*arguments, "--resume"]) == 0
    (evaluation, model), (expected_evaluation, expected) = result(tmp_path), result(straight)
    assert torch.equal(weights(model), weights(expected))
    for key in ("by_epoch", "steps", "best_epoch", "kept_epoch", "sft"):
        assert evaluation[key] == expected_evaluation[key]


@pytest.mark.slow
def test_weights_that_are_gone_or_damaged_are_told_in_one_line(
    run_main: Command, options: list[str], tmp_path: Path
) -> None:
    arguments = [*options, *in_folder(tmp_path)]
    assert in_a_process(sft.main, arguments, at_step(STEPS - 2)) == -signal.SIGKILL
    best, state = (tmp_path / "checkpoints" / f"sft_model.state{kind}.pt" for kind in (".best", ""))
    kept = state.read_bytes()
    for damage in (lambda: best.write_bytes(best.read_bytes()[:1000]), best.unlink):
        damage()
        assert_refused(run_main(sft.main, *arguments, "--resume"), f"{best} is damaged")
        assert state.exists()
        state.write_bytes(kept)
    assert_refused(run_main(sft.main, *arguments, "--resume", "--keep", "last"), "--keep was best and is last")
    assert run_main(sft.main, *arguments)[0] == 0  # anew


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "ranks"), [([], 2), (["--shard"], 2), (LORA, 2), (LORA, 0), (["--dtype", "bfloat16"], 0)]
)
def test_several_processes_and_number_formats_keep_the_best_and_save_what_was_validated(
    more: list[str], ranks: int, options: list[str], encoder: PairEncoder, tmp_path: Path
) -> None:
    arguments = [*options, *more, *in_folder(tmp_path)]
    arguments += ["--learning-rate", "0.1"] if more == LORA else []
    if ranks:
        statuses = in_ranks(sft.main, ranks, arguments, at_step(STEPS - 2), rank=1)
        assert statuses == [2, -signal.SIGKILL]
        assert in_ranks(sft.main, ranks, [*arguments, "--resume"]) == [0] * ranks
    else:
        assert in_a_process(sft.main, arguments) == 0
    evaluation, model = result(tmp_path)
    kept = evaluation["kept_epoch"]
    assert kept == evaluation["best_epoch"] < EPOCHS
    pairs = load_pairs(Path(options[options.index("--validation-data") + 1]))
    loss = mean_loss(model.float().eval(), encoder.encode_all(pairs))
    tolerance = 2e-2 if "bfloat16" in more else 1e-5
    assert evaluation["by_epoch"][kept]["validation_loss"] == pytest.approx(loss, rel=tolerance)
