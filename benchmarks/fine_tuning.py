"""The step of fine-tuning, against TRL's `SFTTrainer`: as it comes, and at its best."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import torch

from benchmarks import our_side, trl_side
from benchmarks.memory import SHAPES
from benchmarks.side_by_side import Measured, Side, alternate, largest_difference, table
from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.model import Transformer
from part4_sft.encoding import Example

SAMPLINGS: dict[str, dict[str, Any]] = {
    "plain": {"train_sampling_strategy": "sequential"},
    "grouped by length": {"train_sampling_strategy": "group_by_length"},
    "packed": {"packing": True},
}
IN_ORDER = trl_side.SAME_ARITHMETIC | SAMPLINGS["plain"]
GROUPED = trl_side.SAME_ARITHMETIC | SAMPLINGS["grouped by length"]


def measure_ours(model: Transformer, examples: list[Example]) -> Measured:
    """Train a copy of the model for an epoch."""
    model = copy.deepcopy(model)
    start = time.perf_counter()
    history = our_side.fine_tune(model, examples)
    seconds = time.perf_counter() - start
    return Measured(seconds, our_side.count_tokens(examples), [step.loss for step in history.steps])


def default_model() -> str:
    """Measure the default model on the 500 pairs, beside the fastest way that TRL offers and TRL as it comes."""
    model, encoder = our_side.load_model()
    examples = our_side.encode_good_pairs(encoder)
    lines = ["One run of each way that TRL offers, real tokens a second:", ""]
    with trl_side.exported(model, encoder.tokenizer) as folder:
        rates, ways = {}, {}
        for dtype in ("float32", "bfloat16"):
            for name, sampling in SAMPLINGS.items():
                way = f"{dtype}, {name}"
                ways[way] = trl_side.SAME_ARITHMETIC | {"bf16": dtype == "bfloat16"} | sampling
                rates[way] = trl_side.fine_tune(folder, examples, trial_steps(dtype, name), **ways[way])[0].rate
                lines.append(f"- {way}: {rates[way]:,.0f}")
        fastest = max(rates, key=rates.__getitem__)
        steps_as_it_comes = -1 if multiplies_bfloat16() else 2  # -1: an epoch
        sides: dict[str, Side] = {
            "part4_sft": partial(measure_ours, model, examples),
            f"TRL, {fastest}": lambda: trl_side.fine_tune(folder, examples, **ways[fastest])[0],
            "TRL as it comes": lambda: trl_side.fine_tune(folder, examples, steps_as_it_comes)[0],
        }
        runs = alternate(sides, rounds=2)
        same = trl_side.fine_tune(folder, our_side.in_our_order(examples), **IN_ORDER)[0]
    return "\n".join([*lines, "", table(runs, "real tokens/s"), "", compare_losses(runs["part4_sft"][0], same)])


def trial_steps(dtype: str, sampling: str) -> int:
    """Return how many steps tell which way is fastest; with large masks, or slow bfloat16, a step takes seconds."""
    if sampling == "packed":
        return 1
    if dtype == "bfloat16" and not multiplies_bfloat16():
        return 2
    return 20


def compare_losses(ours: Measured, theirs: Measured) -> str:
    """Say how far the losses are apart, over as many steps as theirs has."""
    steps = len(theirs.outcome)
    difference = largest_difference(ours.outcome[:steps], theirs.outcome)
    return f"Loss of {steps} steps, same pairs in the same batches, TRL's in float32: at most {difference:.0e} apart."


def large_model() -> str:
    """Measure a model of SmolLM2's 135M shape with random weights, on the same pairs."""
    torch.manual_seed(0)
    model = Transformer(SHAPES["135M (SmolLM2)"])
    _, encoder = our_side.load_model()
    examples = our_side.encode_good_pairs(encoder)[: 5 * our_side.CONFIG.batch_size]
    with trl_side.exported(model, encoder.tokenizer) as folder:
        sides: dict[str, Side] = {
            "part4_sft": partial(measure_ours, model, examples),
            "TRL, float32, grouped by length": lambda: trl_side.fine_tune(folder, examples, **GROUPED)[0],
        }
        if multiplies_bfloat16():
            in_bfloat16 = GROUPED | {"bf16": True}
            sides["TRL, bfloat16, grouped by length"] = lambda: trl_side.fine_tune(folder, examples, **in_bfloat16)[0]
        runs = alternate(sides, rounds=4, warm_up=False)
        same = trl_side.fine_tune(folder, our_side.in_our_order(examples), 3, **IN_ORDER)[0]
    return "\n".join([table(runs, "real tokens/s"), "", compare_losses(runs["part4_sft"][0], same)])
