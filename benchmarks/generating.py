"""Writing 200 replies, against transformers' `generate` at its best batch size."""

from __future__ import annotations

import time
from functools import partial

from transformers import AutoModelForCausalLM

from benchmarks import our_side, trl_side
from benchmarks.side_by_side import Measured, Side, alternate, table
from part3_pretrain.model import Transformer
from part4_sft.dataset import make_datasets
from part4_sft.generation import Sampling, generate


def measure_ours(model: Transformer, prompts: list[list[int]], sampling: Sampling) -> Measured:
    start = time.perf_counter()
    replies = generate(model.eval(), prompts, sampling)
    seconds = time.perf_counter() - start
    return Measured(seconds, sum(len(reply.ids) for reply in replies), [reply.ids for reply in replies])


def measure_theirs(model: object, prompts: list[list[int]], sampling: Sampling, batch_size: int) -> Measured:
    start = time.perf_counter()
    replies = trl_side.generate(model, prompts, sampling, batch_size)
    return Measured(time.perf_counter() - start, sum(map(len, replies)), replies)


def main() -> str:
    model, encoder = our_side.load_model()
    prompts = our_side.encode_prompts(encoder, make_datasets(0)["sft_test"])
    with trl_side.exported(model, encoder.tokenizer) as folder:
        their_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = []
    for temperature, name in ((0.0, "The likeliest token"), (0.7, "Sampled at temperature 0.7")):
        sampling = Sampling(temperature)
        sides: dict[str, Side] = {"part4_sft": partial(measure_ours, model, prompts, sampling)}
        for size in (100, 200):
            sides[f"transformers, {size} at once"] = partial(measure_theirs, their_model, prompts, sampling, size)
        runs = alternate(sides, rounds=2)
        lines += [f"{name}:", "", table(runs, "tokens/s"), ""]
        if temperature == 0:
            ours, theirs, *_ = (of_side[0].outcome for of_side in runs.values())
            same = sum(reply == other for reply, other in zip(ours, theirs))
            lines += [f"{same} of {len(prompts)} replies are the same tokens on both sides.", ""]
    return "\n".join(lines).rstrip()
