"""How fast a stream is tokenised, beside the tokenizers library alone, and what it needs.

python -m benchmarks.streaming 1000000, or another number of pairs; it makes a file of them, which takes a while too.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.retail import world
from part4_sft.dataset import draw_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.extras.streaming import load_stream
from part4_sft.formats import pairs_of_lines

PAIRS, ROUNDS, PART = 20_000, 3, 10_000  # the library alone is given so many pairs at once


def write(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for pair in draw_pairs(count, world.ideal_reply, set(), Random(0), held_out_item=False):
            file.write(json.dumps({"context": pair.context, "response": pair.response}) + "\n")


def library_alone(path: Path, encoder: PairEncoder) -> float:
    """Seconds for the same texts by the library's own threads, reading them not counted."""
    seconds = 0.0
    with path.open("rb") as file:
        first = b""
        while part := b"".join(islice(file, PART)):
            first = first or part.split(b"\n")[0]
            pairs = pairs_of_lines(part, 1, 1, first, path)
            texts = [encoder.template.replace("{context}", pair.context) for pair in pairs]
            texts += [encoder.space + pair.response for pair in pairs]
            start = time.perf_counter()
            encoder.tokenizer.encode_batch_fast(texts)
            seconds += time.perf_counter() - start
    return seconds


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    checkpoint = load_checkpoint(Path("checkpoints/pretrained.pt"))
    encoder = PairEncoder(checkpoint.tokenizer, checkpoint.model.config.eos_ids[0])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "pairs.jsonl", count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours, alone = [], []
        for number in range(ROUNDS if count <= PAIRS else 1):
            (folder / str(number)).mkdir()
            start = time.perf_counter()
            found = load_stream(folder / "pairs.jsonl", encoder, "high", folder / str(number))
            ours.append(time.perf_counter() - start)
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            alone.append(library_alone(folder / "pairs.jsonl", encoder))
        start = time.perf_counter()
        found = load_stream(folder / "pairs.jsonl", encoder, "high", folder / "0")
        warm = time.perf_counter() - start
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    share = median(theirs / mine for mine, theirs in zip(ours, alone))
    print(f"{count:,} pairs, {sum(len(example.ids) for example in found.examples):,} tokens")
    print(f"load_stream, from cold: {median(ours):.1f} s; the library alone: {median(alone):.1f} s; share {share:.0%}")
    print(f"from the files of another run: {warm:.2f} s")
    grown = f"{own / 1024:.0f} MB more in the process that writes, {worker / 1024:.0f} MB in a worker"
    print(f"memory at the peak: {grown}")


if __name__ == "__main__":
    main()
