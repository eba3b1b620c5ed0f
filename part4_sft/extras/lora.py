"""LoRA (Hu et al. 2022) by the `peft` library: small trainable matrices beside frozen weights.

In the end they are merged into the weights, so what is saved is a model like any other.
"""

from __future__ import annotations

from typing import Any

from part3_pretrain.model import Transformer

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


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
