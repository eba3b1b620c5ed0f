"""LoRA (Hu et al. 2022) by the `peft` library: small trainable matrices beside frozen weights, merged in the end."""

from __future__ import annotations

from typing import Any

from part3_pretrain.model import Transformer

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(model: Transformer, rank: int) -> Any:
    """Freeze the model and put matrices beside every projection, in place; return peft's handle, for `merge_lora`."""
    from peft import LoraConfig, LoraModel  # an optional extra

    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS)
    return LoraModel(model, {"default": config}, "default")


def merge_lora(model: Transformer, lora: Any) -> None:
    """Add to the weights what the matrices have learnt, in place; the model is in float32 afterwards."""
    model.float()  # what is learnt is mostly smaller than the distance of a weight to its neighbours in bfloat16
    lora.merge_and_unload()
