"""Pretraining through its command line, and the parts of a step."""

from __future__ import annotations

import copy
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from part3_pretrain import run
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.config import PretrainConfig
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.loss_curve import smoothed
from part3_pretrain.model import Transformer
from part3_pretrain.pretrain import main
from part3_pretrain.run import (
    Batch,
    learning_rate_factor,
    make_batches,
    make_optimizer,
    next_token_loss,
    pretrain,
    read_corpus,
    training_step,
)
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.distributed import LossModule
from part3_pretrain.runtime.training_state import TrainingState
from tests.conftest import ROOT, Command, assert_refused, weights

CHECKPOINT, PICTURE = Path("checkpoints/pretrained.pt"), Path("outputs/pretraining_loss_curve.png")
SMALL = ["--conversations", "60", "--vocab-size", "500", "--warmup-steps", "2"]
CONFIG = PretrainConfig(conversations=120, vocab_size=500, tokens_per_batch=512, warmup_steps=3)


@pytest.fixture
def command(run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return partial(run_main, main)


@pytest.mark.slow
def test_same_seed_same_files(command: Command, tmp_path: Path) -> None:
    """Writes the checkpoint and the picture of the loss; and, as a process of its own, the same ones."""
    assert command(*SMALL, "--seed", "5")[0] == 0
    second = tmp_path / "second"
    second.mkdir()
    arguments = [sys.executable, "-m", "part3_pretrain.pretrain", *SMALL, "--seed", "5"]
    subprocess.run(arguments, cwd=second, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert sorted(path for path in second.rglob("*") if path.is_file()) == [second / CHECKPOINT, second / PICTURE]
    assert (second / PICTURE).read_bytes() == (tmp_path / PICTURE).read_bytes()
    loaded, again = load_checkpoint(tmp_path / CHECKPOINT), load_checkpoint(second / CHECKPOINT)
    assert torch.equal(weights(loaded.model), weights(again.model))
    assert loaded.tokenizer.get_vocab_size() == loaded.model.config.vocab_size == 500
    assert loaded.made_by == {
        "conversations": 60,
        "vocab_size": 500,
        "tokens_per_batch": 1024,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "dtype": "auto",
        "shard": False,
        "seed": 5,
        "corpus": "synthetic retail conversations",
    }


def test_own_text_files_can_be_read_instead(command: Command, tmp_path: Path) -> None:
    files = [tmp_path / "notes.txt", tmp_path / "letters.txt"]
    files[0].write_text("Der Tisch ist schön. " * 200, encoding="utf-8")
    files[1].write_text("short", encoding="utf-8")
    status, printed, _ = command("--corpus", *files, "--checkpoint", "mine.pt", "--out-dir", "pictures")
    assert status == 0 and re.match(r"pretraining: step \d+ of \d+, loss \d", printed)
    assert 0 < float(re.search(r"ended at a loss of (.+) nats per token", printed)[1]) < 10
    checkpoint = load_checkpoint(tmp_path / "mine.pt")
    assert len(checkpoint.tokenizer.encode("Der Tisch ist schön.").ids) < 10
    assert checkpoint.made_by["corpus"] == ["notes.txt", "letters.txt"]
    assert (tmp_path / "pictures" / PICTURE.name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        (None, "cannot read {}: No such file or directory; name a file"),
        (b" \n", "{} holds no text; leave it out"),
        (b"Sch\xf6n", "{} is not UTF-8 text (byte 3); save it as UTF-8"),
    ],
)
def test_a_corpus_file_that_cannot_be_used_is_refused(
    contents: bytes | None, complaint: str, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "notes.txt"
    if contents is not None:
        path.write_bytes(contents)
    assert_refused(command("--corpus", path), complaint.format(path))
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_folder_in_the_place_of_a_file_is_told_before_any_work(command: Command, tmp_path: Path) -> None:
    for name in (CHECKPOINT, PICTURE, CHECKPOINT.with_suffix(".state.pt")):
        (tmp_path / name).mkdir(parents=True)
        assert_refused(command(), f"{name} is a folder")  # of 80,000 conversations, it makes none
        (tmp_path / name).rmdir()


# ---------------------------------------------------------------------------------------------------- training


def test_every_text_is_seen_once_among_batches_to_copy(tokenizer: Tokenizer) -> None:
    texts = [f"This is document {number}." for number in range(2000)]
    batches = make_batches(texts, tokenizer, CONFIG)
    text_batches = [batch for batch in batches if batch.is_text]
    assert sum(len(batch.inputs) for batch in text_batches) == 2000
    assert len(batches) - len(text_batches) == round(0.06 * len(text_batches)) > 0
    assert not all(batch.is_text for batch in batches[: len(text_batches)])  # shuffled
    assert torch.equal(batches[0].inputs, make_batches(texts, tokenizer, CONFIG)[0].inputs)


def test_a_step_is_adamw_on_the_mean_loss_with_a_clipped_gradient(tiny_model: Transformer) -> None:
    """As in GPT-3 (Brown et al. 2020, appendix B): betas 0.9 and 0.95, weight decay 0.1, gradients clipped at 1."""
    torch.manual_seed(0)
    model, naive = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    optimizer = make_optimizer(model)
    no_decay = [parameter for name, parameter in naive.named_parameters() if "norm" in name]
    decay = [parameter for name, parameter in naive.named_parameters() if "norm" not in name]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": no_decay, "weight_decay": 0.0}]
    expected = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for _ in range(3):
        targets = torch.randint(600, (2, 9))
        targets[1, 4:] = IGNORE_INDEX
        batch = Batch(torch.randint(600, (2, 9)), targets, True)
        loss = training_step(LossModule(model, next_token_loss), optimizer, batch)
        mean = torch.nn.functional.cross_entropy(naive.lm_head(naive(batch.inputs)).flatten(0, 1), targets.flatten())
        expected.zero_grad()
        mean.backward()
        norm = torch.cat([parameter.grad.flatten() for parameter in naive.parameters()]).norm()
        assert norm > 1
        for parameter in naive.parameters():
            parameter.grad /= norm
        expected.step()
        assert loss == pytest.approx(mean.item())
        torch.testing.assert_close(weights(model), weights(naive), rtol=1e-4, atol=1e-6)


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    factors = [learning_rate_factor(step, 10, 100) for step in range(1, 102)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10] == 1 and factors[55] == pytest.approx(0.5) and factors[100] == pytest.approx(0)
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_the_loss_falls_at_the_learning_rates_of_the_schedule() -> None:
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *arguments: rates.append(optimizer.param_groups[1]["lr"]))
    _, _, losses = pretrain(read_corpus(CONFIG), CONFIG)
    hook.remove()
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 1
    assert rates == [2e-3 * learning_rate_factor(step, 3, len(rates)) for step in range(1, len(rates) + 1)]
    assert len(losses) < len(rates)  # those of batches to copy are not reported


def test_a_gradient_that_is_not_finite_ends_the_training_and_the_state_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def overflowing(*batch: Any) -> torch.Tensor:
        calls.append(batch)
        return next_token_loss(*batch) * (float("inf") if len(calls) == 5 else 1)

    monkeypatch.setattr(run, "next_token_loss", overflowing)
    state = TrainingState(tmp_path / "state.pt", save_every=100)
    with pytest.raises(UserError, match=r"^the loss of step 5 is inf, its gradient nan; lower --learning-rate$"), state:
        pretrain(read_corpus(CONFIG), CONFIG, state)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert saved["values"]["steps_done"] == 4 >= len(saved["values"]["losses"]) > 0
    assert all(weight.isfinite().all() for weight in saved["model"].values())


# ---------------------------------------------------------------------------------------------------- the picture


def test_the_smoothed_curve_is_the_mean_of_the_losses_so_far_weighted_towards_the_last() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3] * 5)
    assert smoothed([4.0, 1.0], decay=0.5) == pytest.approx([4, 2])  # (1 * 4 + 2 * 1) / 3
    assert smoothed([]) == []
    assert smoothed([1.0, 0.0]) == smoothed([1.0, 0.0], decay=0.95)
