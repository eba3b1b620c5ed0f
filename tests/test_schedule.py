"""Learning rates are those of transformers' schedulers, step by step."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from part4_sft.extras.schedule import learning_rate_factor

THEIR_NAMES = {"constant": "constant_with_warmup"}


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup_steps", "total"), [(0, 10), (1, 1), (4, 11), (10, 10), (20, 10)])
def test_every_step_has_the_learning_rate_of_transformers(schedule: str, warmup_steps: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(THEIR_NAMES.get(schedule, schedule), optimizer, warmup_steps, total)
    for step in range(total):
        assert learning_rate_factor(schedule, warmup_steps, step, total) == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
