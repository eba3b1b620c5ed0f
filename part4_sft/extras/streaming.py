"""Training data larger than memory: a JSONL file, tokenised once by all processors into files that are mapped.

The cache is a folder beside the output, named by a digest of all that decides what is in it. Every process of a job
maps the same files, so they are in memory once; another run with the same data finds them there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from array import array
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from functools import partial
from hashlib import file_digest, sha256
from itertools import accumulate
from mmap import ACCESS_READ, mmap
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tqdm import tqdm

from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_folder, cannot_read
from part4_sft.data_files.layouts import Columns
from part4_sft.dataset import Pair, trainable
from part4_sft.encoding import Example, PairEncoder, note_cut
from part4_sft.formats import note_left_out, pairs_of_lines, read_lines

CHUNK_BYTES = 2**20  # that a worker takes at once
LONGEST_LIST = 2**20  # examples whose order is a list, the same as without --stream; that of more is computed
ROUNDS = 4  # after these the order passes the same tests of chance as `Random.shuffle`
_Chunk = tuple[bytes, int, int, bytes, Path, Columns]  # the arguments of `pairs_of_lines`


class TrainingData(NamedTuple):
    """Examples to train on, how many pairs there are with those that do not train, and a digest of it all."""

    examples: Sequence[Example]
    pairs: int
    digest: str


class MappedExamples(Sequence[Example]):
    """Examples that stay in files of 4 bytes a token and 8 a pair; raises ValueError where these do not fit together.

    The file `ids` holds those of all examples one behind another, with all bits flipped where the label is -100, and
    `ends` where each begins and ends (from 0 on).
    """

    def __init__(self, folder: Path) -> None:
        self.ids = _map_file(folder / "ids", "i")
        self.ends = _map_file(folder / "ends", "q")
        if self.ends[-1] != len(self.ids):
            raise ValueError("the sizes of its files do not fit together")

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __getitem__(self, index: int | slice) -> Any:
        """Return an example, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # counts a negative index from the end, and raises IndexError
        stored = self.ids[self.ends[place] : self.ends[place + 1]].tolist()
        return Example([max(id, ~id) for id in stored], [id if id >= 0 else IGNORE_INDEX for id in stored])


class ComputedBatches(Sequence[list[int]]):
    """The indices of the examples in each optimizer step of an epoch: every one once, by seed and epoch.

    Nothing is stored: a batch is computed when it is asked for. Rounds that can be undone (times an odd number, plus
    a number, the upper half of the bits xored to the lower; after Steele et al. 2014) permute all numbers of as many
    bits as the count has. What comes out too large goes in again (cycle walking, Black and Rogaway 2002).
    """

    def __init__(self, count: int, batch_size: int, epoch: int, seed: int) -> None:
        self.total, self.batch_size, self.bits = count, batch_size, count.bit_length()
        rng = Random(f"{seed}/{epoch}")
        self.keys = [(rng.getrandbits(self.bits) | 1, rng.getrandbits(self.bits)) for _ in range(ROUNDS)]

    def __len__(self) -> int:
        return math.ceil(self.total / self.batch_size)

    def __getitem__(self, number: int) -> list[int]:  # type: ignore[override]
        start = range(len(self))[number] * self.batch_size  # raises IndexError
        return [self._permuted(place) for place in range(self.total)[start : start + self.batch_size]]

    def _permuted(self, number: int) -> int:
        mask, half = 2**self.bits - 1, self.bits // 2
        while True:
            for factor, term in self.keys:
                number = (number * factor + term) & mask
                number ^= number >> half
            if number < self.total:
                return number


def _map_file(path: Path, kind: str) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)).cast(kind)  # type: ignore[call-overload]


def load_beginning(path: Path, columns: Columns = ()) -> list[Pair]:
    """Read the pairs in the first mebibyte of a JSONL file; raise UserError where it cannot be read or has others."""
    file = read_lines(*next(_chunks(path, columns)))
    file.check()
    note_left_out(file, path)
    return file.pairs


def load_stream(path: Path, encoder: PairEncoder, train_on: str, out_dir: Path, columns: Columns = ()) -> TrainingData:
    """Tokenise the trainable pairs of a JSONL file (see `--train-on`), unless a run before has done so.

    Raises:
        UserError: the file, a line of it or the cache cannot be used, or no pair is trainable.
    """
    digest = distributed.on_rank_0(partial(_tokenise_once, path, encoder, train_on, out_dir, columns))
    cache = out_dir / f"tokenised-{digest[:16]}"
    try:
        counts = json.loads((cache / "counts.json").read_text(encoding="utf-8"))
        return TrainingData(MappedExamples(cache), counts["pairs"], digest)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{cache} is damaged ({error})", "delete it, and it is made anew") from error


def _tokenise_once(path: Path, encoder: PairEncoder, train_on: str, out_dir: Path, columns: Columns) -> str:
    """Make the cache unless it is there, and return the digest of all that decides what is in it."""
    how = [getattr(encoder, field.name) for field in fields(encoder) if field.name != "tokenizer"]
    decides = (encoder.tokenizer.to_str(), how, train_on, *columns)
    try:
        with path.open("rb") as file:
            digest = sha256(repr((file_digest(file, "sha256").hexdigest(), decides)).encode()).hexdigest()
    except OSError as error:
        raise cannot_read(path, error) from error
    cache = out_dir / f"tokenised-{digest[:16]}"
    if not cache.exists():
        for unfinished in out_dir.glob(".tokenised-*"):  # of a run that was killed
            shutil.rmtree(unfinished)
        with atomic_folder(cache) as folder:
            _tokenise(path, encoder, train_on, folder, columns)
    return digest


def _chunks(path: Path, columns: Columns) -> Iterator[_Chunk]:
    """Yield the arguments of `pairs_of_lines` for about a mebibyte of whole lines at a time."""
    try:
        with path.open("rb") as file:
            first_line = next((line for line in file if line.removeprefix(BOM_UTF8).strip()), None)
            if first_line is None:
                raise UserError(f"{path} holds no pairs", "name a file that holds some")
            file.seek(0)
            offset, line = 0, 1
            while data := file.read(CHUNK_BYTES):
                data += file.readline()
                yield data, offset, line, first_line, path, columns
                offset, line = offset + len(data), line + data.count(b"\n")
    except OSError as error:
        raise cannot_read(path, error) from error


def _tokenise(path: Path, encoder: PairEncoder, train_on: str, folder: Path, columns: Columns) -> None:
    """Fill the folder with the files of a `MappedExamples`, and the number of pairs in counts.json."""
    # macOS does not tell which processors a process may use.
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    tokens, examples, pairs = 0, 0, 0
    cut: list[str] = []
    with (
        (folder / "ids").open("wb") as ids,
        (folder / "ends").open("wb") as ends,
        # Spawned, not forked: a process that has threads, as one of torchrun's does, cannot be copied safely.
        ProcessPoolExecutor(workers, get_context("spawn"), _prepare_worker, (encoder, train_on)) as pool,
        tqdm(total=path.stat().st_size, desc="tokenising", unit="B", unit_scale=True, disable=None) as bar,
    ):
        array("q", [0]).tofile(ends)
        for part in _in_order(pool, _chunks(path, columns), ahead=2 * workers):
            part.ids.tofile(ids)
            array("q", accumulate(part.lengths, initial=tokens))[1:].tofile(ends)
            tokens += len(part.ids)
            examples += len(part.lengths)
            pairs += part.pairs
            cut += part.cut
            bar.update(part.size)
    if not examples:
        raise UserError(f"{path} holds no pair with high_quality 1", "label some, or use --train-on all")
    note_cut(cut, examples, "training")
    (folder / "counts.json").write_text(json.dumps({"pairs": pairs}), encoding="utf-8")


def _in_order(pool: ProcessPoolExecutor, chunks: Iterator[_Chunk], ahead: int) -> Iterator[_Part]:
    """Yield what the workers make of the chunks; `ahead` of them are in memory, so that no worker waits."""
    running: deque[Future[_Part]] = deque()
    try:
        for chunk in chunks:
            running.append(pool.submit(_encode, chunk))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise UserError("a process that tokenises was killed", "does it have memory enough?") from error
    finally:
        pool.shutdown(cancel_futures=True)


class _Part(NamedTuple):
    """What a worker made of a chunk of `size` bytes: the examples as arrays, and the number of pairs in the chunk."""

    ids: array[int]
    lengths: array[int]  # of the examples, in tokens
    cut: list[str]  # places of the pairs whose contexts lost their beginning
    pairs: int
    size: int


_how: tuple[PairEncoder, str]  # to encode pairs, and which ones (`--train-on`); set in a worker


def _prepare_worker(encoder: PairEncoder, train_on: str) -> None:
    global _how
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the process that started this one, and that its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a worker for each processor
    encoder.tokenizer.encode_special_tokens = True  # as in `train_tokenizer`; what was sent here does not hold it
    _how = encoder, train_on


def _encode(chunk: _Chunk) -> _Part:
    encoder, train_on = _how
    pairs = pairs_of_lines(*chunk)
    examples, cut, too_long = encoder.encode_what_fits(trainable(pairs, train_on))
    encoder.check_all_fit(too_long)
    labelled = (both for example in examples for both in zip(example.ids, example.labels))
    ids = array("i", (~id if label == IGNORE_INDEX else id for id, label in labelled))
    lengths = array("q", (len(example.ids) for example in examples))
    return _Part(ids, lengths, cut, len(pairs), len(chunk[0]))
