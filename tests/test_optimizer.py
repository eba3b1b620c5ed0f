"""Adam with bfloat16 weights: Adam's own steps, of which none is lost by rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from part4_sft.extras import bfloat16_adam as optimizer
from part4_sft.extras.bfloat16_adam import BFloat16Adam, rounded_by_chance


def trained(adam: torch.optim.Optimizer, weight: nn.Parameter, steps: int) -> Tensor:
    """The weight after so many steps, whose gradients are random but the same for every optimizer."""
    numbers = torch.Generator().manual_seed(1)
    for _ in range(steps):
        weight.grad = (torch.randn(weight.shape, generator=numbers) + 0.5).to(weight.dtype)
        adam.step()
    return weight.detach().float()


def a_weight(dtype: torch.dtype) -> nn.Parameter:
    weight = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(weight.bfloat16().to(dtype))


def test_in_float32_it_is_torchs_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "AT_ONCE", 1000)  # the weight in several parts
    ours, theirs = a_weight(torch.float32), a_weight(torch.float32)
    found = trained(BFloat16Adam([ours], 1e-2, torch.float32), ours, 20)
    torch.testing.assert_close(found, trained(torch.optim.Adam([theirs], lr=1e-2), theirs, 20), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("moments_dtype", [torch.float32, torch.bfloat16])
def test_small_steps_add_up_in_bfloat16(moments_dtype: torch.dtype) -> None:
    """A hundred steps of 1e-4 move a weight of 1.0, whose nearest neighbours are 0.004 away, by Adam's distance."""
    torch.manual_seed(0)
    ours, exact, nearest = a_weight(torch.bfloat16), a_weight(torch.float32), a_weight(torch.bfloat16)
    start = exact.detach().clone()
    wanted = (trained(torch.optim.Adam([exact], lr=1e-4), exact, 100) - start).mean()
    assert wanted < -2e-3
    moved = (trained(BFloat16Adam([ours], 1e-4, moments_dtype), ours, 100) - start).mean()
    assert moved.item() == pytest.approx(wanted.item(), rel=0.1)
    lost = (trained(torch.optim.Adam([nearest], lr=1e-4), nearest, 100) - start).mean()
    assert abs(lost) < 0.7 * abs(wanted)  # what rounding to the nearest does


def test_rounding_goes_to_a_neighbour_and_is_right_on_average() -> None:
    torch.manual_seed(0)
    for value in (1.0, -2.5, 0.0, 1.001, -0.0301, 3.3e-12, 1e30):
        rounded = rounded_by_chance(torch.full((200_000,), value)).float()
        neighbours = rounded.unique()
        assert len(neighbours) <= 2
        assert (neighbours - value).abs().max() <= abs(value) * 2**-7
        assert rounded.double().mean().item() == pytest.approx(value, rel=2e-5)
