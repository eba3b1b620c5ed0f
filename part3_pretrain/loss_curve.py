"""A picture of the losses, for the reports of pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from part3_pretrain.runtime.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind (Okabe and Ito 2008)
GREY = "0.45"
FEW_STEPS = 60  # a moving average of fewer says little that their points do not


def save_loss_curve(path: Path, losses: list[float]) -> None:
    """Draw the loss of every step of pretraining on text, and its moving average."""
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    plot_losses(axes, range(1, len(losses) + 1), losses)
    axes.set(title="Pretraining", xlabel="optimizer step on text", ylim=(0, None))
    axes.set_ylabel("cross-entropy (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches."""
    from matplotlib.figure import Figure  # only now: it takes half a second, for which no training should wait

    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, as a whole or not at all."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def smoothed(losses: Sequence[float], decay: float = 0.95) -> list[float]:
    """Return the exponential moving average without the bias of its start, as in Adam (Kingma and Ba 2015, sec. 3)."""
    average, curve = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        curve.append(average / (1 - decay**step))
    return curve


def plot_losses(axes: Axes, x: Sequence[float], losses: Sequence[float]) -> None:
    """Draw the loss of each step, in nats per token, at its place `x`: few as points, many with their moving average.

    The axis of `x` is in whole numbers, be they steps or epochs.
    """
    if len(losses) <= FEW_STEPS:
        axes.plot(x, losses, ".-", color=BLUE, linewidth=1, label="training,\neach step")
    else:
        axes.plot(x, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training,\neach step")
        axes.plot(x, smoothed(losses), color=BLUE, linewidth=2, label="training,\nsmoothed")
    axes.xaxis.set_major_locator(whole_numbers())


def whole_numbers() -> MaxNLocator:
    """Return what puts the ticks of an axis at whole numbers, 1, 2 or 5 times a power of ten apart."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True)
