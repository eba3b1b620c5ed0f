"""Checkpoints to Hugging Face folders and back: python -m part3_pretrain.convert to-hf checkpoints/sft_model.pt DIR"""

from __future__ import annotations

import argparse
from pathlib import Path

from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status
from part3_pretrain.runtime.files import check_writable


def main() -> None:
    parser = OneLineParser(
        prog="python -m part3_pretrain.convert",
        description="Turns a checkpoint into a folder that transformers, vLLM and llama.cpp's converter read, and such "
        "a folder into a checkpoint. Weights keep their bits.",
        epilog="example: python -m part3_pretrain.convert to-hf checkpoints/sft_model.pt outputs/my-model",
    )
    directions = parser.add_subparsers(dest="direction", required=True, metavar="{to-hf,from-hf}")
    to_hf = directions.add_parser("to-hf", help="checkpoint to Hugging Face folder")
    to_hf.add_argument("checkpoint", type=Path, help="such as checkpoints/sft_model.pt")
    to_hf.add_argument("folder", type=Path, help="folder to write config.json, model.safetensors and so on into")
    from_hf = directions.add_parser("from-hf", help="Hugging Face folder to checkpoint")
    from_hf.add_argument("folder", type=Path, help="folder with config.json, *.safetensors and tokenizer.json")
    from_hf.add_argument("checkpoint", type=Path, help="file to write, such as checkpoints/mine.pt")
    given = parser.parse_args()
    if given.direction == "to-hf":
        to_hugging_face(given)
    else:
        from_hugging_face(given)


def to_hugging_face(given: argparse.Namespace) -> None:
    """Raises UserError where the checkpoint cannot be read or the folder cannot be written to."""
    from part3_pretrain.checkpoint import load_checkpoint  # only now, since torch takes seconds to import
    from part3_pretrain.huggingface.model_card import model_card
    from part3_pretrain.huggingface.write import write_folder

    checkpoint = load_checkpoint(given.checkpoint, dtype=None)
    card = model_card(given.folder.resolve().name, checkpoint)
    write_folder(given.folder, checkpoint.model, checkpoint.tokenizer, checkpoint.hugging_face, card)
    print("written:", *sorted(given.folder.iterdir()))


def from_hugging_face(given: argparse.Namespace) -> None:
    """Raises UserError where the folder holds no model that can be used, or the file cannot be written."""
    from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint

    if not given.folder.is_dir():
        raise UserError(f"there is no folder {given.folder}; name one with config.json and *.safetensors")
    if given.checkpoint.is_dir():
        raise UserError(f"{given.checkpoint} is a folder; name a file in it")
    checkpoint = load_checkpoint(given.folder, dtype=None)
    check_writable(given.checkpoint.parent)
    save_checkpoint(given.checkpoint, checkpoint)
    print(f"written: {given.checkpoint}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
