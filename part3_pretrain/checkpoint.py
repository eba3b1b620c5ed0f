"""A checkpoint is one self-contained file: the model's shape and weights, its tokenizer, and how it was made."""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from part3_pretrain.huggingface.read import read_folder
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import atomic_write, cannot_read
from part3_pretrain.tokenizer import check_tokenizer, load_tokenizer
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
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(contents, file)  # given a path instead, torch writes the name of the temporary file into the file


def load_checkpoint(path: Path, dtype: torch.dtype | None = torch.float32) -> Checkpoint:
    """Reads a checkpoint or a Hugging Face folder; no code in it is run, and weights are in memory once.

    Args:
        dtype: number format of the weights; None keeps that of the file.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or its parts do not fit together.
    """
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, or a folder that may not be entered
        raise cannot_read(path, error) from error
    if is_folder:
        model, tokenizer, settings = read_folder(path, dtype)
        return Checkpoint(model, tokenizer, {"from": str(path)}, settings)
    if not is_file:
        advice = "name another, or a model's folder; python -m part3_pretrain.pretrain makes checkpoints/pretrained.pt"
        raise UserError(f"there is no file {path}: {advice}")
    try:
        check_sums(path)
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = repr(contents["format"])
    except OSError as error:
        raise cannot_read(path, error) from error
    except Exception as error:  # torch and zipfile raise kinds of their own
        reason = first_line(error)
        if type(error).__name__ == "UnpicklingError":
            reason = "it holds more than tensors and plain values, and what might be code is not run"
        raise UserError(f"{path} is damaged or not a checkpoint ({reason}); make it anew or name another") from error
    if found != repr(FORMAT):
        advice = "make it anew, or use the version that it was made with"
        raise UserError(f"{path} has format {found:.20}, this version reads {FORMAT}; {advice}")
    try:
        weights = contents["weights"]
        if sum(tensor.nbytes for tensor in weights.values()) > path.stat().st_size:
            raise ValueError("its tensors claim to hold more numbers than the file does")
        model = filled(ModelConfig(**contents["model_config"]), weights.items(), dtype)
        tokenizer = load_tokenizer(contents["tokenizer"])
        check_tokenizer(tokenizer, model.config.vocab_size, model.config.eos_ids[0])
        return Checkpoint(model, tokenizer, dict(contents["made_by"]), dict(contents["hugging_face"]))
    except KeyError as error:
        raise UserError(f"{path} holds no {error}; make it anew or name another") from error
    except Exception as error:  # the tokenizers library raises Exception itself
        raise UserError(f"{path} cannot be used: {first_line(error)}; make it anew or name another") from error


def check_sums(path: Path) -> None:
    """Compares every tensor and all else with the checksums that `torch.save` stores, for `torch.load` does not."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("it is compressed")  # torch.save never does that; a bomb would grow in memory
        if damaged := archive.testzip():
            raise ValueError(f"the checksum of {damaged} does not fit")
