"""Convert checkpoints to Hugging Face folders and back.

python -m part3_pretrain.convert to-hf checkpoints/sft_model.pt outputs/my-model
"""

from __future__ import annotations

from pathlib import Path

from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status


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
    arguments = parser.parse_args()
    folder, file = arguments.folder, arguments.checkpoint

    from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint  # imports torch, which takes seconds
    from part3_pretrain.huggingface.write import write_folder

    if arguments.direction == "to-hf":
        write_folder(folder, load_checkpoint(file, dtype=None))
        print("written:", *sorted(folder.iterdir()))
    else:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}", "name one with config.json and *.safetensors")
        if file.is_dir():
            raise UserError(f"{file} is a folder", "name a file in it")
        save_checkpoint(file, load_checkpoint(folder, dtype=None))
        print(f"written: {file}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
