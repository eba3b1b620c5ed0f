"""A checkpoint is one self-contained file: the model's shape and weights, its tokenizer, and how it was made."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from part3_pretrain.command_line import UserError
from part3_pretrain.files import written_whole
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.tokenizer import load_tokenizer

FORMAT = 1


def save_checkpoint(path: Path, model: Transformer, tokenizer: Tokenizer, made_by: dict[str, Any]) -> None:
    """Writes the file whole or not at all.

    Args:
        made_by: how the weights came about, in plain values, such as the settings of the run.
    """
    contents = {
        "format": FORMAT,
        "model_config": asdict(model.config),
        "weights": model.state_dict(),
        "tokenizer": tokenizer.to_str(),
        "made_by": made_by,
    }
    with written_whole(path) as temporary:
        torch.save(contents, temporary)


def load_checkpoint(path: Path) -> tuple[Transformer, Tokenizer, dict[str, Any]]:
    """Reads the model, its tokenizer and how it was made; no code in the file is run.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint, or its parts do not fit together.
    """
    if not path.is_file():
        command = f"python -m part3_pretrain.pretrain --checkpoint {path}"
        raise UserError(f"there is no checkpoint {path}; make one with: {command}")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        if contents["format"] != FORMAT:
            raise ValueError(f"format {contents['format']}, this version reads {FORMAT}")
        model = Transformer(ModelConfig(**contents["model_config"]))
        model.load_state_dict(contents["weights"])
        tokenizer = load_tokenizer(contents["tokenizer"])
        made_by = contents["made_by"]
    except Exception as error:  # torch, pickle, zipfile and tokenizers each raise kinds of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path} is damaged or not a checkpoint ({reason}); make it anew or name another") from error
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise UserError(f"{path}: the tokenizer has more entries than the model; make the checkpoint anew")
    return model, tokenizer, made_by
