"""Supervised fine-tuning from beginning to end: python -m part4_sft.sft

Makes the data or reads the user's, takes the pretrained checkpoint (and pretrains it first where it is missing) or a
Hugging Face model, fine-tunes on the high-quality pairs, lets both models answer contexts that they have never seen,
and writes what came out.
"""

from __future__ import annotations

from part3_pretrain.runtime.cli import exit_status
from part4_sft.config import parse_arguments, written_folders


def main() -> None:
    config = parse_arguments()
    # Only now: torch takes seconds to import, and neither --help nor a mistyped option should wait for it.
    from part3_pretrain.runtime.distributed import process_group
    from part3_pretrain.runtime.locks import locked
    from part4_sft.run import run

    with locked(*written_folders(config)), process_group(config.shard):
        run(config)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
