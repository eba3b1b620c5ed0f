"""Where to compute."""

from __future__ import annotations

import torch

from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.log import note
from part3_pretrain.runtime.torchrun import local_world_size


def choose_device(name: str, dtype: str = "float32") -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`, and note where it is slow in this number format.

    For CUDA it also sets, in the whole process, how torch computes there. That has not run on a GPU.

    Raises UserError where cuda is asked for and missing, or there is not one GPU for each process of this machine.
    """
    gpus, processes = torch.cuda.device_count(), local_world_size()
    if name == "cuda" and not gpus:
        raise UserError("--device cuda cannot be used, since torch finds no such device here", "try --device cpu")
    if name != "cpu" and 0 < gpus < processes:
        raise UserError(f"{processes} processes cannot share {gpus} GPUs", "start one for each, or use --device cpu")
    if name != "cpu" and gpus:
        torch.set_float32_matmul_precision("high")  # TF32: 10 bits behind the point, and several times as fast
        torch.backends.cuda.enable_cudnn_sdp(False)  # it plans a kernel for every new length, thus for every token
        return torch.device("cuda")
    if dtype == "bfloat16" and not multiplies_bfloat16():
        note(
            "this processor has no instructions for bfloat16, so --dtype bfloat16 saves memory but takes far longer "
            "than float32"
        )
    return torch.device("cpu")


def weights_dtype(name: str) -> torch.dtype:
    """Return the number format of weights for `auto`, `float32` or `bfloat16`."""
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def free_memory(device: torch.device) -> int | None:
    """Return the bytes of a GPU that hold nothing, with those that torch keeps for later; None for a CPU."""
    if device.type == "cpu":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
