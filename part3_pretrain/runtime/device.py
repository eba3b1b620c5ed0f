"""Where to compute."""

from __future__ import annotations

import torch

from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.log import note
from part3_pretrain.runtime.torchrun import local_world_size


def choose_device(name: str, dtype: str = "float32") -> torch.device:
    """Return the device for `auto`, `cpu` or `cuda`, and note where it is slow in this number format.

    Raises UserError where cuda is asked for and missing, or there is not one GPU for each process of this machine.
    """
    gpus, processes = torch.cuda.device_count(), local_world_size()
    if name == "cuda" and not gpus:
        raise UserError("--device cuda cannot be used, since torch finds no such device here", "try --device cpu")
    if name != "cpu" and 0 < gpus < processes:
        raise UserError(f"{processes} processes cannot share {gpus} GPUs", "start one for each, or use --device cpu")
    if name != "cpu" and gpus:
        return torch.device("cuda")
    if dtype == "bfloat16" and not multiplies_bfloat16():
        note(
            "this processor has no instructions for bfloat16, so --dtype bfloat16 saves memory but takes far longer "
            "than float32"
        )
    return torch.device("cpu")
