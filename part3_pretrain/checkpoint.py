"""A checkpoint is one self-contained file: the model's shape and weights, its tokenizer, and how it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from part3_pretrain.command_line import UserError, first_line
from part3_pretrain.files import written_whole
from part3_pretrain.huggingface import read_folder
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.tokenizer import load_tokenizer
from part3_pretrain.weights import filled

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A model with its tokenizer.

    `made_by` tells how the weights came about, in plain values, such as the settings of the run. `hugging_face` holds
    the files of settings of the Hugging Face folder that it came from, by name, so that it can go back there.
    """

    model: Transformer
    tokenizer: Tokenizer
    made_by: dict[str, Any]
    hugging_face: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Writes the file whole or not at all."""
    contents = {
        "format": FORMAT,
        "model_config": asdict(checkpoint.model.config),
        "weights": dict(checkpoint.model.named_parameters()),
        "tokenizer": checkpoint.tokenizer.to_str(),
        "made_by": checkpoint.made_by,
        "hugging_face": checkpoint.hugging_face,
    }
    with written_whole(path) as temporary:
        torch.save(contents, temporary)


def load_checkpoint(path: Path, dtype: torch.dtype | None = torch.float32) -> Checkpoint:
    """Reads a checkpoint or a Hugging Face folder; no code in it is run, and weights are in memory once.

    Args:
        dtype: number format of the weights; None keeps that of the file.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or its parts do not fit together.
    """
    if path.is_dir():
        model, tokenizer, settings = read_folder(path, dtype)
        return Checkpoint(model, tokenizer, {"from": str(path)}, settings)
    if not path.is_file():
        advice = "name another, or a model's folder; python -m part3_pretrain.pretrain makes checkpoints/pretrained.pt"
        raise UserError(f"there is no file {path}: {advice}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if contents["format"] != FORMAT:
            raise ValueError(f"format {contents['format']}, this version reads {FORMAT}")
        model = filled(ModelConfig(**contents["model_config"]), contents["weights"].items(), dtype)
        tokenizer = load_tokenizer(contents["tokenizer"])
        made_by, hugging_face = contents["made_by"], contents["hugging_face"]
    except Exception as error:  # torch, pickle, zipfile and tokenizers each raise kinds of their own
        reason = first_line(error)
        raise UserError(f"{path} is damaged or not a checkpoint ({reason}); make it anew or name another") from error
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise UserError(f"{path}: the tokenizer has more entries than the model; make the checkpoint anew")
    return Checkpoint(model, tokenizer, made_by, hugging_face)
