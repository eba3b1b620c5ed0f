"""LoRA (Hu et al. 2022) by the `peft` library: small trainable matrices beside frozen weights.

In the end they are merged into the weights, so what is saved is a model like any other.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def check_peft() -> None:
    """Raise UserError where peft, an optional extra, is not installed."""
    if find_spec("peft") is None:
        raise UserError("--lora-rank needs peft", "install it with: pip install peft==0.21.2")


def add_lora(model: Transformer, rank: int) -> Any:
    """Freeze the model and put matrices of this rank beside every projection of its blocks, in place.

    Returns:
        peft's handle, for `merge_lora`.
    """
    from peft import LoraConfig, LoraModel  # an optional extra

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS)
    return LoraModel(model, {"default": config}, "default")


def merge_lora(lora: Any) -> None:
    """Merge the matrices into the weights of the model and remove them, in place."""
    lora.merge_and_unload()
