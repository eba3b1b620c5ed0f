"""How long it will take, told in a line once the first steps or replies have shown it; nothing of short stages."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.log import log

MEASURED = 5.0  # seconds of steps or replies that tell of the rest
FEWEST_STEPS = 3  # so that one which the machine delayed is not taken for all


class TrainingTime:
    """Tells how long a training will take, from its first steps in this process and the validation before them.

    Args:
        stage: what the training is called.
        steps, epochs: of the whole training; after each epoch comes a validation.
    """

    def __init__(self, stage: str, steps: int, epochs: int = 0) -> None:
        self.stage, self.steps, self.epochs = stage, steps, epochs
        self.last = time.perf_counter()
        self.validation = 0.0  # seconds that the last one took
        self.seconds: list[float] = []  # of each step but the first in this process, which may reserve memory
        self.is_first, self.epochs_done, self.told = True, 0, False

    def epoch(self, entry: dict[str, Any]) -> None:
        """Measure a validation, which has just ended with this entry of `by_epoch`."""
        before, self.last = self.last, time.perf_counter()
        self.validation, self.epochs_done = self.last - before, entry["epoch"]

    def step(self, number: int, step: object) -> None:
        """Measure a step, which has just ended; numbers begin at 1."""
        before, self.last = self.last, time.perf_counter()
        if self.is_first or self.told:
            self.is_first = False
            return
        self.seconds.append(self.last - before)
        typical = median(self.seconds)
        if len(self.seconds) >= FEWEST_STEPS and typical * len(self.seconds) >= MEASURED:
            self.told = True
            validations = (self.epochs - self.epochs_done) * self.validation
            _tell(self.stage, (self.steps - number) * typical + validations)


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
