"""Read a GGUF file: its weights as plain numbers, its tokenizer, and the settings files of a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.gguf_files.header import Header, StoredTensor, read_header
from part3_pretrain.gguf_files.layout import (
    ARCHITECTURES,
    CONTROL_TOKENS,
    END_TOKENS,
    KEYS,
    ROPE_FACTORS,
    check_installed,
    halve_heads,
    our_name,
    rope_factors,
)
from part3_pretrain.gguf_files.vocabulary import tokenizer_from_metadata
from part3_pretrain.huggingface.config import Settings, from_hugging_face
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import cannot_read
from part3_pretrain.tokenizer import check_tokenizer
from part3_pretrain.weights import model_from_tensors

# Metadata that change what is computed, each with the value with which it does not.
REFUSED = {"expert_count": 0, "attention.sliding_window": 0, "rope.scaling.type": "none"}
LLAMA3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_gguf(path: Path, dtype: torch.dtype | None) -> tuple[Transformer, Tokenizer, Settings]:
    """Read a model, one tensor at a time, its tokenizer, and the settings files that its folder would have.

    `dtype` is the number format of the weights; None keeps that of the file, and float32 where it is quantised. Raise
    UserError where the file is missing or damaged, or asks for something that cannot be computed here.
    """
    check_installed(f"reading {path}")
    try:
        header = read_header(path)
        settings = _settings(header, path)
        tokenizer = tokenizer_from_metadata(header.metadata)
        config = from_hugging_face(settings, tokenizer)
        check_tokenizer(tokenizer, config.vocab_size, config.eos_ids[0])
        return model_from_tensors(config, _read_tensors(path, header, config), dtype), tokenizer, settings
    except OSError as error:
        raise cannot_read(path, error) from error
    except KeyError as error:
        raise UserError(f"{path} cannot be used: it holds no {error.args[0]}") from error
    except Exception as error:  # numpy, gguf and tokenizers raise many kinds
        raise UserError(f"{path} cannot be used: {first_line(error)}") from error


def _settings(header: Header, path: Path) -> Settings:
    """Return what a Hugging Face folder of the model holds, by the names of its files."""
    metadata = header.metadata
    architecture = metadata["general.architecture"]
    if architecture not in ARCHITECTURES:
        cause = f"its architecture is {json.dumps(architecture)}"
        raise ValueError(f"{cause}; those that can be used are {', '.join(ARCHITECTURES)}")
    for key, harmless in REFUSED.items():
        if metadata.get(f"{architecture}.{key}", harmless) != harmless:
            raise ValueError(f"its metadata ask for {key}, which is not supported")
    if metadata.get("split.count", 0) > 1:
        raise ValueError("it is one of several parts; join them with llama-gguf-split --merge")
    sizes = {name: metadata[f"{architecture}.{key}"] for name, key in KEYS.items()}
    rotated = metadata.get(f"{architecture}.rope.dimension_count")
    usual = rotated or sizes["hidden_size"] // sizes["num_attention_heads"]
    sizes["head_dim"] = metadata.get(f"{architecture}.attention.key_length", usual)
    if rotated not in (None, sizes["head_dim"]):
        raise ValueError(f"it rotates {rotated} of {sizes['head_dim']} dimensions, which is not supported")
    control = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in CONTROL_TOKENS.items()}
    end_keys = [f"tokenizer.ggml.{name}" for name in END_TOKENS]
    ends = [metadata[key] for key in end_keys if key in metadata or key == end_keys[0]]
    texts = {name: _token(metadata, number) for name, number in {**control, "eos_token": ends[0]}.items()}
    texts["chat_template"] = metadata.get("tokenizer.chat_template")
    ids = {"bos_token_id": control["bos_token"], "pad_token_id": control["pad_token"]}
    ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return {
        "config.json": {
            "architectures": [ARCHITECTURES[architecture]],
            "model_type": architecture,
            "vocab_size": header.tensors["token_embd.weight"].shape[0],
            **sizes,
            "rope_scaling": _rope_scaling(header, path),
            "hidden_act": "silu",
            "tie_word_embeddings": "output.weight" not in header.tensors,
            **ids,
        },
        "generation_config.json": ids,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **{name: text for name, text in texts.items() if text is not None},
            "model_max_length": sizes["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    }


def _token(metadata: dict[str, Any], number: int | None) -> str | None:
    """Return a control token as text. Raise ValueError where the vocabulary has none of that number."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    if number is not None and not 0 <= number < len(tokens):
        raise ValueError(f"its metadata name the token {number}, and its vocabulary has {len(tokens)}")
    return None if number is None else tokens[number]


def _rope_scaling(header: Header, path: Path) -> dict[str, Any] | None:
    """Return Llama 3.1's scaling where the file has its factors; `_read_tensors` looks whether they are those."""
    if ROPE_FACTORS not in header.tensors:
        return None
    factors = _values(np.memmap(path, mode="r"), ROPE_FACTORS, header.tensors[ROPE_FACTORS])
    return {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3_SCALING}


def _read_tensors(path: Path, header: Header, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield name, as `Transformer` has it, and value of every tensor, each read when its turn comes."""
    data = np.memmap(path, mode="r")
    sizes = [prod(_byte_shape(name, tensor)) for name, tensor in header.tensors.items()]
    if sum(sizes) > len(data):  # tensors that overlap would fill any memory
        raise ValueError("its tensors claim to hold more numbers than the file does")
    for name, tensor in header.tensors.items():
        values = _values(data, name, tensor)
        if name != ROPE_FACTORS:
            yield our_name(name), halve_heads(our_name(name), values, config)
        elif values.shape != (config.head_dim // 2,) or not torch.allclose(values, rope_factors(config), rtol=1e-3):
            raise ValueError("its rotary frequencies are not scaled as Llama 3.1 scales them, which is not supported")


def _values(data: np.memmap[Any, Any], name: str, tensor: StoredTensor) -> Tensor:
    """Return a tensor's numbers: in the file's format where torch has it, in float32 where they are quantised."""
    from gguf import GGMLQuantizationType, dequantize  # an optional extra

    shape = _byte_shape(name, tensor)
    stored = np.array(data[tensor.start : tensor.start + prod(shape)])
    if len(stored) < prod(shape):
        raise ValueError("its tensors claim to hold more numbers than the file does")
    kind = GGMLQuantizationType(tensor.kind)
    if kind == GGMLQuantizationType.F16:
        return torch.from_numpy(stored.view(np.float16).reshape(tensor.shape))
    try:
        values = torch.from_numpy(dequantize(stored.reshape(shape), kind))
    except NotImplementedError as error:
        raise ValueError(f"the tensor {name} is stored as {kind.name}, which gguf cannot turn into numbers") from error
    return values.bfloat16() if kind == GGMLQuantizationType.BF16 else values


def _byte_shape(name: str, tensor: StoredTensor) -> tuple[int, ...]:
    """Return the shape of what is stored, the last dimension in bytes. Raise ValueError where none can be."""
    from gguf import GGMLQuantizationType, quant_shape_to_byte_shape  # an optional extra

    if tensor.kind not in [*GGMLQuantizationType]:
        raise ValueError(f"the tensor {name} is stored in the format {tensor.kind}, which gguf does not know")
    return quant_shape_to_byte_shape(tensor.shape, GGMLQuantizationType(tensor.kind))
