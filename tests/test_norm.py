from __future__ import annotations

import pytest
import torch
from torch import nn

from part3_pretrain.norm import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, gradient, weight = torch.randn(2, 3, 5, 24), torch.randn(2, 3, 5, 24), torch.randn(24) + 1
    results = []
    for norm in (RMSNorm(24, 1e-2), nn.RMSNorm(24, 1e-2)):
        norm.weight = nn.Parameter(weight.to(dtype))
        own = x.to(dtype).requires_grad_()
        y = norm(own)
        results.append((y, *torch.autograd.grad(y, (own, norm.weight), gradient.to(dtype))))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)
