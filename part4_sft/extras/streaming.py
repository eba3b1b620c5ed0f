"""Training data larger than memory: a JSONL file, tokenised once by all processors into files that are mapped.

The cache is a folder beside the output, named by a digest of all that decides what is in it. Every process of a job
maps the same files, so they are in memory once; another run with the same data finds them there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from array import array
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_folder, cannot_read
from part4_sft.dataset import Pair, trains
from part4_sft.encoding import Examples, PairEncoder, TooLong, tell_of_cut
from part4_sft.formats import pairs_of_lines

CHUNK = 2**20  # bytes that a worker takes at once


@dataclass(frozen=True)
class TrainingData:
    """Examples to train on, how many pairs there are with those that do not train, and a digest of it all."""

    examples: Examples
    pairs: int
    digest: str


def beginning(path: Path) -> list[Pair]:
    """The pairs in the first mebibyte of a JSONL file. Raises UserError where it cannot be read, or a line is none."""
    first_line = _first_line(path)
    return pairs_of_lines(*next(_chunks(path)), first_line, path)


def streamed(path: Path, encoder: PairEncoder, train_on: str, out_dir: Path) -> TrainingData:
    """Tokenises the pairs of a JSONL file that train (see `--train-on`), unless a run before has done so.

    Raises:
        UserError: the file cannot be read, a line is not a pair or does not fit, no pair trains, or the cache is
            damaged or cannot be written.
    """
    first_line = _first_line(path)
    decides = (encoder.tokenizer.to_str(), encoder.eos_id, encoder.template, encoder.max_length, train_on)
    with path.open("rb") as file:
        digest = sha256(repr((file_digest(file, "sha256").hexdigest(), decides)).encode()).hexdigest()
    cache = out_dir / f"tokenised-{digest[:16]}"
    if distributed.rank() == 0 and not cache.exists():
        for unfinished in out_dir.glob(".tokenised-*"):  # of a run that was killed
            shutil.rmtree(unfinished)
        with atomic_folder(cache) as folder:
            _tokenise(path, (path, first_line, *decides, encoder.max_positions), folder)
    distributed.barrier()
    try:
        counts = json.loads((cache / "counts.json").read_text(encoding="utf-8"))
        return TrainingData(Examples.mapped(cache), counts["pairs"], digest)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{cache} is damaged ({error}); delete it, and it is made anew") from error


def _first_line(path: Path) -> bytes:
    """The first that is not blank."""
    try:
        with path.open("rb") as file:
            found = next((line for line in file if line.removeprefix(BOM_UTF8).strip()), b"")
    except OSError as error:
        raise cannot_read(path, error) from error
    if not found:
        raise UserError(f"{path} holds no pairs; name a file that holds some")
    return found


def _tokenise(path: Path, settings: tuple[Any, ...], folder: Path) -> None:
    """Fills the folder; `settings` are what each worker begins with, see `_prepare`."""
    # macOS does not tell which processors a process may use.
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, trained_on, pairs, cut = 0, 0, 0, []
    with (
        (folder / "ids").open("wb") as ids,
        (folder / "ends").open("wb") as ends,
        (folder / "prompt_lengths").open("wb") as prompt_lengths,
        # Spawned, not forked: a process that has threads, as one of torchrun's does, cannot be copied safely.
        ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare, settings) as pool,
        tqdm(total=path.stat().st_size, desc="tokenising", unit="B", unit_scale=True, disable=None) as bar,
    ):
        array("q", [0]).tofile(ends)
        for part in _in_order(pool, _chunks(path), ahead=2 * workers):
            part.examples.ids.tofile(ids)
            array("q", (total + end for end in part.examples.ends[1:])).tofile(ends)
            part.examples.prompt_lengths.tofile(prompt_lengths)
            total += len(part.examples.ids)
            trained_on += len(part.examples)
            pairs += part.pairs
            cut += part.cut
            bar.update(part.size)
    if not trained_on:
        raise UserError(f"{path} holds no pair with high_quality 1; label some, or use --train-on all")
    tell_of_cut(cut, trained_on, "training")
    (folder / "counts.json").write_text(json.dumps({"pairs": pairs}), encoding="utf-8")


def _chunks(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """Some lines at a time, where they begin in the file, and the number of the first."""
    offset, line = 0, 1
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            data += file.readline()
            yield data, offset, line
            offset, line = offset + len(data), line + data.count(b"\n")


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator[tuple[bytes, int, int]], ahead: int) -> Iterator[_Part]:
    """What the workers make of the chunks; only so many are in memory that no worker waits."""
    running: deque[Future[_Part]] = deque()
    try:
        for chunk in chunks:
            running.append(pool.submit(_encode, *chunk))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a process that tokenises was killed; does it have memory enough?") from error
    finally:
        pool.shutdown(cancel_futures=True)


# ---------------------------------------------------------------------------------------------------- in a worker


@dataclass(frozen=True)
class _Part:
    """What a worker made of a chunk of `size` bytes; `cut` tells where contexts lost their beginning."""

    examples: Examples
    pairs: int
    cut: list[str]
    size: int


@dataclass(frozen=True)
class _Worker:
    path: Path
    first_line: bytes
    encoder: PairEncoder
    train_on: str


_worker: _Worker  # of this process, which has but one


def _prepare(
    path: Path,
    first_line: bytes,
    tokenizer: str,
    eos_id: int,
    template: str,
    max_length: int,
    train_on: str,
    max_positions: int | None,
) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that started this one, and that its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each processor
    encoder = PairEncoder(Tokenizer.from_str(tokenizer), eos_id, template, max_length, max_positions)
    _worker = _Worker(path, first_line, encoder, train_on)


def _encode(data: bytes, offset: int, line: int) -> _Part:
    pairs = pairs_of_lines(data, offset, line, _worker.first_line, _worker.path)
    training = [pair for pair in pairs if trains(pair, _worker.train_on)]
    cut: list[str] = []
    too_long: TooLong = []
    examples = Examples(_worker.encoder.encoded(training, cut, too_long))
    _worker.encoder.check(too_long)
    return _Part(examples, len(pairs), cut, len(data))
