"""LoRA (Hu et al. 2022) by the `peft` library: small trainable matrices beside frozen weights.

The learnt matrices are added to the weights in the end, so what is saved is a model like any other.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def check_peft() -> None:
    """Raises UserError where peft, an optional extra, is not installed."""
    if find_spec("peft") is None:
        raise UserError("--lora-rank needs peft; install it with: pip install peft==0.21.2")


def add_lora(model: Transformer, rank: int) -> Any:
    """Freezes the model and puts matrices of this rank beside every projection of its blocks, in place.

    Returns:
        peft's handle, for `merge_lora`.
    """
    from peft import LoraConfig, LoraModel  # takes seconds, so only where it is used

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS)
    return LoraModel(model, {"default": config}, "default")


def merge_lora(handle: Any) -> None:
    """Adds what was learnt to the weights of the model, in place, and takes the matrices away."""
    handle.merge_and_unload()
