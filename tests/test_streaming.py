"""Data that are tokenised once into files are the same examples as those that are read into memory."""

from __future__ import annotations

import json
import math
import os
import pickle
import tracemalloc
from array import array
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from part3_pretrain.runtime.cli import UserError
from part4_sft import sft
from part4_sft.dataset import Pair, trainable
from part4_sft.encoding import Example, PairEncoder
from part4_sft.extras import streaming
from part4_sft.extras.conversations import choose_template, make_encoder
from part4_sft.extras.streaming import ComputedBatches, MappedExamples, load_beginning, load_stream
from part4_sft.formats import load_pairs
from tests.chat_templates import FAMILIES
from tests.conftest import Command, in_folder
from tests.test_conversations import checkpoint_of


def lines(pairs: list[Pair]) -> list[str]:
    return [json.dumps({key: getattr(pair, key) for key in ("context", "response", "high_quality")}) for pair in pairs]


@pytest.fixture
def file(made: dict[str, list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More pairs than fit into one chunk, in lines that end in several ways."""
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 10_000)
    path = tmp_path / "pairs.jsonl"
    some = lines(made["sft_dataset"][400:600])
    first = "\ufeff\n" + "\n".join([*some[:50], "", *some[50:100]]) + "\r\n"
    path.write_bytes((first + "\n".join(some[100:])).encode())
    return path


def test_the_beginning_is_that_of_the_file(file: Path, tmp_path: Path) -> None:
    pairs, beginning = load_pairs(file), load_beginning(file)
    assert 10 < len(beginning) < 100 and beginning == pairs[: len(beginning)]
    assert beginning[0].place == f"{file}, line 2"
    with pytest.raises(UserError, match="cannot read"):
        load_beginning(tmp_path / "missing")
    file.write_text("\ufeff \n\n")
    with pytest.raises(UserError, match="holds no pairs; name a file"):
        load_beginning(file)


def test_mapped_examples_are_a_sequence_and_damage_is_told(tmp_path: Path) -> None:
    contents = {"ids": array("i", [~0, 1, 2, 3, ~4, ~5, ~6, 7, 8]), "ends": array("q", [0, 4, 9])}
    for name, values in contents.items():
        (tmp_path / name).write_bytes(values.tobytes())
    examples = MappedExamples(tmp_path)
    assert len(examples) == 2
    assert examples[-1] == Example([4, 5, 6, 7, 8], [-100, -100, -100, 7, 8])
    assert examples[:1] == [examples[0]] and list(examples) == [examples[0], examples[1]]
    with pytest.raises(IndexError):
        examples[2]
    for name, values in contents.items():
        (tmp_path / name).write_bytes(values[:-1].tobytes())
        with pytest.raises(ValueError, match="sizes of its files do not fit together"):
            MappedExamples(tmp_path)
        (tmp_path / name).write_bytes(values.tobytes())


def test_an_error_of_a_worker_is_the_same_in_the_process_that_reads_it() -> None:
    error = pickle.loads(pickle.dumps(UserError("line 3 is bad", "mend it")))
    assert isinstance(error, UserError) and str(error) == "line 3 is bad; mend it"


@pytest.mark.parametrize("count", [*range(1, 70), 1000, 100_003])
def test_every_index_is_in_one_computed_batch(count: int) -> None:
    batches = ComputedBatches(count, 8, epoch=1, seed=0)
    assert len(batches) == math.ceil(count / 8) and all(len(batch) == 8 for batch in list(batches)[:-1])
    assert sorted(index for batch in batches for index in batch) == list(range(count))


def test_computed_batches_are_in_no_order_and_in_another_in_each_epoch() -> None:
    count, cells = 100_000, 20
    orders = [[index for batch in ComputedBatches(count, 8, epoch, seed=0) for index in batch] for epoch in (1, 2)]
    shuffled = list(range(count))
    Random(0).shuffle(shuffled)
    pairs = [list(enumerate(order)) for order in (*orders, shuffled)]
    pairs += [list(pairwise(order)) for order in (*orders, shuffled)]  # an index says nothing about the next
    pairs += [list(zip(*orders))]
    for pair in pairs:
        table = Counter((first * cells // count, second * cells // count) for first, second in pair)
        expected = len(pair) / cells**2
        squares = sum((table[row, column] - expected) ** 2 for row in range(cells) for column in range(cells))
        assert abs(squares / expected - cells**2) < 5 * math.sqrt(2 * cells**2)  # chi squared


def test_no_more_is_stored_of_a_hundred_million_than_of_ten() -> None:
    tracemalloc.start()
    batches = ComputedBatches(100_000_000, 8, epoch=1, seed=0)
    seen = [index for number in range(-1, 2000) for index in batches[number]]
    assert len(set(seen)) == len(seen) == 2001 * 8 and max(seen) > 99_000_000
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.slow
def test_a_stream_gives_the_same_examples_and_the_second_run_finds_them(
    file: Path, encoder: PairEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".tokenised-killed").mkdir()
    first = load_stream(file, encoder, "high", tmp_path)
    assert list(first.examples) == encoder.encode_all(trainable(load_pairs(file), "high"))
    assert (len(first.examples), first.pairs) == (100, 200)
    assert not (tmp_path / ".tokenised-killed").exists()

    monkeypatch.setattr(streaming, "_tokenise", None)  # nothing may be tokenised again
    again = load_stream(file, encoder, "high", tmp_path)
    assert list(again.examples) == list(first.examples) and again[1:] == first[1:]
    for changed in ((replace(encoder, template="Q: {context}\nA:"), "high"), (encoder, "all")):
        with pytest.raises(TypeError, match="not callable"):
            load_stream(file, *changed, tmp_path)
    os.truncate(tmp_path / f"tokenised-{first.digest[:16]}" / "ids", 4000)
    with pytest.raises(UserError, match=r"is damaged .*; delete it, and it is made anew"):
        load_stream(file, encoder, "high", tmp_path)
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(TypeError, match="not callable"):
        load_stream(file, encoder, "high", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("by_chat_template", [False, True])
def test_a_stream_takes_control_tokens_for_text_and_labels_several_turns(
    by_chat_template: bool, encoder: PairEncoder, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    if by_chat_template:
        checkpoint = checkpoint_of(FAMILIES["chatml"], tokenizer)
        encoder = make_encoder(checkpoint, choose_template(checkpoint, None, None), 512, 20)
    texts = ["a <EOS> b <|im_end|>", "c", "d <EOS>", "e"]
    turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, texts)]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n" + json.dumps({"messages": turns[:2]}))
    examples = list(load_stream(tmp_path / "chats.jsonl", encoder, "high", tmp_path).examples)
    assert examples == encoder.encode_all(load_pairs(tmp_path / "chats.jsonl"))
    assert [example.labels.count(encoder.eos_id) for example in examples] == [1 + by_chat_template, 1]
    assert [example.ids.count(encoder.eos_id) for example in examples] == ([4, 2] if by_chat_template else [1, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "last", "complaint"),
    [
        (Pair("a", "b", 0), b"", "holds no pair with high_quality 1; label some, or use --train-on all"),
        (Pair("a", "b"), lines([Pair("a", "a " * 600)])[0].encode(), "line 501: its response has"),
        (Pair("a", "b"), b"\xff", "is not UTF-8 text (byte 26500)"),
    ],
)
def test_what_cannot_be_tokenised_is_named_and_nothing_is_left(
    file: Path, encoder: PairEncoder, tmp_path: Path, pair: Pair, last: bytes, complaint: str
) -> None:
    file.write_bytes(f"{lines([pair])[0]}\n".encode() * 500 + last)
    with pytest.raises(UserError) as error:
        load_stream(file, encoder, "high", tmp_path)
    assert complaint in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.slow
def test_a_run_with_a_stream_is_the_run_without(
    run_main: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    options = ["--model", tiny_checkpoint, "--epochs", 1, "--max-new-tokens", 2, "--samples-per-context", 1]
    data, test = [*made["sft_dataset"][:29], Pair("a " * 600, "b")], made["sft_test"]
    for name, pairs in {"data": data, "validation-data": test[:3], "test-data": test[3:6]}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines(pairs)))
        options += [f"--{name}", tmp_path / f"{name}.jsonl"]
    steps = []
    for more in ([], ["--stream"]):
        out = tmp_path / f"out{len(more)}"
        status, printed, complained = run_main(sft.main, *options, *in_folder(out), *more)
        assert status == 0 and "trained on 30 of 30 pairs" in printed, complained
        assert "note: 1 of 30 contexts of the training set are too long" in complained
        evaluation = json.loads((out / "outputs" / "evaluation.json").read_text())
        steps.append(evaluation["steps"])
        assert ("controls" in evaluation) == (not more)  # they need all training pairs in memory
        assert (out / "outputs" / "sft_dataset.json").exists() == (not more)
    assert steps[0] == steps[1]
