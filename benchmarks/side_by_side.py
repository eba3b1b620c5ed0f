"""What every comparison shares: sides that take turns on one machine, and the medians of what they needed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tokenizers import Tokenizer
from tqdm import tqdm

from part3_pretrain.bfloat16 import multiplies_bfloat16
from part4_sft.config import SFTConfig
from part4_sft.dataset import HIGH_QUALITY_PAIRS, make_datasets
from part4_sft.encoding import Example, PairEncoder, shuffled_steps
from part4_sft.report import markdown_table

CONFIG = SFTConfig(epochs=1)


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


def alternate(sides: dict[str, Side], rounds: int, warm_up: bool = True) -> dict[str, list[Measured]]:
    """Every side in turn, so many times; unless a run is long, a round that is not counted comes before."""
    found: dict[str, list[Measured]] = {name: [] for name in sides}
    with tqdm(total=(rounds + warm_up) * len(sides), unit="run", leave=False, disable=None) as bar:
        for _ in range(rounds + warm_up):
            for name, side in sides.items():
                bar.set_description(name)
                found[name].append(side())
                bar.update()
    return {name: runs[warm_up:] for name, runs in found.items()}


def table(found: dict[str, list[Measured]], unit: str, ours: str = "part4_sft") -> str:
    """Medians, spread, and how many times as fast as each other side ours is."""
    rates = {name: [run.rate for run in runs] for name, runs in found.items()}
    rows = [
        [
            name,
            f"{median(these):,.0f}",
            f"{min(these):,.0f} to {max(these):,.0f}",
            str(len(these)),
            "" if name == ours else f"{median(rates[ours]) / median(these):.2f}x",
        ]
        for name, these in rates.items()
    ]
    return markdown_table(["side", f"{unit} (median)", "lowest to highest", "runs", f"{ours} is faster by"], rows)


def largest_difference(one: list[float], other: list[float]) -> float:
    """Between two curves, relative to the second."""
    if len(one) != len(other):
        raise ValueError(f"{len(one)} values cannot be compared with {len(other)}")
    return max(abs(a - b) / abs(b) for a, b in zip(one, other))


def the_500_pairs(tokenizer: Tokenizer) -> list[Example]:
    return PairEncoder(tokenizer, eos_id=1).encode_all(make_datasets(0)["sft_dataset"][:HIGH_QUALITY_PAIRS])


def in_our_order(examples: list[Example]) -> list[Example]:
    """As `train` shuffles them, for a trainer that does not shuffle."""
    steps = shuffled_steps(len(examples), CONFIG.batch_size, 1, CONFIG.seed)
    return [examples[place] for step in steps for place in step]


def peak_memory() -> int:
    """The most bytes that this process has had in memory so far (`getrusage` would count what its parent had too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def machine() -> str:
    """One line for the reader of a table: processor, threads, versions."""
    cpu = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "trl"))
    products = "with" if multiplies_bfloat16() else "without"
    processor = names[0] if names else platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, {products} instructions for bfloat16; {packages}"
