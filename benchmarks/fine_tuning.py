"""The step of fine-tuning, against TRL's `SFTTrainer`: as it comes, and at its best."""

from __future__ import annotations

import copy
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import trl_side
from benchmarks.memory import SHAPES
from benchmarks.side_by_side import (
    CONFIG,
    Measured,
    Side,
    alternate,
    in_our_order,
    largest_difference,
    table,
    the_500_pairs,
)
from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part4_sft.config import DEFAULT_CHECKPOINT
from part4_sft.encoding import Example
from part4_sft.training import train

SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {"train_sampling_strategy": "sequential"},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "packed": {"packing": True},
}


def fine_tune(model: Transformer, examples: list[Example]) -> Measured:
    """An epoch by this project, of a copy of the model."""
    model = copy.deepcopy(model)
    start = time.perf_counter()
    steps = train(model, examples, CONFIG, after_epoch=lambda epoch, loss: None)
    return Measured(
        time.perf_counter() - start, sum(len(example.ids) for example in examples), [step.loss for step in steps]
    )


def default_model() -> str:
    """The default model on the 500 pairs: every way that TRL offers is tried, and the best one gets as many rounds."""
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    examples = the_500_pairs(checkpoint.tokenizer)
    with tempfile.TemporaryDirectory() as temporary:
        folder = trl_side.export(Path(temporary) / "model", checkpoint.model, checkpoint.tokenizer)
        lines = ["One run of each way that TRL offers, real tokens a second:", ""]
        fastest: tuple[float, str, dict[str, Any]] = (0.0, "", {})
        for dtype in ("float32", "bfloat16"):
            for name, sampling in SAMPLINGS.items():
                settings = trl_side.SAME | {"bf16": dtype == "bfloat16"} | sampling
                # Enough to tell which is fastest; where bfloat16 is slow or masks are large, a step takes seconds.
                few = 1 if name == "packed" else 2 if dtype == "bfloat16" and not multiplies_bfloat16() else 20
                measured, _, _ = trl_side.fine_tune(folder, examples, few, **settings)
                lines.append(f"- {dtype}, {name}: {measured.rate:,.0f}")
                fastest = max(fastest, (measured.rate, f"TRL, {dtype}, {name}", settings), key=lambda entry: entry[0])
        _, best, settings = fastest
        as_it_comes = -1 if multiplies_bfloat16() else 2
        found = alternate(
            {
                "part4_sft": partial(fine_tune, checkpoint.model, examples),
                best: lambda: trl_side.fine_tune(folder, examples, **settings)[0],
                "TRL as it comes": lambda: trl_side.fine_tune(folder, examples, as_it_comes)[0],
            },
            rounds=2,
        )
        same = trl_side.fine_tune(folder, in_our_order(examples), **trl_side.SAME, **SAMPLINGS["plain"])[0]
    difference = largest_difference(found["part4_sft"][0].outcome, same.outcome)
    check = (
        f"Loss of {len(same.outcome)} steps, same pairs in the same batches in float32: at most {difference:.0e} apart."
    )
    return "\n".join([*lines, "", table(found, "real tokens/s"), "", check])


def large_model(steps: int = 5, rounds: int = 4) -> str:
    """A model of SmolLM2's 135M shape with random weights, on the same pairs."""
    torch.manual_seed(0)
    model = Transformer(SHAPES["135M (SmolLM2)"])
    tokenizer = load_checkpoint(DEFAULT_CHECKPOINT).tokenizer
    examples = the_500_pairs(tokenizer)[: steps * CONFIG.batch_size]
    with tempfile.TemporaryDirectory() as temporary:
        folder = trl_side.export(Path(temporary) / "model", model, tokenizer)
        grouped = trl_side.SAME | SAMPLINGS["grouped by length"]
        sides: dict[str, Side] = {
            "part4_sft": partial(fine_tune, model, examples),
            "TRL, float32, grouped by length": lambda: trl_side.fine_tune(folder, examples, **grouped)[0],
        }
        found = alternate(sides, rounds, warm_up=False)
        same = trl_side.fine_tune(folder, in_our_order(examples), 3, **trl_side.SAME, **SAMPLINGS["plain"])[0]
    difference = largest_difference(found["part4_sft"][0].outcome[:3], same.outcome)
    note = "bfloat16 and packing, which lost with the default model, were not tried here."
    check = f"Loss of 3 steps, same pairs in the same batches in float32: at most {difference:.0e} apart. {note}"
    return "\n".join([table(found, "real tokens/s"), "", check])
