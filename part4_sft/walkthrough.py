"""One pair followed from JSON to gradient to reply, as docs/walkthrough.md explains: python -m part4_sft.walkthrough"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from part3_pretrain.runtime.cli import PATH, exit_status, option, parse, same_as
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.dataset import HIGH_QUALITY_PAIRS


@dataclass(frozen=True)
class WalkthroughConfig:
    """What can be chosen; `--help` explains each."""

    checkpoint: Path = option(DEFAULT_CHECKPOINT, "the pretrained model; sft_model.pt beside it replies too", **PATH)
    pair: int = option(
        14, "which of the training pairs", f"1 to {HIGH_QUALITY_PAIRS}", lambda pair: 1 <= pair <= HIGH_QUALITY_PAIRS
    )
    seed: int = same_as(SFTConfig, "seed")


def main() -> None:
    config = parse(
        WalkthroughConfig,
        prog="python -m part4_sft.walkthrough",
        description="Follows a training pair through the functions that fine-tuning is made of: tokens, labels, loss, "
        "gradient, a step of Adam; and then a reply to its context. Writes no file.",
        example="python -m part4_sft.walkthrough --pair 9",
    )
    from part4_sft.terminal.one_pair import follow  # only now, for torch takes seconds to import

    follow(config.checkpoint, config.pair, config.seed)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
