from __future__ import annotations

import pytest
import torch
from torch import nn

from part3_pretrain.norm import RMSNorm


@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 5, 24)])
def test_values_and_gradients_are_those_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = RMSNorm(24, 1e-2), nn.RMSNorm(24, 1e-2)
    with torch.no_grad():
        ours.weight.copy_(theirs.weight.normal_(mean=1.0))
    found = []
    for norm in (ours, theirs):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
        y = norm(x)
        y.backward(torch.randn(shape, generator=torch.Generator().manual_seed(2)))
        found.append((y.detach(), x.grad, norm.weight.grad))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
