"""A checkpoint is one self-contained file: the model's shape and weights, its tokenizer, and how it was made."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from part3_pretrain.gguf_files.header import is_gguf
from part3_pretrain.gguf_files.read import read_gguf
from part3_pretrain.huggingface.read import SETTINGS_FILES, read_folder
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import atomic_write, cannot_read
from part3_pretrain.runtime.safe_load import safe_load
from part3_pretrain.tokenizer import check_tokenizer, load_tokenizer
from part3_pretrain.weights import model_from_tensors

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer."""

    model: Transformer
    tokenizer: Tokenizer
    made_by: dict[str, Any]  # how the weights came about, in plain values, such as the settings of the run
    hugging_face: dict[str, Any] = field(default_factory=dict)  # settings files of the folder it came from, by name


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint to one file, whole or not at all. Raise UserError where it cannot be written."""
    contents = {
        "format": FORMAT,
        "model_config": asdict(checkpoint.model.config),
        "weights": dict(checkpoint.model.named_parameters()),
        "tokenizer": checkpoint.tokenizer.to_str(),
        "made_by": checkpoint.made_by,
        "hugging_face": checkpoint.hugging_face,
    }
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(contents, file)  # given a path instead, torch writes the name of the temporary file into the file


def load_checkpoint(path: Path, dtype: torch.dtype | None = torch.float32) -> Checkpoint:
    """Read a checkpoint, a Hugging Face folder or a GGUF file; no code in it is run, and weights are in memory once.

    `dtype` is the number format of the weights; None keeps that of the file. Raise UserError where the file is
    missing, damaged, not a checkpoint, or its parts do not fit together.
    """
    if os.path.isdir(path):  # unlike Path.is_dir, it never raises: why a path cannot be read is told below
        model, tokenizer, settings = read_folder(path, dtype)
        return Checkpoint(model, tokenizer, {"from": str(path)}, settings)
    if is_gguf(path):
        model, tokenizer, settings = read_gguf(path, dtype)
        return Checkpoint(model, tokenizer, {"from": str(path)}, settings)
    try:
        contents = safe_load(path, mmap=True)
        file_format = contents["format"]
    except FileNotFoundError as error:
        cure = "name another, or a model's folder; python -m part3_pretrain.pretrain makes checkpoints/pretrained.pt"
        raise UserError(f"there is no file {path}", cure) from error
    except OSError as error:
        raise cannot_read(path, error) from error
    except Exception as error:  # torch and zipfile raise many kinds
        cause = f"{path} is damaged or not a checkpoint ({first_line(error)})"
        raise UserError(cause, "make it anew or name another") from error
    if type(file_format) is not int or file_format != FORMAT:  # a hostile file may hold anything there
        told = file_format if type(file_format) is int else type(file_format).__name__
        cause = f"{path} has format {told}, this version reads {FORMAT}"
        raise UserError(cause, "make it anew, or use the version that it was made with")
    try:
        weights = contents["weights"]
        if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size:
            raise ValueError("its tensors claim to hold more numbers than the file does")
        model = model_from_tensors(ModelConfig(**contents["model_config"]), weights.items(), dtype)
        tokenizer = load_tokenizer(contents["tokenizer"])
        check_tokenizer(tokenizer, model.config.vocab_size, model.config.eos_ids[0])
        check_settings_files(contents["hugging_face"])
        check_made_by(made_by := dict(contents["made_by"]))
        return Checkpoint(model, tokenizer, made_by, contents["hugging_face"])
    except KeyError as error:
        raise UserError(f"{path} holds no {error}", "make it anew or name another") from error
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{path} cannot be used: {first_line(error)}", "make it anew or name another") from error


def check_made_by(made_by: dict[str, Any]) -> None:
    """Raise ValueError where what it tells of a fine-tuning, which `chat` and the model card use, cannot be."""
    kinds = {"from": str, "settings": dict, "dataset": dict, "results": dict, "hand_over": float}
    wrong = [name for name, kind in kinds.items() if not isinstance(made_by.get(name, kind()), kind)]
    if not wrong:
        settings = {"prompt_template": "{context}", "max_length": 2} | made_by.get("settings", {})
        template, length = settings["prompt_template"], settings["max_length"]
        by_chat_template = template is None and settings.get("chat_template") == "model"
        if not by_chat_template and (not isinstance(template, str) or template.count("{context}") != 1):
            wrong.append("prompt_template")
        if not isinstance(length, int) or length < 2:
            wrong.append("max_length")
    if wrong:
        raise ValueError(f"what it tells of its making cannot be: {', '.join(wrong)}")


def check_settings_files(files: dict[str, Any]) -> None:
    """Raise ValueError where a file is none that a model's folder has: `write_folder` would write it anywhere."""
    for name, content in files.items():
        kind = dict if str(name).endswith(".json") else str
        if name not in ("config.json", *SETTINGS_FILES) or not isinstance(content, kind):
            raise ValueError(f"{name!r} is no settings file of a model")
