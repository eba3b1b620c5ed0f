"""How much of the processor's float32 matrix-product rate pretraining reaches, on its own shapes, in turns."""

from __future__ import annotations

import time
from random import Random
from statistics import median

import torch
from torch import nn

from benchmarks.side_by_side import Measured, alternate, seconds_of
from part3_pretrain import corpus
from part3_pretrain.config import PretrainConfig
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.run import MAX_GRADIENT_NORM, make_optimizer, next_token_loss
from part3_pretrain.tokenizer import train_tokenizer
from part4_sft.report import markdown_table

STEPS, ROUNDS = 20, 5


def main() -> str:
    torch.manual_seed(0)
    rng, config = Random(0), PretrainConfig()
    texts = [corpus.draw_document(rng) for _ in range(3000)]
    tokenizer = train_tokenizer(texts, config.vocab_size)
    rows = corpus.tokenize(texts, tokenizer, 1, 256)
    batches = list(corpus.batches(rows, config.tokens_per_batch, rng))[:STEPS]
    model = Transformer(ModelConfig(tokenizer.get_vocab_size()))
    optimizer = make_optimizer(model, config, torch.float32)  # with a learning rate of 0, which takes as long
    shapes = [module.weight.shape for module in model.modules() if isinstance(module, nn.Linear)]
    operations = sum(6 * inputs.numel() * o * i for inputs, _ in batches for o, i in shapes)

    def train() -> None:
        for inputs, targets in batches:
            (next_token_loss(model, inputs, targets) / (targets != corpus.IGNORE_INDEX).sum()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad()

    def multiply() -> float:
        """Return the seconds of the same products and nothing else: forward, by the inputs, by the weights."""
        seconds = 0.0
        for inputs, _ in batches:
            tokens = inputs.numel()
            tensors = [(torch.randn(tokens, i), torch.randn(o, i), torch.randn(tokens, o)) for o, i in shapes]
            start = time.perf_counter()
            for x, weight, gradient in tensors:
                x @ weight.T, gradient @ weight, gradient.T @ x
            seconds += time.perf_counter() - start
        return seconds

    sides = {
        "a step, all of it": lambda: Measured(seconds_of(train), operations),
        "its matrix products alone": lambda: Measured(multiply(), operations),
    }
    runs = alternate(sides, ROUNDS)
    shares = [products.seconds / step.seconds for step, products in zip(*runs.values())]
    cells = []
    for name, of_side in runs.items():
        seconds = median(run.seconds for run in of_side)
        cells.append([name, f"{1000 * seconds / STEPS:.1f}", f"{operations / seconds / 1e9:.0f}"])
    spread = f"{min(shares):.0%} to {max(shares):.0%}, {ROUNDS} rounds in turns"
    table = markdown_table(["float32", "ms (median)", "GFLOP/s of the products"], cells)
    return f"{table}\n\nShare of the products' rate: {median(shares):.0%} ({spread})."
