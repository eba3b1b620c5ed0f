"""Checkpoints: what is saved comes back. What is damaged or hostile is in test_damaged_checkpoints."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.tokenizer import train_tokenizer

MADE_BY = {"seed": 3, "learning_rate": 2e-3, "corpus": None}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the walnut bookshelf arrived broken"] * 10, 270)


@pytest.fixture
def model(tokenizer: Tokenizer) -> Transformer:
    torch.manual_seed(0)
    return Transformer(ModelConfig(tokenizer.get_vocab_size(), 32, 48, 2, 4, 2))


@pytest.fixture
def path(tmp_path: Path, model: Transformer, tokenizer: Tokenizer) -> Path:
    path = tmp_path / "new folder" / "model.pt"
    save_checkpoint(path, Checkpoint(model, tokenizer, MADE_BY))
    return path


def test_everything_comes_back(path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    checkpoint = load_checkpoint(path)
    loaded, loaded_tokenizer = checkpoint.model, checkpoint.tokenizer
    text = "the walnut <EOS> arrived"
    ids = loaded_tokenizer.encode(text).ids
    assert ids == tokenizer.encode(text).ids
    tokens = torch.tensor([ids])
    assert torch.equal(loaded.lm_head(loaded(tokens)), model.lm_head(model(tokens)))
    assert loaded.config == model.config
    assert loaded.lm_head.weight is loaded.embed_tokens.weight
    assert checkpoint.made_by == MADE_BY


def test_a_missing_file_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing\.pt: .*python -m part3_pretrain\.pretrain"):
        load_checkpoint(tmp_path / "missing.pt")


def test_the_same_checkpoint_is_the_same_bytes_in_whichever_process(
    tmp_path: Path, path: Path, model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 12345678)
    save_checkpoint(tmp_path / "again.pt", Checkpoint(model, tokenizer, MADE_BY))
    assert (tmp_path / "again.pt").read_bytes() == path.read_bytes()


def test_a_save_that_fails_leaves_the_old_file_alone(path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, Checkpoint(model, tokenizer, {"cannot be saved": lambda: None}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_path_that_cannot_be_looked_at_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*; name a file that is there and may be read"):
        load_checkpoint(tmp_path / ("a" * 300))
