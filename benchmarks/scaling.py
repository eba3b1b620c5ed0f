"""How much faster more processes fine-tune the default model on this machine: python -m benchmarks.scaling"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from part4_sft.dataset import make_datasets, save_pairs
from part4_sft.report import markdown_table

ROUNDS = 3
COUNTS = (1, 2, 4)


def seconds_an_epoch(folder: Path, processes: int, more: list[str]) -> float:
    """Of the 500 pairs, by torchrun with one thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += ["-m", "part4_sft.sft", "--model", "checkpoints/pretrained.pt", "--epochs", "1", *more]
    command += ["--data", str(folder / "data.json"), "--max-new-tokens", "1", "--samples-per-context", "1"]
    for name in ("validation-data", "test-data"):
        command += [f"--{name}", str(folder / "few.json")]
    command += ["--out-dir", str(folder / "outputs"), "--checkpoint-dir", str(folder / "checkpoints")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    evaluation = json.loads((folder / "outputs" / "evaluation.json").read_text())
    return evaluation["timing_seconds"]["fine_tuning"]


def main() -> None:
    made = make_datasets(0)
    ways = [(count, more) for count in COUNTS for more in ([], ["--shard"])]
    seconds: list[list[float]] = [[] for _ in ways]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pairs(folder / "data.json", made["sft_dataset"][:500])
        save_pairs(folder / "few.json", made["sft_test"][:2])
        for _ in range(ROUNDS):
            for found, (count, more) in zip(seconds, ways):
                found.append(seconds_an_epoch(folder, count, more))
    cores = len(os.sched_getaffinity(0))
    one = median(seconds[0])
    rows = []
    for found, (count, more) in zip(seconds, ways):
        faster = one / median(found)
        spread = f"{min(found):.1f} to {max(found):.1f}"
        way = "sharded" if more else "replicated"
        share = f"{faster / min(count, cores):.0%}"
        rows.append([str(count), way, f"{median(found):.1f}", spread, f"{faster:.2f}x", share])
    header = ["processes", "weights", "seconds an epoch (median)", "lowest to highest", "faster by", "of the cores"]
    print(markdown_table(header, rows))


if __name__ == "__main__":
    main()
