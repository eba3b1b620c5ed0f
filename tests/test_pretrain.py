"""Pretraining through its command line, and the parts of a step."""

from __future__ import annotations

import copy
import math
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from part3_pretrain import run
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.config import NEW_MODEL_RATE, PretrainConfig
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.loss_curve import smoothed
from part3_pretrain.model import Transformer
from part3_pretrain.pretrain import main
from part3_pretrain.run import learning_rate_factor, make_batches, next_token_loss, pretrain, read_corpus
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
    assert command(*SMALL, "--seed", "5")[0] == 0
    second = tmp_path / "second"
    second.mkdir()
    arguments = [sys.executable, "-m", "part3_pretrain.pretrain", *SMALL, "--seed", "5"]
    subprocess.run(arguments, cwd=second, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    assert sorted(path for path in second.rglob("*") if path.is_file()) == [second / CHECKPOINT, second / PICTURE]
    for name in (CHECKPOINT, PICTURE):
        assert (second / name).read_bytes() == (tmp_path / name).read_bytes()
    loaded = load_checkpoint(CHECKPOINT)
    assert loaded.tokenizer.get_vocab_size() == loaded.model.config.vocab_size == 500
    options: dict[str, object] = {"conversations": 60, "epochs": 1, "vocab_size": 500, "tokens_per_batch": 2048}
    options |= {
        "learning_rate": NEW_MODEL_RATE,
        "warmup_steps": 2,
        "device": "auto",
        "dtype": "auto",
        "shard": False,
        "seed": 5,
    }
    assert loaded.made_by == options | {"corpus": "synthetic retail documents"}


def test_own_text_files_can_be_read_instead(command: Command, tmp_path: Path) -> None:
    files = [tmp_path / "notes.txt", tmp_path / "letters.txt"]
    files[0].write_text("Der Tisch ist schön. " * 200, encoding="utf-8")
    files[1].write_text("short", encoding="utf-8")
    status, printed, _ = command("--corpus", *files, "--checkpoint", "mine.pt", "--out-dir", "pictures")
    assert status == 0 and re.match(r"2 documents to read\npretraining: step \d+ of \d+, loss \d", printed)
    checkpoint = load_checkpoint(tmp_path / "mine.pt")
    assert len(checkpoint.tokenizer.encode("Der Tisch ist schön.").ids) < 10
    assert checkpoint.made_by["corpus"] == ["notes.txt", "letters.txt"]
    assert (tmp_path / "pictures" / PICTURE.name).read_bytes().startswith(b"\x89PNG")


def test_a_corpus_file_that_cannot_be_used_is_refused(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    assert_refused(command("--corpus", path), f"cannot read {path}: No such file or directory; name a file")
    for contents, complaint in ((b" \n", "holds no text; leave"), (b"Sch\xf6n", "is not UTF-8 text (byte 3); save it")):
        path.write_bytes(contents)
        with pytest.raises(UserError, match=re.escape(f"{path} {complaint}")):
            read_corpus(PretrainConfig([path]))


def test_a_folder_in_the_place_of_a_file_is_told_before_any_work(command: Command, tmp_path: Path) -> None:
    for name in (CHECKPOINT, PICTURE, CHECKPOINT.with_suffix(".state.pt")):
        (tmp_path / name).mkdir(parents=True)
        assert_refused(command(), f"{name} is a folder")  # of 140,000 documents, it makes none
        (tmp_path / name).rmdir()


def test_a_device_that_is_not_there_is_told_before_any_work(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(run, "read_corpus", None)
    assert_refused(command("--device", "cuda"), "--device cuda cannot be used, since torch finds no such device here")


def test_batches_go_to_the_device_of_the_weights(tiny_model: Transformer) -> None:
    """`meta` stands for a GPU: it computes shapes, and a tensor that was left on the CPU is refused."""
    model = copy.deepcopy(tiny_model).to("meta")
    losses: list[torch.Tensor] = []

    def loss(model: Transformer, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses.append(next_token_loss(model, inputs, targets))
        return losses[0]

    with pytest.raises(RuntimeError, match="meta"):  # whose loss is no number
        run.training_step(
            LossModule(model, loss), run.make_optimizer(model, CONFIG, torch.float32), *torch.randint(600, (2, 2, 9))
        )
    assert [tensor.is_meta for tensor in losses] == [True]


def test_the_loss_is_that_of_all_targets_but_those_to_be_ignored(tiny_model: Transformer) -> None:
    inputs, targets = torch.randint(600, (2, 3, 70))
    for ignored in (0, 30, 70):  # columns
        targets[:, :ignored] = IGNORE_INDEX
        logits = tiny_model.lm_head(tiny_model(inputs)).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, targets.flatten(), reduction="sum")
        loss = next_token_loss(tiny_model, inputs, targets)
        assert torch.allclose(loss, expected) and loss.requires_grad
        assert (loss == 0) == (ignored == 70)


def test_every_text_is_seen_once_among_batches_to_copy(tiny_model: Transformer, tokenizer: Tokenizer) -> None:
    checkpoint = Checkpoint(tiny_model, tokenizer, {})
    texts = [f"This is document {number}." for number in range(2000)]
    batches = make_batches(texts, checkpoint, CONFIG)
    rows_of_text = [len(inputs) for inputs, _, is_text in batches if is_text]
    assert sum(rows_of_text) == 2000
    assert len(batches) - len(rows_of_text) == round(0.06 * len(rows_of_text)) > 0
    assert not all(is_text for _, _, is_text in batches[: len(rows_of_text)])  # shuffled
    assert torch.equal(batches[0][0], make_batches(texts, checkpoint, CONFIG)[0][0])


def test_going_on_takes_steps_of_adamw_on_the_mean_loss_with_a_clipped_gradient(
    tiny_model: Transformer,
) -> None:
    """As in GPT-3 (Brown et al. 2020, appendix B): betas 0.9 and 0.95, weight decay 0.1, gradients clipped at 1."""
    torch.manual_seed(0)
    model, naive = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    optimizer = run.make_optimizer(model, PretrainConfig(model=Path("theirs.pt")), torch.float32)
    groups = [
        {"params": [p for name, p in naive.named_parameters() if ("norm" in name) == is_norm], "weight_decay": decay}
        for is_norm, decay in ((False, 0.1), (True, 0.0))
    ]
    expected = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
    for _ in range(3):
        inputs, targets = torch.randint(600, (2, 2, 9))
        targets[1, 4:] = IGNORE_INDEX
        loss = run.training_step(LossModule(model, next_token_loss), optimizer, inputs, targets)
        mean = torch.nn.functional.cross_entropy(naive.lm_head(naive(inputs)).flatten(0, 1), targets.flatten())
        expected.zero_grad()
        mean.backward()
        assert torch.nn.utils.clip_grad_norm_(naive.parameters(), 1.0) > 1
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
    _, losses = pretrain(read_corpus(CONFIG), replace(CONFIG, warmup_steps=150))
    hook.remove()
    assert sum(losses[-3:]) / 3 < sum(losses[:3]) / 3 - 0.5
    steps = range(1, len(rates) + 1)
    rising = math.ceil(len(rates) / 10)  # with 150, it would rise to the end
    assert rates == [NEW_MODEL_RATE * learning_rate_factor(step, rising, len(rates)) for step in steps]
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


@pytest.mark.parametrize("name", ["base.pt", "base.state.pt", "pretraining_loss_curve.png"])
def test_a_corpus_is_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("precious")
    config = replace(CONFIG, corpus=[tmp_path / name], checkpoint=tmp_path / "base.pt", out_dir=tmp_path)
    with pytest.raises(UserError, match="is read by this run, which would write over it"):
        run.run(config)
    assert (tmp_path / name).read_text() == "precious"


def test_a_vocabulary_larger_than_any_is_refused(command: Command) -> None:
    assert_refused(command("--vocab-size", 10**20), "--vocab-size must be 300 to 2^24, not 1")


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_checkpoint_that_is_a_folder_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="is a folder"):
        run.run(replace(CONFIG, checkpoint=Path(name)))


def test_each_checkpoint_has_a_state_file_of_its_own() -> None:
    names = [str(run.state_file(Path(name))) for name in ("a/base.pt", "base-1.5", "base-1.7")]
    assert names == ["a/base.state.pt", "base-1.5.state.pt", "base-1.7.state.pt"]


def test_the_smoothed_curve_is_the_mean_of_the_losses_so_far_weighted_towards_the_last() -> None:
    assert smoothed([3.0] * 5) == pytest.approx([3] * 5)
    assert smoothed([4.0, 1.0], decay=0.5) == pytest.approx([4, 2])  # (1 * 4 + 2 * 1) / 3
    assert smoothed([]) == []
    assert smoothed([1.0, 0.0]) == smoothed([1.0, 0.0], decay=0.95)


@pytest.mark.parametrize(
    ("dtype", "has_instructions", "used"),
    [("float32", True, False), ("bfloat16", False, True), ("auto", True, True), ("auto", False, False)],
)
def test_products_are_in_bfloat16_where_that_is_asked_for_or_fast(
    dtype: str, has_instructions: bool, used: bool, tiny_model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Transformer] = []
    monkeypatch.setattr(run, "multiplies_bfloat16", lambda: has_instructions)
    monkeypatch.setattr(run, "bfloat16_products", lambda model: models.append(model) or nullcontext())  # type: ignore[func-returns-value]
    run.train(copy.deepcopy(tiny_model), [], replace(CONFIG, dtype=dtype), TrainingState())
    run.train(copy.deepcopy(tiny_model).to("meta"), [], replace(CONFIG, dtype=dtype), TrainingState())
    assert len(models) == used + (dtype == "bfloat16")  # elsewhere, what the processor can do counts for nothing


def test_pretraining_goes_on_with_a_model_from_elsewhere(
    command: Command, tmp_path: Path, tiny_model: Transformer, tokenizer: Tokenizer
) -> None:
    """Its tokenizer, shape and chat template stay, every token is learnt, and its own learning rate is lower."""
    shape = replace(tiny_model.config, max_positions=40)
    model = Transformer(shape)
    before = weights(model).clone()
    settings = {"tokenizer_config.json": {"chat_template": "{{ messages }}"}}
    save_checkpoint(Path("base.pt"), Checkpoint(model, tokenizer, {}, settings))
    write_folder(tmp_path / "folder", load_checkpoint(Path("base.pt")))
    pages = ["Customer: Hello.\nTicket: greeting.", "The shop opens at nine. " * 30]
    Path("pages.txt").write_text("<|endoftext|>\n".join(pages * 20), encoding="utf-8")
    batches: list[torch.Tensor] = []
    hook = register_module_forward_pre_hook(
        lambda module, given: batches.append(given[1]) if isinstance(module, LossModule) else None
    )
    status, _, errors = command("--model", "folder", "--corpus", "pages.txt", "--checkpoint", "pages.pt")
    hook.remove()
    assert status == 0, errors
    trained = load_checkpoint(Path("pages.pt"))
    assert trained.tokenizer.to_str() == tokenizer.to_str()
    assert trained.hugging_face["tokenizer_config.json"]["chat_template"] == "{{ messages }}"
    assert trained.model.config == load_checkpoint(Path("folder")).model.config
    assert trained.made_by["from"] == "folder" and trained.made_by["learning_rate"] == 3e-4
    assert 0 < (weights(trained.model) - before).abs().max() < 0.01
    words = [tokenizer.decode(row[row != IGNORE_INDEX].tolist()) for targets in batches for row in targets]
    assert any("Hello" in text for text in words)  # nothing is masked
    assert max(targets.shape[1] for targets in batches) == 39  # of the model's 40 positions
    assert (torch.cat([targets.flatten() for targets in batches]) == 1).sum() == 40  # a document ends as its replies do


def test_a_small_corpus_can_be_read_more_than_once(tiny_model: Transformer, tokenizer: Tokenizer) -> None:
    checkpoint, config = Checkpoint(tiny_model, tokenizer, {}), replace(CONFIG, model=Path("any"), epochs=3)
    texts = [f"Page {number} of the shop." for number in range(100)]
    batches = make_batches(texts, checkpoint, config)
    first_words = [tuple(row[:6].tolist()) for inputs, _, _ in batches for row in inputs]
    assert len(first_words) == 300 and {first_words.count(words) for words in first_words} == {3}
    assert first_words[:100] != first_words[100:200]  # in another order each time


def test_a_vocabulary_is_of_a_new_model(command: Command, tiny_checkpoint: Path) -> None:
    assert_refused(command("--model", tiny_checkpoint, "--vocab-size", 500), "--vocab-size is of a new model")


def test_the_model_to_go_on_from_is_kept(command: Command, tiny_checkpoint: Path) -> None:
    before = tiny_checkpoint.read_bytes()
    outcome = command("--model", tiny_checkpoint, "--checkpoint", tiny_checkpoint)
    assert_refused(outcome, "is read by this run, which would write over it")
    assert tiny_checkpoint.read_bytes() == before
