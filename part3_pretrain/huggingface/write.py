"""A model as a Hugging Face folder that transformers, vLLM and llama.cpp read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer

from part3_pretrain.huggingface.read import SIZES
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_folder


def write_folder(
    folder: Path, model: Transformer, tokenizer: Tokenizer, settings: dict[str, Any], model_card: str
) -> None:
    """Writes what transformers, vLLM and llama.cpp read: the whole folder, or nothing.

    Args:
        settings: the files of settings of the folder that the model once came from; where one is missing it is made.
        model_card: the text of `README.md`.

    Raises:
        UserError: the folder is there already and not empty, or cannot be written to.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; name a new folder, so that no file of another model stays in it")
    files = made_settings(model.config, tokenizer) | settings
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    files["config.json"] = {**files["config.json"], "torch_dtype": dtype}
    files["config.json"].pop("dtype", None)  # the newer name of the same, which older readers do not know
    for name in ("config.json", "generation_config.json"):
        given = files[name].get("eos_token_id")
        if model.config.eos_ids[0] not in (given if isinstance(given, list) else [given]):
            files[name] = {**files[name], "eos_token_id": list(model.config.eos_ids)}  # else replies would not end
    files |= {"tokenizer.json": tokenizer.to_str(pretty=True), "README.md": model_card}
    weights = {
        name if name.startswith("lm_head.") else f"model.{name}": parameter.detach().contiguous()
        for name, parameter in model.named_parameters()  # tied embeddings once
    }
    with atomic_folder(folder) as temporary:
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)  # `save_file` makes it for the owner alone
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")


def made_settings(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The JSON files of settings for a model that was pretrained here."""
    eos_id, *others = config.eos_ids
    ends = {"eos_token_id": [eos_id, *others] if others else eos_id, "pad_token_id": config.pad_id}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": config.family,
            **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": None,
            **ends,
        },
        "generation_config.json": {"bos_token_id": None, **ends},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokenizer.id_to_token(eos_id),
            "pad_token": None if config.pad_id is None else tokenizer.id_to_token(config.pad_id),
            "model_max_length": config.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    }
