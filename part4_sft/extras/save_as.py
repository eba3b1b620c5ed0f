"""The model given back as it came: a Hugging Face folder or a GGUF file, with peft's adapter where LoRA was used."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.gguf_files.header import is_gguf
from part3_pretrain.gguf_files.layout import check_installed
from part3_pretrain.gguf_files.write import describe, write_gguf
from part3_pretrain.huggingface.read import SETTINGS_FILES
from part3_pretrain.huggingface.write import MADE_HERE, write_folder
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import check_kept, check_not_folder, check_writable, same_file
from part4_sft.config import SFTConfig
from part4_sft.extras.lora import ADAPTER_FOLDER, save_adapter

FOLDER = "sft_model"  # in --checkpoint-dir, where no place is named
FILES = {"config.json", *SETTINGS_FILES, "tokenizer.json", "model.safetensors", "README.md", ADAPTER_FOLDER}


def place(config: SFTConfig) -> Path | None:
    """Return where the model goes besides its checkpoint: into a folder by default where it came in another layout."""
    if config.save_as or not (os.path.isdir(config.model) or is_gguf(config.model)):
        return config.save_as
    return config.checkpoint_dir / FOLDER


def check_place(config: SFTConfig) -> None:
    """Raise UserError where the model could not be written there, or something of the user's would be lost."""
    target = place(config)
    if target is None:
        return
    check_writable(target.absolute().parent)
    check_kept([config.model], target)
    if is_file(target):
        check_installed(f"--save-as {target}")
        check_not_folder(target)
    elif os.path.exists(target) and not made_here(target, config):
        raise UserError(f"{target} holds other files than a run wrote", "choose another place with --save-as")


def check_model(config: SFTConfig, checkpoint: Checkpoint) -> None:
    """Raise UserError where the model cannot become a GGUF file, though that is asked for."""
    target = place(config)
    if target is not None and is_file(target):
        describe(target, checkpoint)


def save_as(config: SFTConfig, checkpoint: Checkpoint, adapter: dict[str, Tensor]) -> list[Path]:
    """Write the model there, and into a folder peft's adapter, unless nothing was learnt by LoRA; return the path."""
    target = place(config)
    if target is None:
        return []
    check_place(config)  # hours may have passed
    if is_file(target):
        write_gguf(target, checkpoint)
        return [target]

    def add_adapter(folder: Path) -> None:
        save_adapter(folder / ADAPTER_FOLDER, adapter, config.lora_rank, config.model)

    write_folder(target, checkpoint, replace=True, add=add_adapter if adapter else None)
    return [target]


def is_file(target: Path) -> bool:
    return target.suffix == ".gguf"


def made_here(folder: Path, config: SFTConfig) -> bool:
    """Return whether a folder is empty, or holds what an earlier run wrote there and nothing else."""
    if not os.path.isdir(folder) or any(same_file(folder, other) for other in (config.out_dir, config.checkpoint_dir)):
        return False
    names = {path.name for path in folder.glob("*")}
    try:
        return not names or (names <= FILES and MADE_HERE in (folder / "README.md").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
