"""What every benchmark shares: model and pairs, sides that take turns on one machine, and what they needed."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.dataset import HIGH_QUALITY_PAIRS, Pair, make_datasets
from part4_sft.encoding import Example, PairEncoder
from part4_sft.report import markdown_table
from part4_sft.training import History, shuffled_batches, train

CONFIG = SFTConfig(epochs=1)
LONGEST_PROMPT = 300  # tokens


# ---------------------------------------------------------------------------------------------------- sides


@dataclass
class Measured:
    """One run of one side: how long it took, how much it did, and what came out, to be compared."""

    seconds: float
    amount: float
    outcome: list[Any] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


Side = Callable[[], Measured]


def alternate(sides: Mapping[str, Side], rounds: int, warm_up: bool = True) -> dict[str, list[Measured]]:
    """Run every side in turn, so many times; unless a run is long, a round that is not counted comes before."""
    uncounted = 1 if warm_up else 0
    runs: dict[str, list[Measured]] = {name: [] for name in sides}
    with tqdm(total=(rounds + uncounted) * len(sides), unit="run", leave=False, disable=None) as bar:
        for _ in range(rounds + uncounted):
            for name, side in sides.items():
                bar.set_description(name)
                runs[name].append(side())
                bar.update()
    return {name: of_side[uncounted:] for name, of_side in runs.items()}


def table(runs: dict[str, list[Measured]], unit: str, ours: str = "part4_sft") -> str:
    """Return medians, spread, and how many times as fast as each other side ours is."""
    rates = {name: [run.rate for run in of_side] for name, of_side in runs.items()}
    rows = [
        [
            name,
            f"{median(of_side):,.0f}",
            f"{min(of_side):,.0f} to {max(of_side):,.0f}",
            str(len(of_side)),
            "" if name == ours else f"{median(rates[ours]) / median(of_side):.2f}x",
        ]
        for name, of_side in rates.items()
    ]
    return markdown_table(["side", f"{unit} (median)", "lowest to highest", "runs", f"{ours} is faster by"], rows)


def largest_difference(curve: list[float], reference: list[float]) -> float:
    """Return the largest difference of two curves, relative to the second. Raises ValueError if lengths differ."""
    if len(curve) != len(reference):
        raise ValueError(f"{len(curve)} values cannot be compared with {len(reference)}")
    return max(abs(a - b) / abs(b) for a, b in zip(curve, reference))


# ---------------------------------------------------------------------------------------------------- our side


def load_model(path: Path = DEFAULT_CHECKPOINT) -> tuple[Transformer, PairEncoder]:
    """Return the model of a checkpoint and an encoder for it."""
    checkpoint = load_checkpoint(path)
    return checkpoint.model, PairEncoder(checkpoint.tokenizer, checkpoint.model.config.eos_ids[0])


def encode_good_pairs(encoder: PairEncoder) -> list[Example]:
    """Return the 500 pairs that a default run trains on."""
    return encoder.encode_all(make_datasets(0)["sft_dataset"][:HIGH_QUALITY_PAIRS])


def encode_prompts(encoder: PairEncoder, pairs: list[Pair]) -> list[list[int]]:
    return [encoder.encode_prompt(pair.context, LONGEST_PROMPT) for pair in pairs]


def in_our_order(examples: list[Example]) -> list[Example]:
    """Return the examples as `train` shuffles them for the first epoch, for a trainer that does not shuffle."""
    batches = shuffled_batches(len(examples), CONFIG.batch_size, 1, CONFIG.seed)
    return [examples[index] for batch in batches for index in batch]


def fine_tune(model: Transformer, examples: Sequence[Example], config: SFTConfig = CONFIG) -> History:
    """Train the model in place, without validation."""
    return train(model, examples, config, validate=lambda epoch, train_loss: {})


def count_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.ids) for example in examples)


def count_parameters(model: Transformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------- the machine


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def run_python(*arguments: str) -> str:
    """Run Python in a process of its own and return what it printed."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True).stdout


def peak_memory() -> int:
    """Return the most bytes that this process has had in memory (`getrusage` would count what its parent had too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def describe_machine() -> str:
    """Return processor, threads and versions in one line."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    products = "with" if multiplies_bfloat16() else "without"
    processor = names[0] if names else platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, {products} instructions for bfloat16; {packages}"
