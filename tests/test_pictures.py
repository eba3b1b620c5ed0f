"""The pictures show what `evaluation.json` says, and can be read for short runs as for long ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from matplotlib.figure import Figure

from benchmarks.growth import Panel, draw
from part3_pretrain.loss_curve import save_loss_curve as save_pretraining_curve
from part4_sft.pictures import save_controls, save_coverage, save_loss_curve
from part4_sft.report import CONTROLS

Draw = Callable[..., Figure]
CURVE = [(0.0, 1.0, 0.7), (0.5, 0.9, 0.8), (1.0, 0.6, 0.95)]  # threshold, coverage, share rated 4.0 or more


@pytest.fixture
def drawn(tmp_path: Path) -> Draw:
    """Calls a function that writes a picture; returns the figure."""

    def call(save: Callable[..., None], *arguments: object) -> Figure:
        with patch.object(Figure, "savefig", autospec=True, side_effect=Figure.savefig) as savefig:
            save(tmp_path / "picture.png", *arguments)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
        return savefig.call_args.args[0]

    return call


def by_epoch(epochs: int) -> list[dict[str, Any]]:
    """Entries of `evaluation.json` whose scores rise."""
    return [
        {"epoch": epoch, "validation_loss": 2.0 - 0.1 * epoch, "bleu": 0.01 * epoch, "rouge_l": 0.02 * epoch}
        | {"rated_4_or_more": 0.1 * epoch}
        for epoch in range(epochs + 1)
    ]


def labels(axes: Any) -> list[str]:
    """What can be read at the ticks of the horizontal axis that lie inside of it."""
    low, high = axes.get_xlim()
    return [tick.label1.get_text() for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]


def curves(axes: Any) -> dict[str, Any]:
    """The points of each line by its label, in one line."""
    return {str(line.get_label()).replace("\n", " "): line.get_xydata().tolist() for line in axes.lines}


@pytest.mark.parametrize(("epochs", "marked"), [(1, set()), (5, {"epoch 3: first setting", "epoch 5: default"})])
def test_the_loss_curve_shows_steps_epochs_and_scores(drawn: Draw, epochs: int, marked: set[str]) -> None:
    losses, entries = [2.0 / step for step in range(1, 4 * epochs + 1)], by_epoch(epochs)
    upper, lower = map(curves, drawn(save_loss_curve, losses, entries).axes)
    assert upper["training, each step"][:: 4 * epochs - 1] == [[0.25, 2.0], [epochs, losses[-1]]]
    assert upper["validation, each epoch"] == [[entry["epoch"], entry["validation_loss"]] for entry in entries]
    scores = {"share rated 4.0 or more": "rated_4_or_more", "ROUGE-L": "rouge_l", "BLEU": "bleu"}
    for label, key in scores.items():
        assert lower[label] == [[entry["epoch"], entry[key]] for entry in entries]
    assert set(lower) == set(scores) | marked


@pytest.mark.parametrize(("steps", "epochs"), [(1, 1), (5, 1), (40, 1), (7, 2), (12, 3), (300, 3), (2500, 5)])
def test_epochs_and_steps_are_whole_and_short_runs_are_not_smoothed(drawn: Draw, steps: int, epochs: int) -> None:
    upper, lower = drawn(save_loss_curve, [2.0] * steps, by_epoch(epochs)).axes
    assert labels(lower) == [str(epoch) for epoch in range(epochs + 1)]
    (at_steps,) = upper.child_axes
    numbers = [int(label) for label in labels(at_steps)]  # no "2.5", no "1e3"
    assert numbers[0] == 0 and len(numbers) > 1 and len({after - before for before, after in pairwise(numbers)}) == 1
    assert ("training, smoothed" in curves(upper)) == (steps > 60)


def test_no_text_lies_in_a_panel_of_the_loss_curve(drawn: Draw) -> None:
    """Whatever the lines do, words are beside the panels."""
    figure = drawn(save_loss_curve, [2.0] * 500, by_epoch(5))
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert not axes.texts and axes.get_legend().get_window_extent().x0 > axes.get_window_extent().x1


def test_losses_alone_have_one_panel(drawn: Draw) -> None:
    entries = [{"epoch": epoch, "validation_loss": 2.0} for epoch in range(2)]
    (panel,) = drawn(save_loss_curve, [2.0] * 10, entries).axes
    assert panel.get_xlabel() == "epoch" and labels(panel) == ["0", "1"]
    assert set(curves(panel)) == {"training, each step", "validation, each epoch"}


@pytest.mark.parametrize(("steps", "expected"), [(5, "1 2 3 4 5"), (40, "0 5 10 15 20 25"), (2500, "0 500 1000 1500")])
def test_the_steps_of_pretraining_are_whole(drawn: Draw, steps: int, expected: str) -> None:
    (axes,) = drawn(save_pretraining_curve, [2.0] * steps).axes
    assert " ".join(labels(axes)).startswith(expected)
    assert ("training, smoothed" in curves(axes)) == (steps > 60)


def coverage(points: list[tuple[float, float, float]], threshold: float) -> dict[str, Any]:
    keys = ("threshold", "coverage", "rated_4_or_more")
    return {"threshold": threshold, "curve": [dict(zip(keys, point)) for point in points]}


def test_the_coverage_curve_marks_the_threshold(drawn: Draw) -> None:
    (axes,) = drawn(save_coverage, coverage(CURVE, 0.5)).axes
    expected = {"each threshold of confidence": [[x, y] for _, x, y in CURVE]}
    assert curves(axes) == expected | {"the threshold in use: 0.5": [[0.9, 0.8]]}
    assert labels(axes) == ["60%", "65%", "70%", "75%", "80%", "85%", "90%", "95%", "100%"]


@pytest.mark.parametrize("points", [CURVE[:1], [(0.0, 1.0, 0.0)], [(0.0, 1.0, 1.0), (1.0, 0.99, 1.0)]])
def test_no_tick_of_the_coverage_curve_is_below_0_or_above_100_percent(drawn: Draw, points: list[Any]) -> None:
    """Also of curves with a single point, or with equal ones, all of which are inside."""
    (axes,) = drawn(save_coverage, coverage(points, 0.0)).axes
    for (low, high), place in ((axes.get_xlim(), 1), (axes.get_ylim(), 2)):
        assert all(low < point[place] < high for point in points)
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        shown = [tick for tick in axis.get_ticklocs() if low <= tick <= high]
        assert shown and all(-1e-9 <= tick <= 1 + 1e-9 for tick in shown)


def test_the_controls_are_bars_from_the_pretrained_to_the_fine_tuned_model(drawn: Draw) -> None:
    names = [name.replace("best_of", "best_of_4") for name in CONTROLS]
    controls = {name: {"rated_4_or_more": 0.01 * place} for place, name in enumerate(names)}
    models = {"pretrained": {"rated_4_or_more": 0.002}, "sft": {"rated_4_or_more": 0.9}}
    (axes,) = drawn(save_controls, {**models, "controls": controls | {"likelihood": {}}}).axes
    widths = [bar.get_width() for bar in axes.containers[0]]
    assert widths == [0.002, *(0.01 * place for place in range(8)), 0.9]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["pretrained", *CONTROLS.values(), "SFT"]
    assert axes.yaxis_inverted() and [text.get_text() for text in axes.texts][::9] == ["0.2%", "90.0%"]


def test_the_panels_of_growth_say_what_they_show(drawn: Draw) -> None:
    points = [(500.0, 0.3), (5_000, 0.4), (2_164_416, 0.5)]
    panels = [Panel(f"Train {number}", "pairs", "ms per pair", points) for number in range(6)]
    axes = drawn(lambda path: draw(panels, path)).axes
    assert [each.get_title() for each in axes] == [panel.title for panel in panels]
    assert {(each.get_xlabel(), each.get_ylabel()) for each in axes} == {("pairs (logarithmic)", "ms per pair")}
    assert labels(axes[0]) == ["500", "5,000", "2M"]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    for number in range(2):
        save_loss_curve(tmp_path / f"{number}.png", [2.0] * 5, by_epoch(1))
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
