"""Supervised fine-tuning from beginning to end: python -m part4_sft.sft

Makes the data or reads the user's, takes the pretrained checkpoint (and pretrains it first where it is missing) or a
Hugging Face model, fine-tunes on the high-quality pairs, lets both models answer contexts that they have never seen,
and writes what came out.
"""

from __future__ import annotations

from part3_pretrain.runtime.cli import exit_status
from part3_pretrain.runtime.files import locked
from part4_sft.config import needs_pretraining, parse_arguments


def main() -> None:
    config = parse_arguments()
    # Only now: torch takes seconds to import, and neither --help nor a mistyped option should wait for it.
    from part3_pretrain.runtime.distributed import process_group
    from part4_sft.run import run

    folders = [config.out_dir, config.checkpoint_dir]
    if needs_pretraining(config):
        folders.append(config.model.parent)
    with locked(*folders), process_group(config.shard):
        run(config)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
