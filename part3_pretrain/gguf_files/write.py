"""Write a checkpoint as a GGUF file: matrices in float16, norms and biases in float32, as by llama.cpp's converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.gguf_files.layout import (
    CONTROL_TOKENS,
    END_TOKENS,
    KEYS,
    ROPE_FACTORS,
    architecture_of,
    check_installed,
    gguf_name,
    interleave_heads,
    rope_factors,
)
from part3_pretrain.gguf_files.vocabulary import metadata_from_tokenizer
from part3_pretrain.huggingface.write import settings_files
from part3_pretrain.model import ModelConfig
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write

MOSTLY_F16 = 1  # of `LlamaFileType`


def write_gguf(path: Path, checkpoint: Checkpoint) -> None:
    """Write the file, whole or not at all. Raise UserError where it cannot be, or GGUF has no such tokenizer."""
    check_installed(f"writing {path}")
    from gguf import GGUFWriter  # an optional extra

    config = checkpoint.model.config
    metadata = describe(path, checkpoint)
    tensors: dict[str, Tensor] = dict(checkpoint.model.named_parameters())  # tied embeddings once
    if config.rope_scaling:
        tensors[ROPE_FACTORS] = rope_factors(config)
    with atomic_write(path) as temporary:
        writer = GGUFWriter(temporary, architecture_of(config.family))
        try:
            for key, value in metadata.items():
                _add(writer, key, value)
            for name, tensor in tensors.items():
                kind = np.dtype(np.float16 if tensor.dim() > 1 else np.float32)
                size = tensor.numel() * kind.itemsize
                writer.add_tensor_info(_name(name), tensor.shape, kind, size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name, tensor in tensors.items():
                writer.write_tensor_data(_numbers(path, name, tensor, config))
        finally:
            writer.close()


def _name(name: str) -> str:
    return name if name == ROPE_FACTORS else gguf_name(name)


def _numbers(path: Path, name: str, tensor: Tensor, config: ModelConfig) -> Any:
    """Return a tensor as a numpy array. Raise UserError where float16 has no such large numbers."""
    values = interleave_heads(name, tensor.detach().float(), config)
    if values.dim() == 1:
        return values.numpy()
    if values.abs().max() > torch.finfo(torch.float16).max:
        raise UserError(f"{path} cannot be written: {name} holds numbers that are too large for float16")
    return values.half().numpy()


def describe(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what llama.cpp's converter would write of the same model's Hugging Face folder, by key.

    Raises UserError where GGUF has no name for such a tokenizer.
    """
    config = checkpoint.model.config
    settings = settings_files(checkpoint)
    head_dim = config.head_dim
    sizes = settings["config.json"] | {"rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps}
    sizes["num_key_value_heads"] = config.num_kv_heads  # which may be left out
    architecture = {key: sizes[name] for name, key in KEYS.items()}
    architecture |= {"vocab_size": config.vocab_size, "rope.dimension_count": head_dim}
    architecture |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    try:
        vocabulary = metadata_from_tokenizer(checkpoint.tokenizer, config.vocab_size)
    except ValueError as error:
        raise UserError(f"{path} cannot be written: {error}") from error
    texts = settings["tokenizer_config.json"]
    control = {key: _number(checkpoint.tokenizer, texts.get(name)) for name, key in CONTROL_TOKENS.items()}
    control |= dict(zip(END_TOKENS, config.eos_ids))
    template = settings.get("chat_template.jinja") or texts.get("chat_template")
    return {
        "general.type": "model",
        "general.name": path.stem,
        "general.file_type": MOSTLY_F16,
        **{f"{architecture_of(config.family)}.{key}": value for key, value in architecture.items()},
        **vocabulary,
        **{f"tokenizer.ggml.{key}": number for key, number in control.items() if number is not None},
        **({"tokenizer.chat_template": template} if isinstance(template, str) else {}),
        "general.quantization_version": 2,
    }


def _number(tokenizer: Tokenizer, token: Any) -> int | None:
    """Return the id of a control token of tokenizer_config.json, where older versions wrote an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return tokenizer.token_to_id(text) if isinstance(text, str) else None


def _add(writer: Any, key: str, value: Any) -> None:
    """Add one of the metadata in the format that llama.cpp expects it in."""
    kinds: dict[type, Any] = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    kinds |= {str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value)
