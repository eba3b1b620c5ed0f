"""Curves for TensorBoard, read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs
from tests.conftest import Command


@pytest.fixture
def options(tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path) -> list[object]:
    for name, count in (("sft_dataset", 20), ("sft_validation", 3), ("sft_test", 3)):
        save_pairs(tmp_path / f"{name}.json", made[name][:count])
    files = {"--data": "sft_dataset", "--validation-data": "sft_validation", "--test-data": "sft_test"}
    small = ["--epochs", 2, "--max-new-tokens", 5, "--samples-per-context", 1, "--model", tiny_checkpoint]
    named = [value for option, name in files.items() for value in (option, tmp_path / f"{name}.json")]
    return [*small, *named, "--out-dir", tmp_path / "out", "--checkpoint-dir", tmp_path / "out"]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder)).Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.mark.slow
def test_the_curves_are_the_numbers_of_the_run(run_main: Command, options: list[object], tmp_path: Path) -> None:
    assert run_main(sft.main, *options, "--tensorboard", tmp_path / "board")[0] == 0
    found = curves(tmp_path / "board")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    for tag, name in (("training/loss", "loss"), ("training/gradient_norm", "gradient_norm")):
        steps, values = zip(*found[tag])
        assert steps == (1, 2, 3, 4, 5, 6) and values == pytest.approx(evaluation["steps"][name], rel=1e-6)
    assert [value for _, value in found["training/learning_rate"]] == pytest.approx([5e-5] * 6)
    assert all(0 < speed < math.inf for _, speed in found["training/response_tokens_per_second"])
    for name in ("validation_loss", "bleu", "rouge_l", "rated_4_or_more"):
        steps, values = zip(*found[f"validation/{name}"])
        wanted = [entry[name] for entry in evaluation["by_epoch"]]
        assert steps == (0, 3, 6) and values == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_what_a_run_before_noted_of_the_same_steps_does_not_count(
    run_main: Command, options: list[object], tmp_path: Path
) -> None:
    board = ["--tensorboard", tmp_path / "board"]
    assert run_main(sft.main, *options, *board, "--learning-rate", 1e-3)[0] == 0
    assert run_main(sft.main, *options, *board)[0] == 0
    assert [rate for _, rate in curves(tmp_path / "board")["training/learning_rate"]] == pytest.approx([5e-5] * 6)


def test_without_tensorboard_it_says_what_to_install(
    run_main: Command, options: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("part4_sft.extras.tensorboard.find_spec", lambda name: None)
    status, _, complained = run_main(sft.main, *options, "--tensorboard", tmp_path / "board")
    assert status == 2 and complained.startswith("error: ") and "pip install tensorboard" in complained
    assert not (tmp_path / "board").exists()
