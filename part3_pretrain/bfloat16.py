"""Matrix products in bfloat16, all else but SwiGLU in float32: faster where the processor multiplies bfloat16 natively.

Autocast would do the same and more, but casts small tensors between the products too, which costs a small model on a
CPU more than the products gain. Within SwiGLU, whose tensors are the widest, no cast is needed: what comes out of two
products goes into the third. Weights, gradients and optimizer stay in float32, as in mixed precision training
(Micikevicius et al. 2018).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def multiplies_bfloat16() -> bool:
    """Tell whether this processor has instructions for it (AVX512_BF16 or AMX); False where Linux does not say so."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "_bf16" in cpu.read_text(encoding="utf-8")


@contextmanager
def bfloat16_products(model: nn.Module, smallest: int = 1) -> Iterator[None]:
    """Let the model's linear layers with at least so many inputs, and outputs, multiply in bfloat16 and back.

    Those before SwiGLU's activation stay in bfloat16, and so does all until the layer behind it.
    """
    layers = {
        layer: torch.bfloat16 if name.endswith(("gate_proj", "up_proj")) else torch.float32
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and min(layer.weight.shape) >= smallest
    }
    for layer, dtype in layers.items():
        layer.forward = partial(_linear, layer, dtype)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _linear(layer: nn.Linear, dtype: torch.dtype, x: Tensor) -> Tensor:
    product = _Product.apply(x, layer.weight, dtype)
    return product if layer.bias is None else product + layer.bias


class _Product(torch.autograd.Function):
    """x @ weight.T for x (..., in) and weight (out, in), in the number format `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.input_dtype = x.dtype
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return (x @ weight.T).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.bfloat16()
        weight_gradient = None
        if ctx.needs_input_grad[1]:  # not where LoRA has frozen it
            weight_gradient = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()
        return (gradient @ weight).to(ctx.input_dtype), weight_gradient, None
