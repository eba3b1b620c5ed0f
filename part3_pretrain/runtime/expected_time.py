"""How long it will take, told in a line once the first steps or replies have shown it; nothing of short stages."""

from __future__ import annotations

import time
from typing import Any

from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.log import log

MEASURED = 5.0  # seconds of steps or replies that tell of the rest


class TrainingTime:
    """Tells how long a training will take, from its first steps in this process and the validation before them.

    Args:
        stage: what the training is called.
        steps, epochs: of the whole training; after each epoch comes a validation.
    """

    def __init__(self, stage: str, steps: int, epochs: int = 0) -> None:
        self.stage, self.steps, self.epochs = stage, steps, epochs
        self.last = time.perf_counter()
        self.validation = self.in_steps = 0.0  # seconds: of the last validation, of all steps that are measured
        self.first = 0  # number of the step that they follow: itself, it may compile or reserve memory
        self.epochs_done, self.told = 0, False

    def epoch(self, entry: dict[str, Any]) -> None:
        """Measure a validation, which has just ended with this entry of `by_epoch`."""
        before, self.last = self.last, time.perf_counter()
        self.validation, self.epochs_done = self.last - before, entry["epoch"]

    def step(self, number: int, step: object) -> None:
        """Measure a step, which has just ended; numbers begin at 1."""
        before, self.last = self.last, time.perf_counter()
        if not self.first:
            self.first = number
            return
        self.in_steps += self.last - before
        if self.told or self.in_steps < MEASURED:
            return
        self.told = True
        steps = (self.steps - number) * self.in_steps / (number - self.first)
        _tell(self.stage, steps + (self.epochs - self.epochs_done) * self.validation)


class RepliesTime:
    """Tells how long it will take to write so many replies, from the first of them."""

    def __init__(self, replies: int) -> None:
        self.replies, self.written, self.told = replies, 0, False
        self.start = time.perf_counter()

    def count(self, written: int) -> None:
        """Count replies that this process has just written; each process writes as many."""
        self.written += written * distributed.world_size()
        seconds = time.perf_counter() - self.start
        if not self.told and seconds >= MEASURED:
            self.told = True
            _tell("evaluation", (self.replies - self.written) * seconds / self.written)


def _tell(stage: str, seconds: float) -> None:
    if seconds > 90:
        log(f"{stage}: about {seconds / 60:.0f} minutes")
