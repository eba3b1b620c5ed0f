"""Convert checkpoints to Hugging Face folders and back: python -m part3_pretrain.convert --help."""

from __future__ import annotations

import os
from pathlib import Path

from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status
from part3_pretrain.runtime.files import check_not_folder


def main() -> None:
    parser = OneLineParser(
        prog="python -m part3_pretrain.convert",
        description="Turns a checkpoint into a Hugging Face folder, or one into a checkpoint. Weights keep their bits.",
        epilog="example: python -m part3_pretrain.convert to-hf checkpoints/sft_model.pt outputs/my-model",
    )
    parser.add_argument("direction", choices=["to-hf", "from-hf"], help="checkpoint to Hugging Face folder, or back")
    parser.add_argument("source", type=Path, help="checkpoint; or folder with config.json and *.safetensors")
    parser.add_argument("target", type=Path, help="folder to make; or checkpoint, such as checkpoints/mine.pt")
    given = parser.parse_args()

    from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint  # imports torch, which takes seconds
    from part3_pretrain.huggingface.write import write_folder

    if given.direction == "to-hf":
        write_folder(given.target, load_checkpoint(given.source, dtype=None))
        print("written:", *sorted(given.target.iterdir()))
        return
    if not os.path.isdir(given.source):
        raise UserError(f"there is no folder {given.source}", "name one with config.json and *.safetensors")
    check_not_folder(given.target)
    save_checkpoint(given.target, load_checkpoint(given.source, dtype=None))
    print(f"written: {given.target}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
