from __future__ import annotations

from pathlib import Path

import pytest
import torch

from part3_pretrain import bfloat16
from part3_pretrain.model import Transformer


def test_outputs_and_gradients_are_those_of_float32_to_bfloat16s_precision(tiny_model: Transformer) -> None:
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


def test_linux_tells_what_the_processor_can_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = tmp_path / "cpuinfo"
    monkeypatch.setattr(bfloat16, "Path", lambda path: cpu if path == "/proc/cpuinfo" else None)
    assert not bfloat16.multiplies_bfloat16()  # where there is no such file
    for flag, expected in (("avx512_bf16", True), ("amx_bf16", True), ("avx2", False)):
        cpu.write_text(f"flags : fpu {flag} sse")
        assert bfloat16.multiplies_bfloat16() == expected
