"""The settings of pretraining: one dataclass, whose fields are the options of `python -m part3_pretrain.pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from part3_pretrain.runtime.cli import ABOVE_ZERO, PATH, SEED, at_least, option

NEW_MODEL_RATE, GO_ON_RATE = 3.5e-3, 3e-4  # of Muon, and of AdamW
NEW_MODEL_TOKENS, GO_ON_TOKENS = 2048, 1024
LONGEST_ROW = 256  # tokens; a longer document is cut into several rows
VOCAB_SIZE: dict[str, Any] = {"allowed": "300 to 2^24", "is_valid": lambda size: 300 <= size <= 2**24}


@dataclass(frozen=True)
class PretrainConfig:
    """What can be chosen; `--help` explains each."""

    corpus: list[Path] | None = option(
        None,
        "text files to read instead of retail documents; a file holds one document, or several with <|endoftext|> "
        "between them",
        nargs="+",
        **PATH,
    )
    checkpoint: Path = option(Path("checkpoints/pretrained.pt"), "file for the model", **PATH)
    out_dir: Path = option(Path("outputs"), "folder for the loss curve", **PATH)
    model: Path | None = option(
        None,
        "checkpoint, folder of a Hugging Face model or GGUF file to go on from, instead of a new small model",
        **PATH,
    )
    conversations: int = option(160_000, "retail documents to read", **at_least(1))
    epochs: int = option(1, "how often every document is read", **at_least(1))
    vocab_size: int = option(2048, "entries of the vocabulary of a new model", **VOCAB_SIZE)
    tokens_per_batch: int = option(
        None,
        f"tokens in one optimizer step, at most; by default {NEW_MODEL_TOKENS} for a new model, {GO_ON_TOKENS} with "
        "--model",
        type=int,
        **at_least(LONGEST_ROW),
    )
    learning_rate: float = option(
        None,
        f"highest learning rate; by default {NEW_MODEL_RATE} for a new model (Muon), {GO_ON_RATE} with --model (AdamW)",
        type=float,
        **ABOVE_ZERO,
    )
    warmup_steps: int = option(
        150, "steps of rising learning rate, at most a tenth of all; it then falls along a cosine", **at_least(1)
    )
    device: str = option("auto", "where to compute; auto takes cuda where it is", choices=["auto", "cpu", "cuda"])
    dtype: str = option(
        "auto",
        "number format of matrix products; auto takes bfloat16 on a processor that has instructions for it",
        choices=["auto", "float32", "bfloat16"],
    )
    shard: bool = option(False, "with torchrun: keep a part of weights, gradients and moments in each process")
    seed: int = option(0, "seed of corpus, weights and order", **SEED)
    save_every: int = option(200, "steps from one save of the state to the next", decides_training=False, **at_least(1))
    resume: bool = option(
        False, "go on with an interrupted training; on a CPU, to the same bits", decides_training=False
    )

    def __post_init__(self) -> None:
        defaults = (GO_ON_TOKENS, GO_ON_RATE) if self.model else (NEW_MODEL_TOKENS, NEW_MODEL_RATE)
        for name, value in zip(("tokens_per_batch", "learning_rate"), defaults):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
