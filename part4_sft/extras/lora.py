"""LoRA (Hu et al. 2022) by the `peft` library: small trainable matrices beside frozen weights, merged in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from part3_pretrain.model import Transformer

ADAPTER_FOLDER = "adapter"  # in the model's
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def add_lora(model: Transformer, rank: int) -> Any:
    """Freeze the model and put matrices beside every projection, in place; return peft's handle, for `merge_lora`."""
    from peft import LoraModel  # an optional extra

    return LoraModel(model, {"default": _settings(rank)}, "default")


def _settings(rank: int, **more: Any) -> Any:
    from peft import LoraConfig  # an optional extra

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PROJECTIONS, **more)


def learnt_matrices(model: Transformer) -> dict[str, Tensor]:
    """Return copies of the small matrices by the names that they have in peft's files, before they are merged."""
    return {
        f"base_model.model.model.{name.replace('.default', '')}": parameter.detach().float().cpu().contiguous().clone()
        for name, parameter in model.named_parameters()
        if ".lora_" in name
    }


def save_adapter(folder: Path, matrices: dict[str, Tensor], rank: int, base: Path) -> None:
    """Write what `peft.PeftModel.from_pretrained` reads: adapter_config.json and adapter_model.safetensors."""
    used = {"task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "inference_mode": True}
    _settings(rank, **used).save_pretrained(folder)
    save_file(matrices, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_model.safetensors").chmod(0o644)  # `save_file` makes it for the owner alone


def merge_lora(model: Transformer, lora: Any) -> None:
    """Add to the weights what the matrices have learnt, in place; the model is in float32 afterwards."""
    model.float()  # what is learnt is mostly smaller than the distance of a weight to its neighbours in bfloat16
    lora.merge_and_unload()
