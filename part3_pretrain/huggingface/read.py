"""Read a Hugging Face folder: `config.json`, `*.safetensors` and `tokenizer.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain.huggingface.config import Settings, from_hugging_face
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import cannot_read
from part3_pretrain.tokenizer import check_tokenizer, load_tokenizer
from part3_pretrain.weights import model_from_tensors

SETTINGS_FILES = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
MAX_TEXT_BYTES = 64 * 2**20  # enough for a vocabulary of a million entries


def read_folder(folder: Path, dtype: torch.dtype | None) -> tuple[Transformer, Tokenizer, Settings]:
    """Read a model, one tensor at a time, its tokenizer, and the settings files, which `write_folder` writes back.

    `dtype` is the number format of the weights; None keeps that of the file. Raise UserError where a file is missing
    or damaged, or asks for something that cannot be computed here.
    """
    names = ["config.json", *(name for name in SETTINGS_FILES if os.path.exists(folder / name))]
    settings = {name: _read_settings(folder / name) for name in names}
    path = folder / "tokenizer.json"
    if not os.path.exists(path):
        raise UserError(f"{folder} holds no tokenizer.json", "save transformers' fast tokenizer there first")
    text = _read_text(path)
    try:
        tokenizer = load_tokenizer(text)
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{path} is damaged or not a tokenizer ({first_line(error)})", "copy it anew") from error
    try:
        config = from_hugging_face(settings, tokenizer)
        check_tokenizer(tokenizer, config.vocab_size, config.eos_ids[0])
        return model_from_tensors(config, _read_tensors(folder), dtype), tokenizer, settings
    except ValueError as error:
        raise UserError(f"{folder} cannot be used: {first_line(error)}") from error
    except (AttributeError, KeyError, TypeError, OverflowError, RuntimeError) as error:  # a text instead of a table ...
        cause = f"{folder} cannot be used: a value in its JSON files is of the wrong kind ({first_line(error)})"
        raise UserError(cause) from error


def _read_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name, as `Transformer` has it, and value of every tensor, each read when its turn comes."""
    index, names = folder / "model.safetensors.index.json", ["model.safetensors"]
    if os.path.exists(index):
        names = sorted(set(_read_settings(index).get("weight_map", {}).values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"{index.name} must name the files of this folder that hold the tensors")
    for name in names:
        path = folder / name
        if not os.path.isfile(path):  # unlike Path.is_file, it bears any name
            raise ValueError(f"{name} is missing; weights in other formats have to be saved as safetensors first")
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118, it is no dictionary
                    if not key.endswith(".rotary_emb.inv_freq"):  # old files hold what is computed from the config
                        yield key.removeprefix("model."), file.get_tensor(key)
        except OSError as error:
            raise cannot_read(path, error) from error
        except SafetensorError as error:
            raise ValueError(f"{name} is damaged or not a safetensors file ({first_line(error)})") from error


def _read_settings(path: Path) -> Any:
    """Return the object in a JSON file, or the text of another. Raise UserError where it is damaged."""
    text = _read_text(path)
    if path.suffix != ".json":
        return text
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)})", "copy it anew") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object", "copy it anew")
    return content


def _read_text(path: Path) -> str:
    """Return what a text file holds. Raise UserError, before it is read, where that cannot be genuine."""
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):  # a pipe, say, would be waited for
            raise UserError(f"{path} is not a file", "copy it anew")
        if status.st_size > MAX_TEXT_BYTES:
            raise UserError(f"{path} is longer than {MAX_TEXT_BYTES >> 20} MiB, too long to be genuine", "copy it anew")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "is it the folder of a Hugging Face model?") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "copy it anew") from error
