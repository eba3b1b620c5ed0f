"""Curves for TensorBoard, read back by TensorBoard's own reader."""

from __future__ import annotations

from pathlib import Path

import pytest

from part4_sft import sft
from part4_sft.extras.tensorboard import TensorBoard
from part4_sft.training import Step
from tests.conftest import Command, FinishedRun, in_folder


def curves(folder: Path) -> dict[str, dict[int, float]]:
    """The values of every curve by their steps."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder)).Reload()
    return {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}


@pytest.mark.slow
def test_the_curves_are_the_numbers_of_the_run(run_main: Command, finished_run: FinishedRun, tmp_path: Path) -> None:
    assert run_main(sft.main, *finished_run.options, *in_folder(tmp_path), "--tensorboard", tmp_path / "board")[0] == 0
    evaluation, drawn = finished_run.read("evaluation.json"), curves(tmp_path / "board")
    for name, losses in evaluation["steps"].items():
        assert drawn[f"training/{name}"] == pytest.approx(dict(enumerate(losses, start=1)), rel=1e-6)
    assert drawn["training/learning_rate"] == pytest.approx(dict.fromkeys(range(1, 5), 1e-3))
    for name in ("validation_loss", "bleu", "rouge_l", "rated_4_or_more"):
        by_step = {2 * entry["epoch"]: entry[name] for entry in evaluation["by_epoch"]}  # 16 pairs in batches of 8
        assert drawn[f"validation/{name}"] == pytest.approx(by_step, rel=1e-6)


def test_speed_leaves_out_the_validation_and_what_an_earlier_run_wrote_later_is_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # of each run: begin, step, step, end of the validation, step
    times = iter([0.0, 1.0, 2.0, 50.0, 51.0, 200.0, 202.0, 203.0, 300.0, 304.0])
    monkeypatch.setattr("part4_sft.extras.tensorboard.time.perf_counter", lambda: next(times))
    for first, loss in ((1, 8.0), (2, 4.0)):
        board = TensorBoard(tmp_path)
        board.step(first, Step(loss, gradient_norm=1.5, tokens=10, learning_rate=1e-3))
        board.step(first + 1, Step(loss / 2, gradient_norm=1.0, tokens=10, learning_rate=2e-3))
        board.epoch({"epoch": 1, "train_loss": 3.0, "validation_loss": loss / 4})
        board.step(first + 2, Step(loss / 4, gradient_norm=0.5, tokens=80, learning_rate=4e-3))
        board.writer.close()
    assert curves(tmp_path) == {
        "training/loss": {1: 8.0, 2: 4.0, 3: 2.0, 4: 1.0},
        "training/gradient_norm": {1: 1.5, 2: 1.5, 3: 1.0, 4: 0.5},
        "training/learning_rate": pytest.approx({1: 1e-3, 2: 1e-3, 3: 2e-3, 4: 4e-3}),
        "training/response_tokens_per_second": {1: 10.0, 2: 5.0, 3: 10.0, 4: 20.0},
        "validation/validation_loss": {3: 1.0},
    }
