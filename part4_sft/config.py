"""The settings of a run: one dataclass, whose fields are the options of `python -m part4_sft.sft`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

DEFAULT_CHECKPOINT = Path("checkpoints/pretrained.pt")


def option(default: Any, help: str, **keywords: Any) -> Any:
    """A field of `SFTConfig` and what `--help` says about it; `keywords` go to `add_argument`."""
    return field(default=default, metadata={"help": help, **keywords})


@dataclass(frozen=True)
class SFTConfig:
    model: Path = option(DEFAULT_CHECKPOINT, "checkpoint to start from; the default one is pretrained first if missing")
    data: Path | None = option(None, "JSON array of training pairs; by default 5,000 retail pairs are made")
    validation_data: Path | None = option(None, "JSON array of pairs for the numbers after each epoch")
    test_data: Path | None = option(None, "JSON array of pairs for the final before/after comparison")
    out_dir: Path = option(Path("outputs"), "folder for data, loss curve, evaluation and report")
    checkpoint_dir: Path = option(Path("checkpoints"), "folder for sft_model.pt")
    epochs: int = option(5, "times that every training pair is seen")
    learning_rate: float = option(5e-5, "Adam's constant learning rate")
    batch_size: int = option(8, "pairs in one optimizer step")
    gradient_accumulation_steps: int = option(1, "micro-batches that one step is split into, to save memory")
    max_length: int = option(512, "tokens of context and response; a longer context loses its beginning")
    seed: int = option(0, "seed of data, order and sampling")
    device: str = option("auto", "where to compute: cpu, cuda, or auto, which takes cuda where it is")
    dtype: str = option("float32", "number format of the arithmetic", choices=["float32", "bfloat16"])
    compile: bool = option(False, "compile the model with torch.compile before training", action="store_true")
    temperature: float = option(0.7, "randomness of replies; 0 takes the likeliest token")
    top_k: int = option(0, "draw from the k likeliest tokens only; 0: from all")
    top_p: float = option(1.0, "draw from the likeliest tokens that together have this probability")
    max_new_tokens: int = option(128, "longest reply, in tokens")
    train_on: str = option("high", "which pairs give gradients: those with high_quality 1, or all", choices=["high", "all"])


def parse_arguments(arguments: list[str] | None = None) -> SFTConfig:
    """Reads the command line. Exits with status 2 and one line where an option is unknown or out of range."""
    parser = OneLineParser(
        prog="python -m part4_sft.sft",
        description="Fine-tunes the pretrained model on high-quality (context, response) pairs and compares both models on "
        "contexts that neither has seen. Writes checkpoints/sft_model.pt and, in outputs/, the data, the loss curve, "
        "evaluation.json, replies.json and a report.",
        epilog="example: python -m part4_sft.sft --epochs 3 --out-dir outputs/three-epochs --checkpoint-dir checkpoints/three-epochs",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for setting in fields(SFTConfig):
        name = "--" + setting.name.replace("_", "-")
        keywords = dict(setting.metadata)
        if "action" not in keywords:
            keywords["type"] = Path if setting.name.endswith(("dir", "data", "model")) else type(setting.default)
        parser.add_argument(name, default=setting.default, **keywords)
    config = SFTConfig(**vars(parser.parse_args(arguments)))
    for name, is_good, wanted in [
        ("epochs", config.epochs >= 0, "0 or more"),
        ("learning_rate", 0 < config.learning_rate < float("inf"), "above 0"),
        ("batch_size", config.batch_size >= 1, "1 or more"),
        ("gradient_accumulation_steps", config.gradient_accumulation_steps >= 1, "1 or more"),
        ("max_length", config.max_length >= 2, "2 or more"),
        ("seed", config.seed >= 0, "0 or more"),
        ("temperature", 0 <= config.temperature < float("inf"), "0 or more"),
        ("top_k", config.top_k >= 0, "0 or more"),
        ("top_p", 0 < config.top_p <= 1, "above 0 and at most 1"),
        ("max_new_tokens", config.max_new_tokens >= 1, "1 or more"),
    ]:
        if not is_good:
            parser.error(f"--{name.replace('_', '-')} must be {wanted}, not {getattr(config, name)}")
    return config


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are the project's single line."""

    def error(self, message: str) -> Any:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")
