"""Pretraining through its command line, and the parts of a step."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.config import PretrainConfig
from part3_pretrain.pretrain import main
from part3_pretrain.run import learning_rate_factor, pretrain, read_corpus

Command = Callable[..., tuple[int | str | None, str, str]]
ROOT = Path(__file__).parents[1]
CHECKPOINT, PICTURE = Path("checkpoints/pretrained.pt"), Path("outputs/pretraining_loss_curve.png")
SMALL = ["--conversations", "60", "--vocab-size", "500", "--warmup-steps", "2"]


@pytest.fixture
def command(run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return partial(run_main, main)


def assert_refused(outcome: tuple[int | str | None, str, str], complaint: str) -> None:
    """Status 2, and one line that says what is wrong."""
    status, _, complained = outcome
    assert status == 2
    assert complained.startswith("error: ") and complaint in complained and complained.count("\n") == 1


@pytest.mark.slow
def test_same_seed_same_files(run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes the checkpoint and the picture of the loss; and, as a process of its own, the same ones."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.chdir(first)
    assert run_main(main, *SMALL, "--seed", "5")[0] == 0
    subprocess.run(
        [sys.executable, "-m", "part3_pretrain.pretrain", *SMALL, "--seed", "5"],
        cwd=second,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    weights = []
    for folder in (first, second):
        assert sorted(path for path in folder.rglob("*") if path.is_file()) == [folder / CHECKPOINT, folder / PICTURE]
        assert (folder / PICTURE).read_bytes().startswith(b"\x89PNG")
        loaded = load_checkpoint(folder / CHECKPOINT)
        model, tokenizer, made_by = loaded.model, loaded.tokenizer, loaded.made_by
        assert tokenizer.get_vocab_size() == model.config.vocab_size == 500
        assert (made_by["seed"], made_by["conversations"]) == (5, 60)
        weights.append(model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_own_text_files_can_be_read_instead(command: Command, tmp_path: Path) -> None:
    files = [tmp_path / "notes.txt", tmp_path / "letters.txt"]
    files[0].write_text("Der Tisch ist schön. " * 200, encoding="utf-8")
    files[1].write_text("short", encoding="utf-8")
    status, printed, _ = command("--corpus", *files, "--checkpoint", "mine.pt", "--out-dir", "pictures")
    assert status == 0 and re.match(r"pretraining: step \d+ of \d+, loss \d", printed)
    tokenizer = load_checkpoint(tmp_path / "mine.pt").tokenizer
    assert len(tokenizer.encode("Der Tisch ist schön.").ids) < 10
    assert (tmp_path / "pictures" / PICTURE.name).is_file()


@pytest.mark.parametrize("contents", [None, b" \n", b"Sch\xf6n"], ids=["missing", "empty", "not UTF-8"])
def test_a_corpus_file_that_cannot_be_used_is_told_in_one_line(
    command: Command, tmp_path: Path, contents: bytes | None
) -> None:
    path = tmp_path / "notes.txt"
    if contents is not None:
        path.write_bytes(contents)
    assert_refused(command("--corpus", path), str(path))
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_folder_as_the_checkpoint_file_is_told_in_one_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    assert_refused(command(*SMALL, "--checkpoint", "models"), "models is a folder")


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [learning_rate_factor(step, 10, 100) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert 0 < factors[0] < 0.2
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert max(factors) == factors[10] == 1.0
    assert 0 < factors[-1] < 0.01


def test_loss_falls() -> None:
    config = PretrainConfig(conversations=120, vocab_size=500, tokens_per_batch=512, warmup_steps=3)
    _, _, losses = pretrain(read_corpus(config), config)
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 1
