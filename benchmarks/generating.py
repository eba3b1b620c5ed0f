"""Writing 200 replies, against transformers' `generate` at its best batch size."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

from transformers import AutoModelForCausalLM

from benchmarks import trl_side
from benchmarks.side_by_side import Measured, Side, alternate, table
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.dataset import make_datasets
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling, generate

BATCH_SIZES = (100, 200)
LONGEST = SFTConfig.max_new_tokens


def ours(model: Transformer, prompts: list[list[int]], temperature: float) -> Measured:
    start = time.perf_counter()
    replies = generate(model.eval(), prompts, Sampling(temperature, max_new_tokens=LONGEST))
    seconds = time.perf_counter() - start
    return Measured(seconds, sum(len(reply.ids) for reply in replies), [reply.ids for reply in replies])


def theirs(model: object, prompts: list[list[int]], temperature: float, batch_size: int) -> Measured:
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    start = time.perf_counter()
    replies = trl_side.generate(model, prompts, batch_size, pad_id=0, max_new_tokens=LONGEST, **sampling)
    return Measured(time.perf_counter() - start, sum(map(len, replies)), replies)


def main() -> str:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    encoder = PairEncoder(checkpoint.tokenizer, eos_id=1)
    prompts = [encoder.encode_prompt(pair.context, 300) for pair in make_datasets(0)["sft_test"]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = trl_side.export(Path(temporary) / "model", checkpoint.model, checkpoint.tokenizer)
        transformers_model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tables = []
    for temperature, name in ((0.0, "The likeliest token"), (0.7, "Sampled at temperature 0.7")):
        sides: dict[str, Side] = {"part4_sft": partial(ours, checkpoint.model, prompts, temperature)}
        for size in BATCH_SIZES:
            sides[f"transformers, {size} at once"] = partial(theirs, transformers_model, prompts, temperature, size)
        found = alternate(sides, rounds=2)
        tables += [f"{name}:", "", table(found, "tokens/s"), ""]
        if temperature == 0:
            texts = [runs[0].outcome for runs in found.values()]
            same = sum(reply == other for reply, other in zip(texts[0], texts[1]))
            tables += [f"{same} of {len(prompts)} replies are the same tokens on both sides.", ""]
    return "\n".join(tables).rstrip()
