"""Data that are tokenised once into files are the same examples as those that are read into memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from part3_pretrain.runtime.cli import UserError
from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.extras import streaming
from part4_sft.extras.streaming import load_stream
from part4_sft.formats import load_pairs

Command = Callable[..., tuple[int | str | None, str, str]]


def lines(pairs: list[Pair]) -> list[str]:
    return [
        json.dumps({"context": pair.context, "response": pair.response, "high_quality": pair.high_quality})
        for pair in pairs
    ]


@pytest.fixture
def file(made: dict[str, list[Pair]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """More pairs than fit into one chunk, in lines that end in several ways."""
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 10_000)
    path = tmp_path / "pairs.jsonl"
    some = lines(made["sft_dataset"][400:600])
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join([*some[:50], "", *some[50:100]]).encode() + b"\r\n")
    with path.open("a") as added:
        added.write("\n".join(some[100:]))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("train_on", ["high", "all"])
def test_a_stream_gives_the_same_examples(train_on: str, file: Path, encoder: PairEncoder, tmp_path: Path) -> None:
    pairs = [pair for pair in load_pairs(file) if pair.high_quality or train_on == "all"]
    found = load_stream(file, encoder, train_on, tmp_path)
    assert list(found.examples) == list(encoder.encode_all(pairs))
    assert found.pairs == 200 and len(pairs) == (100 if train_on == "high" else 200)


@pytest.mark.slow
def test_the_second_run_finds_what_the_first_made_and_other_data_or_templates_make_their_own(
    file: Path, encoder: PairEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load_stream(file, encoder, "all", tmp_path)
    (tmp_path / ".tokenised-killed").mkdir()
    other = PairEncoder(encoder.tokenizer, encoder.eos_id, "Q: {context}\nA:")
    assert load_stream(file, other, "all", tmp_path).digest != first.digest
    assert not (tmp_path / ".tokenised-killed").exists()
    monkeypatch.setattr(streaming, "_tokenise", None)
    again = load_stream(file, encoder, "all", tmp_path)
    assert list(again.examples) == list(first.examples) and (again.pairs, again.digest) == (first.pairs, first.digest)
    os.truncate(tmp_path / f"tokenised-{first.digest[:16]}" / "ids", 4000)
    with pytest.raises(UserError, match="is damaged"):
        load_stream(file, encoder, "all", tmp_path)
    file.write_text(file.read_text() + "\n" + file.read_text().splitlines()[-1])
    with pytest.raises(TypeError):  # it would tokenise
        load_stream(file, encoder, "all", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"context": "a"}', 'line 150: the key "response" is missing'),
        ("{", "is not JSON: line 150, column 2"),
        ('{"context": "a", "response": "a", "high_quality": 2}', 'line 150: "high_quality" must be 0 or 1'),
        (json.dumps({"context": "a", "response": "a " * 600, "high_quality": 1}), "line 150: its response has"),
        ("\udcff", "is not UTF-8 text (byte"),
    ],
)
def test_a_line_that_is_no_pair_is_named_and_nothing_is_left(
    line: str,
    complaint: str,
    made: dict[str, list[Pair]],
    encoder: PairEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 10_000)
    path = tmp_path / "pairs.jsonl"
    some = lines(made["sft_dataset"][:200])
    path.write_text("\n".join([*some[:149], line, *some[150:]]), errors="surrogateescape")
    with pytest.raises(UserError) as error:
        load_stream(path, encoder, "all", tmp_path)
    assert complaint in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


@pytest.mark.slow
def test_a_run_with_a_stream_is_the_run_without(
    run_main: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    options = ["--model", tiny_checkpoint, "--epochs", 1, "--max-new-tokens", 2, "--samples-per-context", 1]
    for name, part in (("validation-data", slice(500, 503)), ("test-data", slice(510, 513))):
        save_pairs(tmp_path / f"{name}.json", made["sft_dataset"][part])
        options += [f"--{name}", tmp_path / f"{name}.json"]
    (tmp_path / "data.jsonl").write_text("\n".join(lines(made["sft_dataset"][:30])))
    options += ["--data", tmp_path / "data.jsonl", "--checkpoint-dir", tmp_path / "checkpoints"]
    steps = []
    for more in ([], ["--stream"]):
        out = tmp_path / f"out{len(more)}"
        status, printed, complained = run_main(sft.main, *options, "--out-dir", out, *more)
        assert status == 0 and "trained on 30 of 30 pairs" in printed, complained
        steps.append(json.loads((out / "evaluation.json").read_text())["steps"])
        assert (out / "sft_dataset.json").exists() == (not more)
    assert steps[0] == steps[1]
    status, _, complained = run_main(sft.main, "--stream", "--data", tmp_path / "data.jsonl")
    assert status == 2 and complained.startswith("error: --stream needs") and complained.count("\n") == 1
