"""Matrix products in bfloat16, all else but SwiGLU in float32: faster where the processor multiplies bfloat16 natively.

Autocast would do the same and more, but casts small tensors between the products too, which costs a small model on a
CPU more than the products gain. Within SwiGLU, whose tensors are the widest, no cast is needed: what comes out of two
products goes into the third. Weights, gradients and optimizer stay in float32, as in mixed precision training
(Micikevicius et al. 2018).

Most published weights are bfloat16 numbers, or close to them, and a step of fine-tuning changes a weight by a tenth of
the spacing between two of those. Rounded to the nearest, it would multiply as before for several steps: 0.037 nats
worse in SmolLM2's first 20 at 5e-5. So fine-tuning rounds with a fixed noise (dithering): a tenth of the weights move
at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SPACING = 2**16  # of neighbours in bfloat16, which is the upper half of a float32's 32 bits, as an integer
ROWS = 512  # of a weight, which are rounded at once: they stay in a processor's cache


def multiplies_bfloat16() -> bool:
    """Tell whether this processor has instructions for it (AVX512_BF16 or AMX); False where Linux does not say so."""
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "_bf16" in cpu.read_text(encoding="utf-8")


@contextmanager
def bfloat16_products(model: nn.Module, smallest: int = 1, dithered: bool = False) -> Iterator[None]:
    """Let the model's linear layers with at least so many inputs, and outputs, multiply in bfloat16 and back.

    Those before SwiGLU's activation stay in bfloat16, and so does all until the layer behind it.

    Args:
        dithered: round weights with a noise, the same for all outputs and all steps; else to the nearest.
    """
    layers = {
        layer: torch.bfloat16 if name.endswith(("gate_proj", "up_proj")) else torch.float32
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and min(layer.weight.shape) >= smallest
    }
    for layer, dtype in layers.items():
        noise = fixed_noise(layer.in_features) if dithered else None
        layer.forward = partial(_linear, layer, dtype, noise)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def make_noise(*shape: int, generator: torch.Generator | None = None, device: torch.device | None = None) -> Tensor:
    """Draw the noise of `round_with`."""
    return torch.randint(SPACING, shape, dtype=torch.int32, generator=generator, device=device)


@cache  # asked for at every step, for every layer
def fixed_noise(size: int) -> Tensor:
    """Return the same noise at each call."""
    return make_noise(size, generator=torch.Generator().manual_seed(0))


def round_with(x: Tensor, noise: Tensor) -> Tensor:
    """Round float32 to one of the two nearest numbers that bfloat16 has too, so that the expected value is the same."""
    return (x.view(torch.int32) + noise).bitwise_and_(-SPACING).view(torch.float32)


def _dithered(weight: Tensor, noise: Tensor) -> Tensor:
    rounded = torch.empty_like(weight, dtype=torch.bfloat16)
    for place, rows in zip(rounded.split(ROWS), weight.split(ROWS)):
        place.copy_(round_with(rows, noise))
    return rounded


def _linear(layer: nn.Linear, dtype: torch.dtype, noise: Tensor | None, x: Tensor) -> Tensor:
    product = _Product.apply(x, layer.weight, dtype, noise)
    return product if layer.bias is None else product + layer.bias


class _Product(torch.autograd.Function):
    """x @ weight.T for x (..., in) and weight (out, in), in the number format `dtype`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype, noise: Tensor | None) -> Tensor:
        ctx.input_dtype = x.dtype
        x, weight = x.bfloat16(), weight.bfloat16() if noise is None else _dithered(weight, noise)
        ctx.save_for_backward(x, weight)
        return (x @ weight.T).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.bfloat16()
        weight_gradient = None
        if ctx.needs_input_grad[1]:  # not where LoRA has frozen it
            weight_gradient = (gradient.flatten(0, -2).T @ x.flatten(0, -2)).float()
        return (gradient @ weight).to(ctx.input_dtype), weight_gradient, None, None
