"""How much of the processor's float32 matrix-product rate pretraining reaches, on its own shapes, in turns."""

from __future__ import annotations

import time
from random import Random
from statistics import median

import torch
from torch import nn

from part3_pretrain import corpus
from part3_pretrain.config import PretrainConfig
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.run import LARGEST_GRADIENT, next_token_loss
from part3_pretrain.tokenizer import train_tokenizer
from part4_sft.report import markdown_table

STEPS, ROUNDS = 20, 5


def main() -> str:
    torch.manual_seed(0)
    rng, config = Random(0), PretrainConfig()
    texts = [corpus.draw_conversation(rng) for _ in range(3000)]
    tokenizer = train_tokenizer(texts, config.vocab_size)
    rows = corpus.tokenize(texts, tokenizer, 256)
    batches = list(corpus.batches(rows, config.tokens_per_batch, rng))[:STEPS]
    model = Transformer(ModelConfig(tokenizer.get_vocab_size()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, nn.Linear)]

    def steps() -> float:
        start = time.perf_counter()
        for inputs, targets in batches:
            (next_token_loss(model, inputs, targets) / (targets != corpus.IGNORE_INDEX).sum()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    def products() -> float:
        """The same products and nothing else: forward, by the inputs, by the weights."""
        seconds = 0.0
        for inputs, _ in batches:
            tensors = [
                (torch.randn(inputs.numel(), i), torch.randn(o, i), torch.randn(inputs.numel(), o)) for o, i in shapes
            ]
            start = time.perf_counter()
            for x, weight, gradient in tensors:
                x @ weight.T, gradient @ weight, gradient.T @ x
            seconds += time.perf_counter() - start
        return seconds

    steps(), products()
    found = [(steps(), products()) for _ in range(ROUNDS)]
    arithmetic = sum(6 * inputs.numel() * o * i for inputs, _ in batches for o, i in shapes)
    share = median(bare / whole for whole, bare in found)
    whole, bare = (median(column) for column in zip(*found))
    cells = [
        ["a step, all of it", f"{1000 * whole / STEPS:.1f}", f"{arithmetic / whole / 1e9:.0f}"],
        ["its matrix products alone", f"{1000 * bare / STEPS:.1f}", f"{arithmetic / bare / 1e9:.0f}"],
    ]
    spread = f"{min(b / w for w, b in found):.0%} to {max(b / w for w, b in found):.0%}"
    return "\n".join(
        [
            markdown_table(["float32", "ms (median)", "GFLOP/s of the products"], cells),
            "",
            f"Share of the products' rate: {share:.0%} ({spread}, {ROUNDS} rounds in turns).",
        ]
    )
