"""python -m benchmarks [NAME ...]: measure this project beside TRL and transformers, and how its cost grows.

Needs `pip install -r benchmarks/requirements.txt` and the default checkpoint, which `python -m part4_sft.sft` makes.
Nothing else should run meanwhile. Tables go to the screen and, with the picture, into --out-dir.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

from part3_pretrain.runtime.cli import UserError, exit_status
from part3_pretrain.runtime.files import atomic_write, check_writable
from part4_sft.config import DEFAULT_CHECKPOINT

BENCHMARKS = {  # name: (title, module, function)
    "step": ("A step of fine-tuning, default model", "fine_tuning", "default_model"),
    "large": ("A step of fine-tuning, 135M", "fine_tuning", "large_model"),
    "generation": ("Writing 200 replies", "generating", "main"),
    "whole": ("Part 4 from checkpoint to scores", "whole", "main"),
    "pretraining": ("Pretraining and the processor's limit", "pretraining", "main"),
    "start": ("How soon it starts", "start", "main"),
    "peak": ("Peak memory of fine-tuning", "peak", "main"),
    "gpu": ("135M on a GPU", "gpu", "main"),
    "scratch": ("Fine-tuning without pretraining", "from_scratch", "main"),
    "growth": ("How cost grows", "growth", "main"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(BENCHMARKS)}; all by default")
    parser.add_argument("--out-dir", type=Path, default=Path("outputs"), help="folder for benchmarks.md and growth.png")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - BENCHMARKS.keys()
    if unknown:
        raise UserError(f"there is no benchmark {min(unknown)}", f"there are {', '.join(BENCHMARKS)}")
    if not DEFAULT_CHECKPOINT.exists():
        raise UserError(f"{DEFAULT_CHECKPOINT} is missing", "make it with: python -m part3_pretrain.pretrain")
    check_writable(arguments.out_dir)

    from benchmarks.side_by_side import describe_machine  # imports torch, for which a mistyped name need not wait

    sections = [f"{time.strftime('%Y-%m-%d')}; {describe_machine()}"]
    print(sections[0])
    for name in arguments.names or BENCHMARKS:
        title, module, function = BENCHMARKS[name]
        measure: Callable[..., str] = getattr(import_module(f"benchmarks.{module}"), function)
        if name == "growth":
            measure = partial(measure, arguments.out_dir)
        start = time.perf_counter()
        sections.append(
            f"## {title}\n\n{measure()}\n\n`python -m benchmarks {name}`, {time.perf_counter() - start:.0f} s"
        )
        print(f"\n{sections[-1]}", flush=True)
    path = arguments.out_dir / "benchmarks.md"
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
