"""How much memory does fine-tuning need? python -m benchmarks.memory

Trains a model of SmolLM2's 135M shape, with random weights, for one step of 8 pairs of 128 tokens, once for each
way to save memory, each in a process of its own, and prints the peak of that process less what Python and torch need.
For larger models it computes what weights, gradients and Adam's moments need, which is the same for every machine.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from importlib import import_module

import torch

from benchmarks.our_side import count_parameters, fine_tune
from benchmarks.side_by_side import peak_memory, run_python
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.device import weights_dtype
from part4_sft.config import SFTConfig
from part4_sft.encoding import Example
from part4_sft.extras.lora import PROJECTIONS, add_lora
from part4_sft.report import markdown_table

SHAPES = {
    "135M (SmolLM2)": ModelConfig(49152, 576, 1536, 30, 9, 3, max_positions=8192),
    "1B (Llama 3.2)": ModelConfig(128256, 2048, 8192, 16, 32, 8, max_positions=131072),
    "8B (Llama 3.1)": ModelConfig(128256, 4096, 14336, 32, 32, 8, max_positions=131072, tie_embeddings=False),
}
BASE = SFTConfig(epochs=1, batch_size=8)
WAYS = {
    "float32": BASE,
    "--dtype bfloat16": replace(BASE, dtype="bfloat16"),
    "--dtype bfloat16 --moments-dtype bfloat16": replace(BASE, dtype="bfloat16", moments_dtype="bfloat16"),
    "--dtype bfloat16 --lora-rank 16": replace(BASE, dtype="bfloat16", lora_rank=16),
}
PAIRS, TOKENS = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--only", nargs=2, metavar=("WAY", "CHECKPOINTING"), help="measure one way, in this process")
    only = parser.parse_args().only
    if only:
        way, checkpointing = only
        print(measure(WAYS[way], checkpointing == "True"))
        return
    rows = []
    for way, config in WAYS.items():
        peaks = [
            run_python("-m", "benchmarks.memory", "--only", way, checkpointing) for checkpointing in ("False", "True")
        ]
        measured = [f"{float(peak):.1f}" for peak in peaks]
        rows.append([way, *measured, *(f"{compute(shape, config):.1f}" for shape in SHAPES.values())])
    header = ["GB", "135M measured", "and --gradient-checkpointing", *(f"{name} computed" for name in SHAPES)]
    print(markdown_table(header, rows))


def measure(config: SFTConfig, gradient_checkpointing: bool) -> float:
    """Train for one step, and return the gigabytes that this process came to need for it."""
    if config.lora_rank:
        import_module("peft")  # so that its own memory is not counted
    before = peak_memory()
    torch.set_default_dtype(weights_dtype(config.dtype))
    model = Transformer(SHAPES["135M (SmolLM2)"])
    torch.set_default_dtype(torch.float32)
    if config.lora_rank:
        add_lora(model, config.lora_rank)
    model.gradient_checkpointing = gradient_checkpointing
    ids = torch.randint(49152, (PAIRS, TOKENS), generator=torch.Generator().manual_seed(0)).tolist()
    fine_tune(model, [Example(row, [IGNORE_INDEX] * (TOKENS // 2) + row[TOKENS // 2 :]) for row in ids], config)
    return (peak_memory() - before) / 1e9


def compute(shape: ModelConfig, config: SFTConfig) -> float:
    """Return the gigabytes of weights, gradients and both moments; activations come on top."""
    with torch.device("meta"):
        model = Transformer(shape)
    weights = trainable = count_parameters(model)
    if config.lora_rank:
        projections = [module for name, module in model.named_modules() if name.endswith(tuple(PROJECTIONS))]
        trainable = sum(config.lora_rank * (layer.in_features + layer.out_features) for layer in projections)
    weight_bytes = 2 if config.dtype == "bfloat16" else 4
    moment_bytes = 2 if config.moments_dtype == "bfloat16" else 4
    return (weights * weight_bytes + trainable * (weight_bytes + 2 * moment_bytes)) / 1e9


if __name__ == "__main__":
    main()
