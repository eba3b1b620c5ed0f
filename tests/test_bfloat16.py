from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from part3_pretrain import bfloat16
from part3_pretrain.model import Transformer


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_outputs_and_gradients_are_those_of_float32_to_bfloat16s_precision(
    family: str, tiny_model: Transformer
) -> None:
    """Llama's layers have no biases, some of Qwen2's do."""
    torch.manual_seed(0)
    tiny_model = Transformer(replace(tiny_model.config, family=family))
    tokens = torch.randint(tiny_model.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))

    def logits_and_gradients() -> list[torch.Tensor]:
        logits = tiny_model.lm_head(tiny_model(tokens))
        return [logits.detach(), *torch.autograd.grad(logits.logsumexp(-1).sum(), list(tiny_model.parameters()))]

    exact = logits_and_gradients()
    with pytest.raises(ZeroDivisionError), bfloat16.bfloat16_products(tiny_model):
        for one, other in zip(exact, logits_and_gradients()):
            assert other.dtype == torch.float32
            assert 0 < (one - other).norm() < 0.03 * one.norm()
        raise ZeroDivisionError
    for one, other in zip(exact, logits_and_gradients()):  # back in float32, even after an error
        assert torch.equal(one, other)


def test_a_small_layer_stays_in_float32_and_a_frozen_one_gets_no_gradient() -> None:
    layers = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 5))
    layers[0].weight.requires_grad_(False)
    x, hidden = torch.randn(4, 20), layers[0](torch.ones(20))
    with bfloat16.bfloat16_products(layers, smallest=20):
        layers(x).sum().backward()
        assert not torch.equal(layers[0](torch.ones(20)), hidden)
    expected = layers[1](hidden)
    with bfloat16.bfloat16_products(layers, smallest=20):
        assert torch.equal(layers[1](hidden), expected)
    assert layers[0].weight.grad is None and layers[0].bias.grad is not None and layers[1].weight.grad is not None


@pytest.mark.parametrize("value", [1.0, -2.5, 0.0, 1.001, -0.0301, 3.3e-12, 1e30])
def test_rounding_goes_to_a_neighbour_and_is_right_on_average(value: float) -> None:
    torch.manual_seed(0)
    rounded = bfloat16.round_with(torch.full((200_000,), value), bfloat16.make_noise(200_000)).float()
    neighbours = rounded.unique()
    assert len(neighbours) <= 2
    assert (neighbours - value).abs().max() <= abs(value) * 2**-7
    assert rounded.double().mean().item() == pytest.approx(value, rel=2e-5)


@torch.no_grad()
def test_dithered_products_see_a_step_that_is_a_tenth_of_the_spacing_between_weights() -> None:
    """Of weights between 1 and 2 that are bfloat16 numbers, whose neighbours are 2**-7 away."""
    layer, step = nn.Linear(4096, 8, bias=False), 0.1 * 2**-7
    start = layer.weight.uniform_(1, 1.9).bfloat16().float()
    x = torch.tensor([1.0, -1.0]).repeat(1, 2048).requires_grad_()  # so that the outputs are small, and exact enough
    for dithered, expected in ((False, 0.0), (True, 8 * 4096 * step)):
        outputs, gradients = [], []
        for weight in (start, start + step * x):
            layer.weight.copy_(weight)
            with torch.enable_grad(), bfloat16.bfloat16_products(layer, dithered=dithered):
                outputs.append(layer(x).sum())
                gradients.append((torch.autograd.grad(outputs[-1], x)[0] * x).sum())
        for before, after in (outputs, gradients):
            assert (after - before).item() == pytest.approx(expected, rel=0.1)


def test_linux_tells_what_the_processor_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = tmp_path / "cpuinfo"
    monkeypatch.setattr(bfloat16, "Path", lambda path: cpu if path == "/proc/cpuinfo" else None)
    assert not bfloat16.multiplies_bfloat16()  # where there is no such file
    for flag, expected in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
        cpu.write_text(f"flags : fpu {flag} sse")
        assert bfloat16.multiplies_bfloat16() == expected
