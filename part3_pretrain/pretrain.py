"""Pretrains the base model: python -m part3_pretrain.pretrain

Writes `checkpoints/pretrained.pt` and `outputs/pretraining_loss_curve.png`. Takes about five minutes on two CPU cores.
"""

from __future__ import annotations

from part3_pretrain.config import PretrainConfig
from part3_pretrain.runtime.cli import exit_status, parse


def main() -> None:
    config = parse(
        PretrainConfig,
        prog="python -m part3_pretrain.pretrain",
        description="Pretrains a small Llama-style model on synthetic retail documents or on your own text files, or "
        "goes on with the pretraining of a model from elsewhere, which then learns what your texts say.",
        example="python -m part3_pretrain.pretrain --model SmolLM2-135M-Instruct.Q4_1.gguf --corpus pages.txt "
        "--checkpoint checkpoints/pages.pt",
    )
    from part3_pretrain.run import run  # takes seconds to import, which --help should not wait for
    from part3_pretrain.runtime import distributed
    from part3_pretrain.runtime.locks import locked

    with locked(config.checkpoint.parent, config.out_dir), distributed.process_group(config.shard):
        run(config)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
