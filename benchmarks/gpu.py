"""A 135M model in bfloat16 on a GPU, against TRL with packing; "not run" where there is none.

This has not run on a GPU yet.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import our_side, trl_side
from benchmarks.memory import SHAPES
from benchmarks.side_by_side import Measured, alternate, table
from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig

CONFIG = SFTConfig(epochs=1, batch_size=125, dtype="bfloat16")  # about 12,000 tokens a step


def main() -> str:
    if not torch.cuda.is_available():
        return "not run: torch finds no GPU here. Where there is one: python -m benchmarks gpu"
    torch.manual_seed(0)
    _, encoder = our_side.load_model()
    model = Transformer(SHAPES["135M (SmolLM2)"]).bfloat16()
    examples = our_side.encode_good_pairs(encoder) * 4

    def measure_ours() -> Measured:
        trained = copy.deepcopy(model).cuda()
        seconds = seconds_on_gpu(lambda: our_side.fine_tune(trained, examples, CONFIG))
        return Measured(seconds, our_side.count_tokens(examples))

    with trl_side.exported(model, encoder.tokenizer) as folder:
        settings = trl_side.SAME_ARITHMETIC | {"bf16": True, "packing": True, "max_length": 1024}
        measure_theirs = partial(trl_side.fine_tune, folder, examples, batch_size=12, **settings)
        runs = alternate({"part4_sft": measure_ours, "TRL, packed": lambda: measure_theirs()[0]}, rounds=3)
    seconds = min(run.seconds for run in runs["part4_sft"])
    share = our_side.count_operations(model, examples) / seconds / products_per_second()
    return f"{table(runs, 'real tokens/s')}\n\nShare of the matrix-product rate: {share:.0%}."


def products_per_second() -> float:
    """Return the floating-point operations a second of large bfloat16 products."""
    size, repeats = 8192, 20
    x = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)

    def multiply() -> None:
        for _ in range(repeats):
            x @ x

    x @ x  # the first product loads the kernel
    return 2 * size**3 * repeats / seconds_on_gpu(multiply)


def seconds_on_gpu(work: Callable[[], object]) -> float:
    """Return the seconds until all that the work has queued on the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start
