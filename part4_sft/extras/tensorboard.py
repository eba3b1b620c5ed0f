"""Curves of a run while it goes on, in files that `tensorboard --logdir` shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from part4_sft.training import Step


class TensorBoard:
    """Writes the values of every step and the results of every validation to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.number = 0  # of the last step
        self.last_time = time.perf_counter()

    def step(self, number: int, step: Step) -> None:
        """Write loss (nats a response token), gradient norm, learning rate and speed (response tokens a second)."""
        self.number, before, self.last_time = number, self.last_time, time.perf_counter()
        self._write("training/loss", step.loss)
        self._write("training/gradient_norm", step.gradient_norm)
        self._write("training/learning_rate", step.learning_rate)
        self._write("training/response_tokens_per_second", step.tokens / (self.last_time - before))

    def epoch(self, entry: dict[str, Any]) -> None:
        """Write the measures in an entry of `by_epoch`, at the last step of the epoch."""
        for name in entry.keys() - {"epoch", "train_loss"}:
            self._write(f"validation/{name}", entry[name])
        self.writer.flush()
        self.last_time = time.perf_counter()  # the time of the validation is not the next step's

    def _write(self, name: str, value: float) -> None:
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # needs tensorboard, an optional extra

            # Values that an earlier or a killed run wrote for this step and later ones are hidden.
            self.writer = SummaryWriter(str(self.folder), purge_step=self.number)
        self.writer.add_scalar(name, value, self.number)
