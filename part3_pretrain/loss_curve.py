"""A picture of the losses, for the reports of pretraining and fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # told apart by the colour-blind (Okabe and Ito 2008)


def smoothed(losses: Sequence[float], decay: float = 0.95) -> list[float]:
    """Return the exponential moving average without the bias of its start, as in Adam (Kingma and Ba 2015, sec. 3)."""
    average, curve = 0.0, []
    for step, loss in enumerate(losses, start=1):
        average = decay * average + (1 - decay) * loss
        curve.append(average / (1 - decay**step))
    return curve


def plot_losses(axes: Axes, x: Sequence[float], losses: Sequence[float]) -> None:
    """Draw the loss of each step, in nats per token, thin and pale at its place `x`, and their moving average."""
    axes.plot(x, losses, color=BLUE, alpha=0.25, linewidth=0.8, label="training, each step")
    axes.plot(x, smoothed(losses), color=BLUE, linewidth=2, label="training, smoothed")
