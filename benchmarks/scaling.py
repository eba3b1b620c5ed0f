"""How much faster more processes fine-tune the default model on this machine: python -m benchmarks.scaling"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.side_by_side import Measured, alternate
from part4_sft.config import DEFAULT_CHECKPOINT
from part4_sft.dataset import HIGH_QUALITY_PAIRS, make_datasets, save_pairs
from part4_sft.report import markdown_table

ROUNDS = 3
PROCESS_COUNTS = (1, 2, 4)
WEIGHTS = {"replicated": [], "sharded": ["--shard"]}


def measure_epoch(folder: Path, processes: int, options: list[str]) -> Measured:
    """Train on the 500 pairs by torchrun, with one thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "part4_sft.sft", "--model", str(DEFAULT_CHECKPOINT), "--epochs", "1", *options]
    command += ["--data", str(folder / "data.json"), "--max-new-tokens", "1", "--samples-per-context", "1"]
    for option in ("--validation-data", "--test-data"):
        command += [option, str(folder / "few.json")]
    command += ["--out-dir", str(folder / "outputs"), "--checkpoint-dir", str(folder / "checkpoints")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    evaluation = json.loads((folder / "outputs" / "evaluation.json").read_text(encoding="utf-8"))
    return Measured(evaluation["timing_seconds"]["fine_tuning"], amount=1)


def main() -> None:
    data = make_datasets(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pairs(folder / "data.json", data["sft_dataset"][:HIGH_QUALITY_PAIRS])
        save_pairs(folder / "few.json", data["sft_test"][:2])
        sides = {
            f"{count} {weights}": partial(measure_epoch, folder, count, options)
            for count in PROCESS_COUNTS
            for weights, options in WEIGHTS.items()
        }
        runs = alternate(sides, ROUNDS, warm_up=False)
    cores = len(os.sched_getaffinity(0))
    one_process = median(run.seconds for run in runs["1 replicated"])
    rows = []
    for side, of_side in runs.items():
        count, weights = side.split()
        seconds = [run.seconds for run in of_side]
        speed_up = one_process / median(seconds)
        spread = f"{min(seconds):.1f} to {max(seconds):.1f}"
        share = f"{speed_up / min(int(count), cores):.0%}"
        rows.append([count, weights, f"{median(seconds):.1f}", spread, f"{speed_up:.2f}x", share])
    header = ["processes", "weights", "seconds an epoch (median)", "lowest to highest", "faster by", "of the cores"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
