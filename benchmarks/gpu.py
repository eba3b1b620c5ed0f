"""A 135M model in bfloat16 on a GPU, against TRL with packing; "not run" where there is none."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import trl_side
from benchmarks.memory import SHAPES
from benchmarks.side_by_side import Measured, alternate, table, the_500_pairs
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.training import train

CONFIG = SFTConfig(epochs=1, batch_size=125, dtype="bfloat16")  # about 12,000 tokens a step


def main() -> str:
    if not torch.cuda.is_available():
        return "not run: torch finds no GPU here. Where there is one: python -m benchmarks gpu"
    torch.manual_seed(0)
    tokenizer = load_checkpoint(DEFAULT_CHECKPOINT).tokenizer
    model = Transformer(SHAPES["135M (SmolLM2)"]).bfloat16()
    examples = the_500_pairs(tokenizer) * 4
    parameters = sum(parameter.numel() for parameter in model.parameters())

    def ours() -> Measured:
        trained = copy.deepcopy(model).cuda()
        torch.cuda.synchronize()
        start = time.perf_counter()
        train(trained, examples, CONFIG, after_epoch=lambda epoch, loss: None)
        torch.cuda.synchronize()
        return Measured(time.perf_counter() - start, sum(len(example.ids) for example in examples))

    with tempfile.TemporaryDirectory() as temporary:
        folder = trl_side.export(Path(temporary) / "model", model, tokenizer)
        settings = trl_side.SAME | {"bf16": True, "packing": True, "max_length": 1024}
        found = alternate(
            {
                "part4_sft": ours,
                "TRL, packed": lambda: trl_side.fine_tune(folder, examples, batch_size=12, **settings)[0],
            },
            rounds=3,
        )
    best = max(run.rate for run in found["part4_sft"])
    share = 6 * parameters * best / products_per_second()
    return "\n".join([table(found, "real tokens/s"), "", f"Share of the matrix-product rate: {share:.0%}."])


def products_per_second(size: int = 8192, repeats: int = 20) -> float:
    """Floating-point operations a second of large bfloat16 products."""
    x = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    x @ x
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        x @ x
    torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - start)
