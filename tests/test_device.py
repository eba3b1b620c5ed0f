"""Where a run computes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from part3_pretrain.runtime import device
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.device import choose_device, free_memory


@pytest.fixture(autouse=True)
def settings_of_torch() -> Iterator[None]:
    """They are of the whole process, so those from before come back."""
    precision, cudnn = torch.get_float32_matmul_precision(), torch.backends.cuda.cudnn_sdp_enabled()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cuda.enable_cudnn_sdp(cudnn)


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


@pytest.mark.parametrize(("name", "gpus"), [("auto", 1), ("cuda", 1), ("cpu", 1), ("auto", 0)])
def test_only_on_cuda_products_are_tf32_and_attention_plans_no_kernel_for_each_length(
    name: str, gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    on_cuda = choose_device(name).type == "cuda"
    assert torch.get_float32_matmul_precision() == ("high" if on_cuda else "highest")
    assert torch.backends.cuda.cudnn_sdp_enabled() != on_cuda


def test_memory_that_torch_keeps_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 25)
    assert free_memory(torch.device("cuda")) == 45
    assert free_memory(torch.device("cpu")) is None
