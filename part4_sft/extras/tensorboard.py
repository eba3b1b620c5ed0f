"""Curves of a run while it goes on, in files that `tensorboard --logdir` shows."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from part3_pretrain.runtime.cli import UserError
from part4_sft.training import Step


def check_tensorboard() -> None:
    """Raises UserError where tensorboard, an optional extra, is not installed."""
    if find_spec("tensorboard") is None:
        raise UserError("--tensorboard needs tensorboard; install it with: pip install tensorboard==2.21.0")


class TensorBoard:
    """Takes down what each step saw and what validation said."""

    def __init__(self, folder: Path, learning_rate: float) -> None:
        self.folder, self.learning_rate = folder, learning_rate
        self.writer: Any = None
        self.number = 0  # of the last step
        self.last = time.perf_counter()

    def step(self, number: int, step: Step) -> None:
        """Loss (nats a response token), gradient norm, learning rate, and response tokens a second since the last."""
        now = time.perf_counter()
        self.number = number
        self._add(
            {
                "training/loss": step.loss,
                "training/gradient_norm": step.gradient_norm,
                "training/learning_rate": self.learning_rate,
                "training/response_tokens_per_second": step.tokens / (now - self.last),
            }
        )
        self.last = now

    def epoch(self, entry: dict[str, Any]) -> None:
        """The measures of an entry of `by_epoch`, at the step that ended the epoch."""
        measures = {name: value for name, value in entry.items() if name not in ("epoch", "train_loss")}
        self._add({f"validation/{name}": value for name, value in measures.items()})
        self.writer.flush()
        self.last = time.perf_counter()

    def _add(self, values: dict[str, float]) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run before it, or one that was killed, noted of this step and later ones, does not count.
            self.writer = SummaryWriter(str(self.folder), purge_step=self.number)
        for name, value in values.items():
            self.writer.add_scalar(name, value, self.number)
