"""Write a checkpoint as a Hugging Face folder, which transformers, vLLM and llama.cpp's converter read."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.huggingface.config import Settings, as_list, to_hugging_face
from part3_pretrain.huggingface.model_card import model_card
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_folder


def write_folder(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the whole folder, model card included, or nothing.

    Raises:
        UserError: the folder is there already and not empty, or cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already", "name a new folder, so that no file of another model stays in it")
    files = _settings(checkpoint)
    files["tokenizer.json"] = checkpoint.tokenizer.to_str(pretty=True)
    files["README.md"] = model_card(folder.resolve().name, checkpoint)
    weights = {
        name if name.startswith("lm_head.") else f"model.{name}": parameter.detach().contiguous()
        for name, parameter in checkpoint.model.named_parameters()  # tied embeddings once
    }
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)  # `save_file` makes it for the owner alone
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")


def _settings(checkpoint: Checkpoint) -> Settings:
    """Return the settings files that the model came with, and made ones for those that it lacks.

    They are made to tell the number format and the end-of-text token as they are now.
    """
    model = checkpoint.model
    settings = to_hugging_face(model.config, checkpoint.tokenizer) | checkpoint.hugging_face
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    settings["config.json"] = {**settings["config.json"], "torch_dtype": dtype}
    settings["config.json"].pop("dtype", None)  # the newer name of the same, which older readers do not know
    for name in ("config.json", "generation_config.json"):
        if model.config.eos_ids[0] not in as_list(settings[name].get("eos_token_id")):  # else replies would not end
            settings[name] = {**settings[name], "eos_token_id": list(model.config.eos_ids)}
    return settings
