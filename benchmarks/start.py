"""How soon training starts: from the start of the process to the end of the first optimizer step."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from benchmarks import trl_side
from part3_pretrain.checkpoint import load_checkpoint
from part4_sft.config import DEFAULT_CHECKPOINT
from part4_sft.dataset import make_datasets, save_pairs
from part4_sft.report import markdown_table

ROUNDS = 2
STOP_AFTER_A_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
"""
OURS = (
    STOP_AFTER_A_STEP
    + """
from part4_sft.sft import main
main()
"""
)
THEIRS = (
    STOP_AFTER_A_STEP
    + """
import json
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
model, data, out = sys.argv[1:]
pairs = [pair for pair in json.load(open(data)) if pair["high_quality"]]
rows = [{"prompt": f"Customer: {p['context']}\\nAgent:", "completion": " " + p["response"]} for p in pairs]
SFTTrainer(
    model,
    SFTConfig(out, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none"),
    train_dataset=Dataset.from_list(rows),
).train()
"""
)


def main() -> str:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        trl_side.export(folder / "model", checkpoint.model, checkpoint.tokenizer)
        data = make_datasets(0)
        for name in ("sft_dataset", "sft_validation", "sft_test"):
            save_pairs(folder / f"{name}.json", data[name])
        outputs = ["--out-dir", str(folder / "out"), "--checkpoint-dir", str(folder / "checkpoints")]
        files = [f"--data={folder}/sft_dataset.json", f"--validation-data={folder}/sft_validation.json"]
        commands = {
            "python -m part4_sft.sft --help": ["-m", "part4_sft.sft", "--help"],
            "python -m trl.scripts.sft --help": ["-m", "trl.scripts.sft", "--help"],
            "part4_sft to the first step": ["-c", OURS, *files, *outputs],
            "TRL to the first step": ["-c", THEIRS, str(folder / "model"), f"{folder}/sft_dataset.json", str(folder)],
        }
        found: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(ROUNDS + 1):
            for name, command in commands.items():
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, capture_output=True)
                if turn > 0:  # the first brings the files into memory
                    found[name].append(time.perf_counter() - start)
    medians = {name: median(runs) for name, runs in found.items()}
    rows = [[name, f"{medians[name]:.2f}", f"{min(runs):.2f} to {max(runs):.2f}"] for name, runs in found.items()]
    helps, starts = list(medians.values())[:2], list(medians.values())[2:]
    return "\n".join(
        [
            markdown_table(["command", "seconds (median)", "lowest to highest"], rows),
            "",
            f"Sooner by {helps[1] / helps[0]:.1f}x (--help) and {starts[1] / starts[0]:.1f}x (first step).",
        ]
    )
