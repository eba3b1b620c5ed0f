"""How fast pretraining learns: AdamW and Muon take turns on the same documents; loss on others against seconds.

python -m benchmarks.optimizers [--conversations N] draws outputs/optimizers.png. Seconds are those of the processor,
all threads together, which other programs on the machine hardly change.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import torch
from torch import nn
from tqdm import tqdm

from part3_pretrain import corpus
from part3_pretrain.bfloat16 import bfloat16_products
from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.config import LONGEST_ROW, NEW_MODEL_RATE, NEW_MODEL_TOKENS, PretrainConfig
from part3_pretrain.loss_curve import BLUE, GREEN, ORANGE, new_figure, save_figure
from part3_pretrain.model import Transformer
from part3_pretrain.run import (
    Batch,
    dtype_of_products,
    learning_rate_factor,
    make_adamw,
    make_batches,
    make_optimizer,
    new_model,
    next_token_loss,
    read_corpus,
    training_step,
)
from part3_pretrain.runtime.cli import OneLineParser, exit_status
from part3_pretrain.runtime.distributed import data_parallel
from part4_sft.report import markdown_table

OTHERS, SEED_OF_OTHERS = 1500, "optimizers"  # documents that no side learns from
PARTS = 20  # of a training; after each comes the other side's turn


@dataclass
class Side:
    """A training, and its curve so far: processor seconds and the loss on other documents."""

    name: str
    learning_rate: float
    tokens_per_batch: int
    make: Callable[[Transformer, PretrainConfig, torch.dtype], torch.optim.Optimizer]
    curve: list[tuple[float, float]] = field(default_factory=list)


SIDES = [
    Side("AdamW, beta2 0.95", 2e-3, 1024, lambda model, *_: make_adamw(model, (0.9, 0.95))),
    Side("AdamW, beta2 0.999", 2e-3, 1024, lambda model, *_: make_adamw(model, (0.9, 0.999))),
    Side("Muon", NEW_MODEL_RATE, NEW_MODEL_TOKENS, make_optimizer),
]


def main() -> None:
    parser = OneLineParser(prog="python -m benchmarks.optimizers", description=__doc__)
    parser.add_argument("--conversations", type=int, default=40_000, help="documents to read (default: %(default)s)")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs"), help="folder for the picture")
    arguments = parser.parse_args()
    config = PretrainConfig(conversations=arguments.conversations)
    texts = read_corpus(config)
    torch.manual_seed(config.seed)
    start = new_model(texts, config)
    others = documents_of_others(start)
    trainings = []
    for side in SIDES:
        settings = PretrainConfig(conversations=arguments.conversations, tokens_per_batch=side.tokens_per_batch)
        trainings.append(Training(side, deepcopy(start.model), make_batches(texts, start, settings), settings))
    for part in tqdm(range(PARTS), unit="part", disable=None):
        for training in trainings:
            training.go_on(part)
            training.side.curve.append((training.seconds, mean_loss(training.model, others)))
    path = arguments.out_dir / "optimizers.png"
    draw(path)
    print(markdown_table(["side", "tokens a step", "loss on other documents", "processor seconds"], rows()))
    print(f"written: {path}")


class Training:
    """One side's model, and how far it has come."""

    def __init__(self, side: Side, model: Transformer, batches: list[Batch], config: PretrainConfig) -> None:
        self.side, self.model, self.batches, self.config, self.seconds = side, model, batches, config, 0.0
        self.dtype = dtype_of_products(model, config)
        self.optimizer = side.make(model, config, self.dtype)

    def go_on(self, part: int) -> None:
        """Take the steps of this part of the training, by the schedule of the whole."""
        total = len(self.batches)
        module: nn.Module = data_parallel(self.model, next_token_loss, False, torch.float32)
        start = time.process_time()
        with bfloat16_products(self.model) if self.dtype == torch.bfloat16 else nullcontext():
            for step in range(total * part // PARTS, total * (part + 1) // PARTS):
                factor = learning_rate_factor(step + 1, min(self.config.warmup_steps, total // 10), total)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.side.learning_rate * factor
                training_step(module, self.optimizer, *self.batches[step][:2])
        self.seconds += time.process_time() - start


def documents_of_others(checkpoint: Checkpoint) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return batches of documents that are in no corpus."""
    rng = Random(SEED_OF_OTHERS)
    texts = [corpus.draw_document(rng) for _ in range(OTHERS)]
    rows = corpus.tokenize(texts, checkpoint.tokenizer, checkpoint.model.config.eos_ids[0], LONGEST_ROW)
    drawn = corpus.batches(rows, 4096, rng)
    return [(inputs, corpus.ignore_messages(inputs, targets, checkpoint.tokenizer)) for inputs, targets in drawn]


@torch.inference_mode()
def mean_loss(model: Transformer, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Return the mean loss over all targets, in nats per token."""
    targets = sum(int((targets != corpus.IGNORE_INDEX).sum()) for _, targets in batches)
    return sum(float(next_token_loss(model, *batch)) for batch in batches) / targets


def rows() -> list[list[str]]:
    ends = [(side, *side.curve[-1]) for side in SIDES]
    return [[side.name, str(side.tokens_per_batch), f"{loss:.3f}", f"{seconds:.0f}"] for side, seconds, loss in ends]


def draw(path: Path) -> None:
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    for side, color in zip(SIDES, (BLUE, GREEN, ORANGE)):
        axes.plot(*zip(*side.curve), ".-", color=color, label=side.name)
    axes.set(title="Pretraining on the same documents", xlabel="processor seconds", ylim=(0.5, 3))
    axes.set_ylabel("loss on other documents (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
