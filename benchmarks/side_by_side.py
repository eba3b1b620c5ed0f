"""What every benchmark shares: sides that take turns on one machine, and what they needed."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm import tqdm

from part3_pretrain.bfloat16 import multiplies_bfloat16
from part4_sft.report import markdown_table


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


def table(runs: dict[str, list[Measured]], unit: str) -> str:
    """Return medians, spread, and how many times as fast as each other side `part4_sft` is."""
    rows = []
    ours = median(run.rate for run in runs["part4_sft"])
    for name, of_side in runs.items():
        rates = [run.rate for run in of_side]
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        faster = "" if name == "part4_sft" else f"{ours / median(rates):.2f}x"
        rows.append([name, f"{median(rates):,.0f}", spread, str(len(rates)), faster])
    return markdown_table(["side", f"{unit} (median)", "lowest to highest", "runs", "part4_sft is faster by"], rows)


def largest_difference(curve: list[float], reference: list[float]) -> float:
    """Return the largest difference of two curves, relative to the second. Raises ValueError if lengths differ."""
    if len(curve) != len(reference):
        raise ValueError(f"{len(curve)} values cannot be compared with {len(reference)}")
    return max(abs(a - b) / abs(b) for a, b in zip(curve, reference))


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
