"""Peak memory of two fine-tuning steps, each side in a process of its own, all of the process counted."""

from __future__ import annotations

import sys

import torch

from benchmarks.memory import SHAPES
from benchmarks.our_side import CONFIG, encode_good_pairs, fine_tune, load_model
from benchmarks.side_by_side import peak_memory, run_python
from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.model import Transformer
from part4_sft.report import markdown_table

OURS = "part4_sft"
SIDES = {OURS: "ours", "TRL, float32, activations kept": "trl-float32", "TRL as it comes": "trl"}
STEPS = 2


def main() -> str:
    rows: list[list[str]] = []
    ours: dict[str, float] = {}
    for name, side in SIDES.items():
        for shape in ("default", "135M"):
            if (side, shape) == ("trl", "135M") and not multiplies_bfloat16():
                continue  # without instructions for bfloat16, a step of the large model takes minutes
            peak = float(run_python("-m", "benchmarks.peak", side, shape).split()[-1])
            ours.setdefault(shape, peak)  # the first side is ours
            rows.append([name, shape, f"{peak:.2f}", "" if name == OURS else f"{ours[shape] / peak:.2f}x"])
    return markdown_table(["side", "model", "GB at the peak", f"{OURS} needs"], rows)


def measure(side: str, shape: str) -> float:
    """Fine-tune, and return the most gigabytes that this process had in memory."""
    model, encoder = load_model()
    examples = encode_good_pairs(encoder)[: STEPS * CONFIG.batch_size]
    torch.manual_seed(0)
    if shape == "135M":
        model = Transformer(SHAPES["135M (SmolLM2)"])
    if side == "ours":
        fine_tune(model, examples)
    else:
        from benchmarks import trl_side  # its memory is not ours

        with trl_side.exported(model, encoder.tokenizer) as folder:
            del model, encoder
            settings = trl_side.SAME_ARITHMETIC if side == "trl-float32" else {}
            trl_side.fine_tune(folder, examples, STEPS, **settings)
    return peak_memory() / 1e9


if __name__ == "__main__":
    print(measure(*sys.argv[1:]))
