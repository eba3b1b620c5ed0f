"""How fast a stream is tokenised, beside the tokenizers library alone, and what it needs.

python -m benchmarks.streaming 1000000, or another number of pairs; it makes a file of them, which takes a while too.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from random import Random
from statistics import median

from benchmarks.our_side import count_tokens, load_model
from benchmarks.side_by_side import peak_memory
from part3_pretrain.retail import world
from part4_sft.dataset import draw_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.extras.streaming import TrainingData, load_stream
from part4_sft.formats import pairs_of_lines

PAIRS, ROUNDS = 20_000, 3  # more pairs than these are tokenised in one round
LINES_PER_CHUNK = 10_000  # given to the library alone


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PAIRS
    _, encoder = load_model()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "pairs.jsonl"
        write(path, count)
        cold, alone, peaks = [], [], [peak_memory()]
        for number in range(ROUNDS if count <= PAIRS else 1):
            cache = Path(name) / str(number)
            cache.mkdir()
            _, seconds = stream(path, encoder, cache)
            cold.append(seconds)
            peaks.append(peak_memory())
            alone.append(library_alone(path, encoder))
        data, warm = stream(path, encoder, cache)
    worker = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    share = median(theirs / ours for ours, theirs in zip(cold, alone))
    print(f"{count:,} pairs, {count_tokens(data.examples):,} tokens")
    print(f"streamed, from cold: {median(cold):.1f} s; the library alone: {median(alone):.1f} s; share {share:.0%}")
    print(f"from the files of another run: {warm:.2f} s")
    grown = (
        f"{(peaks[1] - peaks[0]) / 2**20:.0f} MB more in the process that writes, {worker / 2**20:.0f} MB in a worker"
    )
    print(f"memory at the peak: {grown}")


def write(path: Path, count: int) -> None:
    """Write ideal pairs as JSONL, each as soon as it is drawn."""
    with path.open("w", encoding="utf-8") as file:
        draw_customer = partial(world.draw_customer, held_out_item=False)
        for pair in draw_pairs(count, draw_customer, world.ideal_reply, set(), Random(0)):
            file.write(json.dumps({"context": pair.context, "response": pair.response}) + "\n")


def stream(path: Path, encoder: PairEncoder, cache: Path) -> tuple[TrainingData, float]:
    """Return the data and the seconds that they took."""
    start = time.perf_counter()
    data = load_stream(path, encoder, "high", cache)
    return data, time.perf_counter() - start


def library_alone(path: Path, encoder: PairEncoder) -> float:
    """Return the seconds for the same texts by the library's own threads, reading them not counted."""
    seconds = 0.0
    with path.open("rb") as file:
        first_line = file.readline()
        file.seek(0)
        while chunk := b"".join(islice(file, LINES_PER_CHUNK)):
            pairs = pairs_of_lines(chunk, 0, 1, first_line, path)
            texts = [encoder.template.replace("{context}", pair.context) for pair in pairs]
            texts += [encoder.space + pair.response for pair in pairs]
            start = time.perf_counter()
            encoder.tokenizer.encode_batch_fast(texts)
            seconds += time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    main()
