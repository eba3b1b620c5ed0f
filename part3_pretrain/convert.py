"""Convert checkpoints to Hugging Face folders and GGUF files and back: python -m part3_pretrain.convert --help."""

from __future__ import annotations

import os
from pathlib import Path

from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status
from part3_pretrain.runtime.files import check_kept, check_not_folder

DIRECTIONS = {
    "to-hf": "a checkpoint becomes a Hugging Face folder",
    "from-hf": "a folder becomes a checkpoint",
    "to-gguf": "a checkpoint or a folder becomes a GGUF file, with matrices in float16",
    "from-gguf": "a GGUF file becomes a folder, in float32 where it is quantised",
}


def main() -> None:
    parser = OneLineParser(
        prog="python -m part3_pretrain.convert",
        description="Turns a checkpoint into a Hugging Face folder or a GGUF file, or one of these into the other or "
        "back. Weights keep their bits, but for to-gguf.",
        epilog="example: python -m part3_pretrain.convert to-hf checkpoints/sft_model.pt outputs/my-model",
    )
    directions = "; ".join(f"{name}: {meaning}" for name, meaning in DIRECTIONS.items())
    parser.add_argument("direction", choices=[*DIRECTIONS], help=directions)
    parser.add_argument("source", type=Path, help="checkpoint; folder with config.json and *.safetensors; or GGUF file")
    parser.add_argument("target", type=Path, help="folder or file to make, such as checkpoints/mine.pt")
    given = parser.parse_args()

    from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint  # imports torch, which takes seconds
    from part3_pretrain.gguf_files.write import write_gguf
    from part3_pretrain.huggingface.write import write_folder

    if given.direction == "from-hf" and not os.path.isdir(given.source):
        raise UserError(f"there is no folder {given.source}", "name one with config.json and *.safetensors")
    if given.direction in ("from-hf", "to-gguf"):
        check_not_folder(given.target)
        check_kept([given.source], given.target)
    checkpoint = load_checkpoint(given.source, dtype=None)
    if given.direction in ("to-hf", "from-gguf"):
        write_folder(given.target, checkpoint)
        print("written:", *sorted(given.target.iterdir()))
        return
    write = write_gguf if given.direction == "to-gguf" else save_checkpoint
    write(given.target, checkpoint)
    print(f"written: {given.target}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
