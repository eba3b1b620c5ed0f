"""Hugging Face folders: `config.json`, `*.safetensors` and `tokenizer.json` in and out, without transformers.

What this package's Transformer cannot compute as the folder's authors meant it is refused by name, never approximated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.model import FAMILIES, ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import cannot_read
from part3_pretrain.tokenizer import check_tokenizer, load_tokenizer
from part3_pretrain.weights import filled

CARRIED = (  # kept as they are from in to out
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
SIZES = {  # of config.json, by the names of `ModelConfig`
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
# Options of config.json that change what a model computes, and the values that are computed here.
ONLY: dict[str, tuple[Any, ...]] = {
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
LONGEST_TEXT = 64 * 2**20  # bytes; enough for a vocabulary of a million entries
LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_folder(folder: Path, dtype: torch.dtype | None) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """Reads a model of one of the `FAMILIES`, one tensor at a time.

    Args:
        dtype: number format of the weights; None keeps that of the file.

    Returns:
        The model, its tokenizer, and the folder's files of settings by their names, for `write_folder`.

    Raises:
        UserError: a file is missing or damaged, or asks for something that cannot be computed here.
    """
    settings = {name: _read(folder / name) for name in CARRIED if (folder / name).exists() or name == "config.json"}
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{folder} holds no tokenizer.json; save the tokenizer with transformers' fast tokenizer first")
    text = _text(path)
    try:
        tokenizer = load_tokenizer(text)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{path} is damaged or not a tokenizer ({first_line(error)}); copy it anew") from error
    try:
        config = model_config(settings, tokenizer)
        check_tokenizer(tokenizer, config.vocab_size, config.eos_ids[0])
        model = filled(config, _tensors(folder), dtype)
    except ValueError as error:
        raise UserError(f"{folder} cannot be used: {first_line(error)}") from error
    except (AttributeError, KeyError, TypeError, OverflowError, RuntimeError) as error:  # a text instead of a table ...
        reason = first_line(error)
        raise UserError(
            f"{folder} cannot be used: a value in its JSON files is of the wrong kind ({reason})"
        ) from error
    return model, tokenizer, settings


def model_config(settings: dict[str, Any], tokenizer: Tokenizer) -> ModelConfig:
    """Translates `config.json` and its companions. Raises ValueError naming what cannot be computed here."""
    config = settings["config.json"]
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"its model_type is {json.dumps(family)}; those that can be used are {', '.join(FAMILIES)}")
    for option, allowed in ONLY.items():
        if config.get(option, allowed[0]) not in allowed:
            raise ValueError(
                f"config.json asks for {option} = {json.dumps(config[option])[:60]}, which is not supported"
            )
    sizes: dict[str, Any] = {ours: _whole_number(config, theirs) for ours, theirs in SIZES.items()}
    _check_attention_is_full(config, family, sizes["max_positions"])
    num_heads = sizes["num_heads"]
    if config.get("num_key_value_heads") is None:
        config = {**config, "num_key_value_heads": num_heads}
    if config.get("head_dim") is None:
        config = {**config, "head_dim": 128 if family == "qwen3" else config["hidden_size"] // num_heads}
    eos_ids = _eos_ids(settings, tokenizer)
    pad_id = config.get("pad_token_id")
    can_be_forbidden = pad_id in range(sizes["vocab_size"]) and pad_id not in eos_ids  # <PAD> = <EOS>: never the end
    return ModelConfig(
        family=family,
        **sizes,
        num_kv_heads=_whole_number(config, "num_key_value_heads"),
        head_dim=_whole_number(config, "head_dim"),
        norm_eps=_positive(config, "rms_norm_eps", 1e-6),
        tie_embeddings=bool(config.get("tie_word_embeddings", False)),
        eos_ids=eos_ids,
        pad_id=pad_id if can_be_forbidden else None,
        **_rope(config),
    )


def _whole_number(config: dict[str, Any], key: str) -> int:
    if type(config.get(key)) is not int or config[key] < 1:
        raise ValueError(f"config.json must give {key} as a whole number above 0, not {json.dumps(config.get(key))}")
    return config[key]


def _positive(table: dict[str, Any], key: str, default: float | None = None) -> float:
    value = table.get(key, default)
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"config.json must give {key} as a number above 0, not {json.dumps(value)[:60]}")
    return float(value)


def _check_attention_is_full(config: dict[str, Any], family: str, max_positions: int) -> None:
    """Every token must look at all before it; a window that is longer than any text is no window."""
    window = config.get("sliding_window", 4096 if family == "mistral" else None)  # transformers' default for mistral
    in_use = family == "mistral" or config.get("use_sliding_window")
    if in_use and window is not None and window < max_positions:
        raise ValueError(f"it attends to a sliding window (sliding_window = {window}), which is not supported")
    if surplus := set(config.get("layer_types") or []) - {"full_attention"}:
        raise ValueError(f"config.json asks for layer_types = {min(surplus)}, which is not supported")


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of the rotary positions, from where older or newer versions of transformers write them."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or parameters
    if unknown := scaling.keys() - {"rope_type", "type", "rope_theta", *LLAMA3_SCALING}:
        raise ValueError(f"config.json asks for {min(unknown)} in its rope scaling, which is not supported")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise ValueError(f"config.json asks for rope scaling of type {json.dumps(kind)}; only llama3 is supported")
    thetas = [table["rope_theta"] for table in (scaling, parameters, config) if table.get("rope_theta") is not None]
    return {
        "rope_theta": _positive({"rope_theta": (thetas or [10_000.0])[0]}, "rope_theta"),
        "rope_scaling": {key: _positive(scaling, key) for key in LLAMA3_SCALING} if kind == "llama3" else None,
    }


def _eos_ids(settings: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """First the tokenizer's own <EOS>, then whatever else ends a reply."""
    token = settings.get("tokenizer_config.json", {}).get("eos_token")
    ids = [] if token is None else [tokenizer.token_to_id(token["content"] if isinstance(token, dict) else token)]
    for name in ("generation_config.json", "config.json"):
        given = settings.get(name, {}).get("eos_token_id")
        ids += given if isinstance(given, list) else [given]
    known = tuple(dict.fromkeys(entry for entry in ids if isinstance(entry, int)))
    if not known:
        raise ValueError("no file names its end-of-text token; set eos_token_id in config.json")
    return known


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and value of every tensor, read when its turn comes, by the names of `Transformer`."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted(set(_read(index).get("weight_map", {}).values()))
        if not files or any(Path(file).name != file for file in files):
            raise ValueError(f"{index.name} must name the files of this folder that hold the tensors")
    else:
        files = ["model.safetensors"]
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{file} is missing; weights in other formats have to be saved as safetensors first")
        try:
            with safe_open(folder / file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118, it is no dictionary
                    if not name.endswith(".rotary_emb.inv_freq"):  # old files hold what is computed from the config
                        yield name.removeprefix("model."), shard.get_tensor(name)
        except OSError as error:
            raise cannot_read(folder / file, error) from error
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged or not a safetensors file ({first_line(error)})") from error


def _read(path: Path) -> Any:
    """The object that a JSON file holds, or the text of another."""
    text = _text(path)
    if path.suffix != ".json":
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}); copy it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object; copy it anew")
    return content


def _text(path: Path) -> str:
    """What a text file holds. Raises UserError, before it is read, where it is too long to be what its name says."""
    try:
        if path.stat().st_size > LONGEST_TEXT:
            raise UserError(f"{path} is longer than {LONGEST_TEXT >> 20} MiB, too long to be genuine; copy it anew")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; is it the folder of a Hugging Face model?") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); copy it anew") from error
