"""Peak memory of two fine-tuning steps, each side in a process of its own, all of the process counted."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.side_by_side import peak_memory
from part4_sft.report import markdown_table

SIDES = {"part4_sft": "ours", "TRL, float32, activations kept": "same", "TRL as it comes": "default"}
STEPS = 2


def main() -> str:
    peaks = {
        (name, shape): float(
            subprocess.run(
                [sys.executable, "-m", "benchmarks.peak", side, shape], capture_output=True, text=True, check=True
            ).stdout.split()[-1]
        )
        for name, side in SIDES.items()
        for shape in ("default", "135M")
        # bfloat16 without instructions for it takes minutes a step with the large model
        if (side, shape) != ("default", "135M")
    }
    rows = [
        [name, shape, f"{peak:.2f}", "" if name == "part4_sft" else f"{peaks['part4_sft', shape] / peak:.2f}x"]
        for (name, shape), peak in peaks.items()
    ]
    return markdown_table(["side", "model", "GB at the peak", "part4_sft needs"], rows)


def measured(side: str, shape: str) -> float:
    """Gigabytes that this process came to need."""
    import torch

    from benchmarks.memory import SHAPES
    from benchmarks.side_by_side import CONFIG, the_500_pairs
    from part3_pretrain.checkpoint import load_checkpoint
    from part3_pretrain.model import Transformer
    from part4_sft.config import DEFAULT_CHECKPOINT
    from part4_sft.training import train

    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    torch.manual_seed(0)
    model = Transformer(SHAPES["135M (SmolLM2)"]) if shape == "135M" else checkpoint.model
    examples = the_500_pairs(checkpoint.tokenizer)[: 8 * STEPS]
    if side == "ours":
        train(model, examples, CONFIG, after_epoch=lambda epoch, loss: None)
    else:
        from benchmarks import trl_side

        with tempfile.TemporaryDirectory() as temporary:
            folder = trl_side.export(Path(temporary) / "model", model, checkpoint.tokenizer)
            del model, checkpoint
            trl_side.fine_tune(folder, examples, STEPS, **(trl_side.SAME if side == "same" else {}))
    return peak_memory() / 1e9


if __name__ == "__main__":
    print(measured(*sys.argv[1:]))
