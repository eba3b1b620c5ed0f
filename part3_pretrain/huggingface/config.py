"""Translate between `ModelConfig` and `config.json` with its companions; what cannot be computed here is refused."""

from __future__ import annotations

import json
import math
from typing import Any

from tokenizers import Tokenizer

from part3_pretrain.model import FAMILIES, ModelConfig

Settings = dict[str, Any]  # settings files of a folder by name: JSON objects, and a text for a file that is not JSON

SIZE_KEYS = {  # fields of `ModelConfig` and their keys in config.json
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
SUPPORTED_VALUES: dict[str, tuple[Any, ...]] = {  # of what changes the computation; the first is the default
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "attention_dropout": (0, None),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "partial_rotary_factor": (1, None),
    "num_local_experts": (None,),
    "num_experts": (None,),
    "no_rope_layers": (None, []),
}
LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def from_hugging_face(settings: Settings, tokenizer: Tokenizer) -> ModelConfig:
    """Return the config that the settings files describe. Raise ValueError naming what cannot be computed here."""
    config = settings["config.json"]
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"its model_type is {json.dumps(family)}; those that can be used are {', '.join(FAMILIES)}")
    for key, supported in SUPPORTED_VALUES.items():
        if config.get(key, supported[0]) not in supported:
            raise ValueError(f"config.json asks for {key} = {json.dumps(config[key])[:60]}, which is not supported")
    sizes: dict[str, Any] = {field: _size(config, key) for field, key in SIZE_KEYS.items()}
    window = config.get("sliding_window", 4096 if family == "mistral" else None)  # the defaults of transformers
    in_use = window is not None and (family == "mistral" or config.get("use_sliding_window"))
    if in_use and window < sizes["max_positions"]:  # one as long as any text is none
        raise ValueError(f"it attends to a sliding window (sliding_window = {window}), which is not supported")
    other_layers = set(config.get("layer_types") or []) - {"full_attention"}
    if other_layers:
        raise ValueError(f"config.json asks for layer_types = {min(other_layers)}, which is not supported")
    sizes["num_kv_heads"] = _size(config, "num_key_value_heads", default=sizes["num_heads"])
    usual_head_dim = 128 if family == "qwen3" else sizes["hidden_size"] // sizes["num_heads"]
    sizes["head_dim"] = _size(config, "head_dim", default=usual_head_dim)
    eos_ids = _eos_ids(settings, tokenizer)
    pad_id = config.get("pad_token_id")
    if pad_id not in range(sizes["vocab_size"]) or pad_id in eos_ids:  # where <PAD> is <EOS>, it must be drawn
        pad_id = None
    norm_eps = _positive_number(config, "rms_norm_eps", default=1e-6)
    tied = bool(config.get("tie_word_embeddings", False))
    return ModelConfig(
        family=family, **sizes, norm_eps=norm_eps, tie_embeddings=tied, eos_ids=eos_ids, pad_id=pad_id, **_rope(config)
    )


def to_hugging_face(config: ModelConfig, tokenizer: Tokenizer) -> Settings:
    """Return the settings files of a model that was pretrained here."""
    eos_ids = config.eos_ids[0] if len(config.eos_ids) == 1 else list(config.eos_ids)
    control_ids = {"bos_token_id": None, "eos_token_id": eos_ids, "pad_token_id": config.pad_id}
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": config.family,
            **{key: getattr(config, field) for field, key in SIZE_KEYS.items()},
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "hidden_act": "silu",
            "rope_theta": config.rope_theta,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "attention_bias": False,
            "mlp_bias": False,
            **control_ids,
        },
        "generation_config.json": control_ids,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": tokenizer.id_to_token(config.eos_ids[0]),
            "pad_token": None if config.pad_id is None else tokenizer.id_to_token(config.pad_id),
            "model_max_length": config.max_positions,
            "clean_up_tokenization_spaces": False,
        },
    }


def _size(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return a whole number of `config.json`; the default where there is none."""
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json must give {key} as a whole number above 0, not {json.dumps(value)}")
    return value


def _positive_number(table: dict[str, Any], key: str, default: float | None = None) -> float:
    value = table.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"config.json must give {key} as a number above 0, not {json.dumps(value)[:60]}")
    return float(value)


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Return base and scaling of the rotary positions, from where any version of transformers writes them."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    unknown = scaling.keys() - {"rope_type", "type", "rope_theta", *LLAMA3_SCALING}
    if unknown:
        raise ValueError(f"config.json asks for {min(unknown)} in its rope scaling, which is not supported")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json asks for rope scaling of type {json.dumps(kind)}; only llama3 is supported")
    base = {"rope_theta": 10_000.0}
    for table in (config, parameters, scaling):  # the last that gives it counts
        if table.get("rope_theta") is not None:
            base = table
    return {
        "rope_theta": _positive_number(base, "rope_theta"),
        "rope_scaling": {key: _positive_number(scaling, key) for key in LLAMA3_SCALING} if kind == "llama3" else None,
    }


def _eos_ids(settings: Settings, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Return the ids that end a reply: first the tokenizer's own <EOS>, then those of the model's settings."""
    token = settings.get("tokenizer_config.json", {}).get("eos_token")
    if isinstance(token, dict):
        token = token["content"]
    ids = [] if token is None else [tokenizer.token_to_id(token)]
    for name in ("generation_config.json", "config.json"):
        ids += as_list(settings.get(name, {}).get("eos_token_id"))
    known = tuple(dict.fromkeys(entry for entry in ids if isinstance(entry, int)))
    if not known:
        raise ValueError("no file names its end-of-text token; set eos_token_id in config.json")
    return known


def as_list(ids: Any) -> list[Any]:
    """Return the ids of `eos_token_id`, which is one number or a list of several."""
    return ids if isinstance(ids, list) else [ids]
