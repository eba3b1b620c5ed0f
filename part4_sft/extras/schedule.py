"""The learning rate of every step, as transformers' `get_scheduler` has it, so that recipes can be compared."""

from __future__ import annotations

import math

import torch

from part4_sft.config import SFTConfig


def set_learning_rate(optimizer: torch.optim.Optimizer, config: SFTConfig, step: int, total: int) -> None:
    """Give the optimizer the learning rate of its next step, of `total` ones from step 0 on."""
    factor = learning_rate_factor(config.schedule, config.warmup_steps, step, total)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor


def learning_rate_factor(schedule: str, warmup_steps: int, step: int, total: int) -> float:
    """Return what the learning rate of a step is multiplied by, 0 to 1; of `total` steps, the first is step 0.

    It rises from 0 on a line. Then it stays 1 ("constant"), or falls towards 0 behind the last step on a line
    ("linear") or along half a cosine ("cosine", Loshchilov and Hutter 2017).
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total - warmup_steps)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
