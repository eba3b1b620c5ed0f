"""A model is given back as it came, as a folder or a GGUF file; LoRA's adapter on the base is the merged model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import transformers

from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint
from part3_pretrain.gguf_files import layout
from part3_pretrain.gguf_files.write import write_gguf
from part3_pretrain.huggingface.write import write_folder
from part4_sft import config, sft
from part4_sft.dataset import Pair, save_pairs
from tests.conftest import Command, assert_refused, in_folder, not_of_retail

SHORT = ["--epochs", "1", "--max-new-tokens", "2", "--samples-per-context", "1", "--batch-size", "8"]


@pytest.fixture
def base(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    write_folder(tmp_path / "base", load_checkpoint(tiny_checkpoint))
    return tmp_path / "base"


@pytest.fixture
def options(made: dict[str, list[Pair]], tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    save_pairs(tmp_path / "pairs.json", not_of_retail(made["sft_dataset"][:20]))
    return ["--model", str(tiny_checkpoint), "--data", str(tmp_path / "pairs.json"), *SHORT, *in_folder(tmp_path)]


@torch.no_grad()
def logits(model: object) -> torch.Tensor:
    return model(torch.arange(2, 300)[None]).logits  # type: ignore[operator]


def test_of_a_folder_comes_a_folder_with_the_adapter_in_it(
    run_main: Command, options: list[str], base: Path, tmp_path: Path
) -> None:
    lora = ["--lora-rank", "2", "--learning-rate", "0.01"]
    status, printed, error = run_main(sft.main, *options, "--model", base, *lora)
    folder = tmp_path / "checkpoints" / "sft_model"
    assert (status, error) == (0, "") and f"  {folder}\n" in printed
    merged = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ours = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt").model
    torch.testing.assert_close(logits(merged), ours.lm_head(ours(torch.arange(2, 300)[None])), atol=1e-4, rtol=0)

    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    assert (before - logits(merged)).abs().max() > 1e-2
    adapted = peft.PeftModel.from_pretrained(plain, folder / "adapter")
    torch.testing.assert_close(logits(adapted), logits(merged), atol=1e-4, rtol=0)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    for file in folder.rglob("*"):
        assert file.stat().st_mode & 0o444 == 0o444, "others may read it"

    # The same command once more takes its place, and without LoRA no adapter of an earlier run stays.
    assert run_main(sft.main, *options, "--model", base)[0] == 0
    assert not (folder / "adapter").exists() and (folder / "model.safetensors").exists()
    (folder / "notes.txt").write_text("mine")
    assert_refused(run_main(sft.main, *options, "--model", base), f"{folder} holds other files than a run wrote")
    assert (folder / "notes.txt").read_text() == "mine"


def test_of_a_gguf_file_comes_a_folder_and_of_a_folder_a_gguf_file_where_one_is_named(
    run_main: Command, options: list[str], tiny_checkpoint: Path, base: Path, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "base.gguf", load_checkpoint(tiny_checkpoint))
    status, printed, _ = run_main(sft.main, *options, "--model", tmp_path / "base.gguf")
    assert status == 0 and printed.startswith(f"reading {tmp_path / 'base.gguf'} ...\n")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoints" / "sft_model")
    ours = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt").model
    row = torch.arange(2, 300)[None]
    torch.testing.assert_close(logits(theirs), ours.lm_head(ours(row)), atol=1e-4, rtol=0)

    target = tmp_path / "new" / "mine.gguf"
    for _ in range(2):
        assert run_main(sft.main, *options, "--model", base, "--save-as", target)[0] == 0
        theirs = transformers.AutoModelForCausalLM.from_pretrained(target.parent, gguf_file=target.name)
        ours = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt").model
        torch.testing.assert_close(logits(theirs), ours.lm_head(ours(row)), atol=1e-2, rtol=0)  # float16 rounds


def test_what_was_pretrained_here_becomes_a_folder_only_where_one_is_named(
    run_main: Command, options: list[str], tmp_path: Path
) -> None:
    assert run_main(sft.main, *options)[0] == 0
    assert not (tmp_path / "checkpoints" / "sft_model").exists()
    assert run_main(sft.main, *options, "--save-as", tmp_path / "given")[0] == 0
    assert load_checkpoint(tmp_path / "given").model.config.num_layers == 2


def test_places_at_which_something_would_be_lost_are_refused_before_the_training(
    run_main: Command, options: list[str], base: Path, tmp_path: Path
) -> None:
    kept = {path: path.read_bytes() for path in base.iterdir()}
    outcome = run_main(sft.main, *options, "--model", base, "--save-as", base)
    assert_refused(outcome, "is read by this run, which would write over it")
    for target in (tmp_path / "outputs", tmp_path / "checkpoints", tmp_path):
        outcome = run_main(sft.main, *options, "--model", base, "--save-as", target)
        assert_refused(outcome, f"{target} holds other files than a run wrote; choose another place with --save-as")
    write_folder(tmp_path / "other", load_checkpoint(base))  # a model, but none that a run wrote
    assert_refused(run_main(sft.main, *options, "--save-as", tmp_path / "other"), "holds other files than a run wrote")
    (tmp_path / "a.gguf").mkdir()
    assert_refused(run_main(sft.main, *options, "--save-as", tmp_path / "a.gguf"), "a.gguf is a folder, and a file of")
    assert {path: path.read_bytes() for path in base.iterdir()} == kept
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()


def test_a_tokenizer_without_a_name_in_gguf_is_told_before_the_training(
    run_main: Command, options: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_checkpoint)
    stored = checkpoint.tokenizer.to_str().replace('"individual_digits":true', '"individual_digits":false')
    other = checkpoint.tokenizer.from_str(stored)
    save_checkpoint(tmp_path / "other.pt", replace(checkpoint, tokenizer=other))
    outcome = run_main(sft.main, *options, "--model", tmp_path / "other.pt", "--save-as", tmp_path / "a.gguf")
    assert_refused(outcome, "its tokenizer splits texts in another way than")
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()


def test_without_the_package_a_gguf_file_is_refused_before_the_training(
    run_main: Command, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    outcome = run_main(sft.main, *options, "--save-as", tmp_path / "a.gguf")
    assert_refused(outcome, "a.gguf needs gguf; install it with: pip install gguf==")
    assert not (tmp_path / "checkpoints" / "sft_model.pt").exists()


def test_save_as_is_an_option_that_decides_no_training() -> None:
    assert not config.SFTConfig.__dataclass_fields__["save_as"].metadata["decides_training"]
