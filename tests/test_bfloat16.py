from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from part3_pretrain import bfloat16
from part3_pretrain.model import Transformer


def test_outputs_and_gradients_are_those_of_float32_to_bfloat16s_precision(tiny_model: Transformer) -> None:
    model = copy.deepcopy(tiny_model)
    tokens = torch.randint(model.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))

    def logits_and_gradients() -> list[torch.Tensor]:
        logits = model.lm_head(model(tokens))
        return [logits.detach(), *torch.autograd.grad(logits.logsumexp(-1).sum(), list(model.parameters()))]

    exact = logits_and_gradients()
    with pytest.raises(ZeroDivisionError), bfloat16.bfloat16_products(model):
        for one, other in zip(exact, logits_and_gradients()):
            assert other.dtype == torch.float32
            assert 0 < (one - other).norm() < 0.03 * one.norm()
        raise ZeroDivisionError
    for one, other in zip(exact, logits_and_gradients()):  # back in float32, even after an error
        assert torch.equal(one, other)


@pytest.mark.parametrize(("flags", "expected"), [("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)])
def test_linux_tells_what_the_processor_can_do(
    flags: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = tmp_path / "cpuinfo"
    monkeypatch.setattr(bfloat16, "Path", lambda path: cpu if path == "/proc/cpuinfo" else None)
    assert not bfloat16.multiplies_bfloat16()  # where there is no such file
    cpu.write_text(f"flags : fpu {flags} sse")
    assert bfloat16.multiplies_bfloat16() == expected
