"""Where a run computes."""

from __future__ import annotations

import pytest
import torch

from part3_pretrain.runtime import device
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.device import choose_device


@pytest.mark.parametrize(
    ("name", "gpus", "processes", "chosen"),
    [
        ("auto", 0, 1, "cpu"),
        ("auto", 1, 1, "cuda"),
        ("auto", 2, 2, "cuda"),
        ("cpu", 1, 2, "cpu"),
        ("cuda", 1, 1, "cuda"),
        ("cuda", 0, 1, "--device cpu"),
        ("auto", 1, 2, "2 processes cannot share 1 GPUs"),
        ("cuda", 1, 2, "2 processes cannot share 1 GPUs"),
    ],
)
def test_the_device_is_what_is_there_or_the_mistake_is_told(
    name: str, gpus: int, processes: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(device, "local_world_size", lambda: processes)
    if " " not in chosen:
        assert choose_device(name).type == chosen
    else:
        with pytest.raises(UserError, match=chosen):
            choose_device(name)


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_that_is_slow_here_is_told(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: has_instructions)
    for name, dtype in (("cpu", "bfloat16"), ("cpu", "float32"), ("cuda", "bfloat16")):
        choose_device(name, dtype)
    assert capsys.readouterr().err.count("note: ") == (not has_instructions)
