"""How soon training starts: from the start of the process to the end of the first optimizer step."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import our_side, trl_side
from benchmarks.side_by_side import Measured, alternate, run_python, seconds_of
from part4_sft.dataset import make_datasets, save_pairs
from part4_sft.report import markdown_table

STOP_AFTER_A_STEP = """
import os, sys
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
"""
OURS = "from part4_sft.sft import main; main()"
THEIRS = """
import json
import huggingface_hub.constants
huggingface_hub.constants.HF_HUB_OFFLINE = True
from datasets import Dataset
from trl import SFTConfig, SFTTrainer
model, data, out = sys.argv[1:]
pairs = [pair for pair in json.load(open(data)) if pair["high_quality"]]
rows = [{"prompt": f"Customer: {p['context']}\\nAgent:", "completion": " " + p["response"]} for p in pairs]
config = SFTConfig(out, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
SFTTrainer(model, config, train_dataset=Dataset.from_list(rows)).train()
"""


def main() -> str:
    model, encoder = our_side.load_model()
    with trl_side.exported(model, encoder.tokenizer) as exported, tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, pairs in make_datasets(0).items():
            save_pairs(folder / f"{name}.json", pairs)
        data = f"{folder}/sft_dataset.json"
        options = [f"--data={data}", f"--validation-data={folder}/sft_validation.json"]
        options += [f"--out-dir={folder}/out", f"--checkpoint-dir={folder}/checkpoints"]
        commands = {
            "python -m part4_sft.sft --help": ["-m", "part4_sft.sft", "--help"],
            "python -m trl.scripts.sft --help": ["-m", "trl.scripts.sft", "--help"],
            "part4_sft to the first step": ["-c", STOP_AFTER_A_STEP + OURS, *options],
            "TRL to the first step": ["-c", STOP_AFTER_A_STEP + THEIRS, str(exported), data, temporary],
        }
        # The round that is not counted brings the files into memory.
        runs = alternate({name: partial(measure, command) for name, command in commands.items()}, rounds=2)
    seconds = {name: [run.seconds for run in of_command] for name, of_command in runs.items()}
    rows = [[name, f"{median(each):.2f}", f"{min(each):.2f} to {max(each):.2f}"] for name, each in seconds.items()]
    our_help, their_help, our_start, their_start = map(median, seconds.values())
    spread = markdown_table(["command", "seconds (median)", "lowest to highest"], rows)
    ratios = f"{their_help / our_help:.1f}x (--help) and {their_start / our_start:.1f}x (first step)"
    return f"{spread}\n\nSooner by {ratios}."


def measure(arguments: list[str]) -> Measured:
    return Measured(seconds_of(lambda: run_python(*arguments)), amount=1)
