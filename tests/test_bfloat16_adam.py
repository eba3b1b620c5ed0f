"""Adam with bfloat16 weights: Adam's own steps, none of which is lost by rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim import Adam
from torch.utils._python_dispatch import TorchDispatchMode

from part4_sft.extras import bfloat16_adam
from part4_sft.extras.bfloat16_adam import BFloat16Adam


def make_weight(dtype: torch.dtype) -> nn.Parameter:
    weight = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    return nn.Parameter(weight.bfloat16().to(dtype))


def train(adam: torch.optim.Optimizer, weight: nn.Parameter, steps: int, seed: int = 1) -> Tensor:
    """Take steps whose gradients are random, but the same for every optimizer; return the weight."""
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        weight.grad = (torch.randn(weight.shape, generator=rng) + 0.5).to(weight.dtype)
        adam.step()
    return weight.detach().float()


def test_in_float32_it_is_torchs_adam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bfloat16_adam.WEIGHTS_PER_CHUNK, "cpu", 1000)  # the weight in several chunks
    ours, theirs, frozen = make_weight(torch.float32), make_weight(torch.float32), make_weight(torch.float32)
    moved = train(BFloat16Adam([frozen, ours], 1e-2, torch.float32), ours, 20)
    torch.testing.assert_close(moved, train(Adam([theirs], lr=1e-2), theirs, 20), atol=1e-6, rtol=1e-6)
    assert torch.equal(frozen, make_weight(torch.float32))


class Operations(TorchDispatchMode):
    """Counts the operations that compute or copy."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += operation.overloadpacket not in (torch.ops.aten.view, torch.ops.aten.split)
        return operation(*args, **(kwargs or {}))


def test_many_small_weights_are_updated_in_few_operations_though_not_all_have_a_gradient_in_every_step() -> None:
    ours, theirs = ([nn.Parameter(torch.ones(3)) for _ in range(100)] for _ in range(2))
    optimizers = (BFloat16Adam(ours, 1e-2, torch.float32), Adam(theirs, lr=1e-2))
    for step in (1, 2, 3):
        for weights in (ours, theirs):
            for number, weight in enumerate(weights):
                weight.grad = None if step == 1 and number % 3 else torch.full((3,), 1 / (number + step))
        with Operations() as operations:
            optimizers[0].step()
        optimizers[1].step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    assert operations.count < 60


def test_a_step_calls_what_computes_the_gradients() -> None:
    weight = make_weight(torch.bfloat16)

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    adam = BFloat16Adam([weight], 1e-2, torch.float32)
    assert adam.step(closure) > adam.step(closure) > 0


@pytest.mark.parametrize("moments_dtype", [torch.float32, torch.bfloat16])
def test_small_steps_add_up_and_the_state_is_restored_to_the_bit(moments_dtype: torch.dtype) -> None:
    """A hundred steps of 1e-4 move a weight of 1.0, whose nearest neighbours are 0.004 away, by Adam's distance."""
    exact, nearest = make_weight(torch.float32), make_weight(torch.bfloat16)
    start = exact.detach().clone()
    expected = (train(Adam([exact], lr=1e-4), exact, 100) - start).mean().item()
    lost = (train(Adam([nearest], lr=1e-4), nearest, 100) - start).mean()
    assert expected < -2e-3 and abs(lost) < 0.7 * abs(expected)  # what rounding to the nearest number does
    results = []
    for reload in (False, True):
        torch.manual_seed(0)
        ours = make_weight(torch.bfloat16)
        optimizer = BFloat16Adam([ours], 1e-4, moments_dtype)
        assert (train(optimizer, ours, 100) - start).mean().item() == pytest.approx(expected, rel=0.1)
        assert {optimizer.state[ours][name].dtype for name in ("mean", "square")} == {moments_dtype}
        if reload:
            saved, optimizer = optimizer.state_dict(), BFloat16Adam([ours], 1e-4, moments_dtype)
            optimizer.load_state_dict(saved)
        results.append(train(optimizer, ours, 3, seed=2))
    assert torch.equal(*results)


@pytest.mark.parametrize("moments_dtype", [torch.float32, torch.bfloat16])
def test_the_state_of_several_processes_which_has_names_is_restored_to_the_bit(moments_dtype: torch.dtype) -> None:
    """One layer is frozen."""
    results = []
    for reload in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(4, 4) for _ in range(3)).bfloat16()
        model[0].requires_grad_(False)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = BFloat16Adam(trained, 1e-2, moments_dtype)
        for step in range(6):
            if reload and step == 3:
                saved = get_state_dict(model, optimizer)
                optimizer = BFloat16Adam(trained, 1e-2, moments_dtype)
                rng = torch.get_rng_state()
                get_state_dict(model, optimizer)  # as before loading: torch lets the optimizer take a step of zero
                set_state_dict(model, optimizer, model_state_dict=saved[0], optim_state_dict=saved[1])
                torch.set_rng_state(rng)
            for parameter in trained:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
            optimizer.zero_grad()
        assert {optimizer.state[weight][name].dtype for weight in trained for name in ("mean", "square")} == {
            moments_dtype
        }
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    assert torch.equal(*results)
