"""What several test files share: made data, a small vocabulary, and a model so small that it runs in milliseconds."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; commands started by tests inherit it

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.command_line import exit_status
from part3_pretrain.corpus import draw_conversation
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.tokenizer import train_tokenizer
from part4_sft.dataset import Pair, make_datasets
from part4_sft.encoding import PairEncoder

Command = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def run_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls the `main` of a command with arguments; returns its exit status and what went to stdout and stderr."""

    def call(main: Callable[[], None], *arguments: object) -> tuple[int | str | None, str, str]:
        monkeypatch.setattr(sys, "argv", [main.__module__, *map(str, arguments)])
        try:
            status: int | str | None = exit_status(main)
        except SystemExit as stop:
            status = stop.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def made() -> dict[str, list[Pair]]:
    """The five synthetic data sets of seed 0."""
    return make_datasets(0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    rng = Random(0)
    return train_tokenizer([draw_conversation(rng) for _ in range(300)], vocab_size=600)


@pytest.fixture(scope="session")
def encoder(tokenizer: Tokenizer) -> PairEncoder:
    return PairEncoder(tokenizer, eos_id=tokenizer.token_to_id("<EOS>"))


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> Transformer:
    """Random weights; a test that trains it takes a copy."""
    torch.manual_seed(0)
    shape = ModelConfig(tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_layers=2)
    return Transformer(shape).eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_model: Transformer, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    save_checkpoint(path, Checkpoint(tiny_model, tokenizer, {"seed": 0}))
    return path
