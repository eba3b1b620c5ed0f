"""Convert checkpoints to Hugging Face folders and back: python -m part3_pretrain.convert --help."""

from __future__ import annotations

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
    arguments = parser.parse_args()
    source, target = arguments.source, arguments.target

    from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint  # imports torch, which takes seconds
    from part3_pretrain.huggingface.write import write_folder

    if arguments.direction == "to-hf":
        write_folder(target, load_checkpoint(source, dtype=None))
        print("written:", *sorted(target.iterdir()))
        return
    if not source.is_dir():
        raise UserError(f"there is no folder {source}", "name one with config.json and *.safetensors")
    check_not_folder(target)
    save_checkpoint(target, load_checkpoint(source, dtype=None))
    print(f"written: {target}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
