"""What pretraining was good for: the same fine-tuning of a model with random weights."""

from __future__ import annotations

import torch

from benchmarks.our_side import load_model
from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig
from part4_sft.controls import fine_tune, score_replies
from part4_sft.dataset import HIGH_QUALITY_PAIRS, make_datasets
from part4_sft.report import score_table


def main() -> str:
    """Fine-tune both on the 500 pairs by the settings of a default run, and score a reply to each test context."""
    config = SFTConfig()
    pretrained, encoder = load_model()
    torch.manual_seed(config.seed)
    starts = {"random weights": Transformer(pretrained.config), "pretrained weights": pretrained}
    data = make_datasets(config.seed)
    training, test = data["sft_dataset"][:HIGH_QUALITY_PAIRS], data["sft_test"]
    return score_table(
        {
            name: score_replies(fine_tune(model, encoder, training, config), encoder, test, config)
            for name, model in starts.items()
        }
    )
