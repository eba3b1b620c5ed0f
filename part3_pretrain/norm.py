"""RMSNorm with a gradient written by hand: on a CPU, it takes half as many passes over the tokens as autograd's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019, equation 4)."""

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda or x.dtype != torch.float32:  # CUDA has one kernel for it; bfloat16 needs sums in float32
            return super().forward(x)
        return _RMSNorm.apply(x, self.weight, self.eps)


class _RMSNorm(torch.autograd.Function):
    """With n = x * scale and the gradient g of the output: dL/dx = scale * (g * w - n * mean(g * w * n))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        scale = torch.rsqrt(mean_square + eps)
        normal = x * scale
        ctx.save_for_backward(normal, weight, scale)
        return normal * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normal, weight, scale = ctx.saved_tensors
        product = gradient * normal
        weight_gradient = product.sum(dim=tuple(range(product.dim() - 1)))
        mean = (product @ weight / weight.numel())[..., None]
        return (gradient * weight).addcmul_(normal, mean, value=-1).mul_(scale), weight_gradient, None
