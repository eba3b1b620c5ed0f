"""Options of `python -m part4_sft.sft`: which are refused before anything is imported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from part3_pretrain.runtime.cli import UserError
from part4_sft import config
from part4_sft.config import SFTConfig, needs_pretraining, parse_arguments

Told = Callable[[list[str]], str]


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        parse_arguments(["--help"])
    printed = capsys.readouterr().out
    for field in fields(SFTConfig):
        assert f"--{field.name.replace('_', '-')} " in printed


def test_without_options_it_is_the_assignments_setting() -> None:
    defaults = parse_arguments([])
    assert defaults == SFTConfig()
    setting = (defaults.epochs, defaults.learning_rate, defaults.train_on, defaults.temperature, defaults.seed)
    assert setting == (5, 5e-5, "high", 0.4, 0)
    assert (defaults.schedule, defaults.warmup_steps, defaults.max_grad_norm) == ("constant", 0, 0)


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("--epochs", ["1"], ["0", "-1", "many", "1.5"]),
        ("--batch-size", ["1"], ["0"]),
        ("--micro-batch-size", ["0", "1"], ["-1", "0.5"]),
        ("--schedule", ["constant", "linear", "cosine"], ["polynomial"]),
        ("--warmup-steps", ["0"], ["-1", "0.1"]),
        ("--max-grad-norm", ["0", "0.5"], ["-1", "nan", "inf"]),
        ("--max-length", ["2"], ["1"]),
        ("--learning-rate", ["1e-9"], ["0", "inf", "nan", "-1"]),
        ("--seed", ["0", "9223372036854775807"], ["-1", "9223372036854775808"]),
        ("--temperature", ["0", "0.001", "1000"], ["0.0009", "-1", "1001", "nan"]),
        ("--top-k", ["0"], ["-1"]),
        ("--top-p", ["0.001", "1"], ["0", "1.1", "nan"]),
        ("--max-new-tokens", ["1"], ["0"]),
        ("--samples-per-context", ["1"], ["0"]),
        ("--save-every", ["1"], ["0"]),
        ("--lora-rank", ["0", "1"], ["-1"]),
        ("--train-on", ["high", "all"], ["low"]),
        ("--device", ["auto", "cpu", "cuda"], ["nonsense"]),
        ("--dtype", ["float32", "bfloat16"], ["float16"]),
        ("--moments-dtype", ["float32"], ["float16"]),
        ("--prompt-template", ["{context}"], ["", "{context}{context}", "Q: A:"]),
    ],
)
def test_the_bounds_of_options(option: str, good: list[str], bad: list[str]) -> None:
    for value in good:
        parse_arguments([f"{option}={value}"])
    for value in bad:
        with pytest.raises(UserError, match=f"^.*{option}.*; see python -m part4_sft.sft --help$"):
            parse_arguments([f"{option}={value}"])


@pytest.mark.parametrize("fraction", ["0", "0.5", "-0.1", "nan"])
def test_the_bounds_of_a_share_of_the_data(fraction: str) -> None:
    parse_arguments(["--data", "mine.json", "--test-fraction", "0.49"])
    with pytest.raises(UserError, match="--test-fraction must be"):
        parse_arguments(["--data", "mine.json", "--test-fraction", fraction])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--moments-dtype bfloat16", "--dtype bfloat16"),
        ("--test-fraction 0.2", "name a file with --data"),
        ("--columns context=a response=b", "--columns names those of --data; name a file with --data too"),
        ("--gradient-accumulation-steps 4", "multiplies the batch in every other tool, and divided it here; use --mic"),
        ("--gradient-accumulation-steps=4", "use --micro-batch-size"),
        ("--gradient-accum 4", "use --micro-batch-size"),
        ("--stream", "--data, --validation-data and --test-data"),
        ("--stream --data a --test-data b", "--data, --validation-data and --test-data"),
        (
            "--chat-template model --prompt-template {context}",
            "--chat-template model does not go together with --prompt-template; choose one of them",
        ),
        ("--shard --lora-rank 1", "--shard does not go together with --lora-rank"),
        ("--shard --compile", "--shard does not go together with --compile"),
        ("--shard --dtype bfloat16 --moments-dtype bfloat16", "--shard does not go together with --moments-dtype"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: str, complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        parse_arguments(options.split())


@pytest.mark.parametrize(("options", "package"), [("--lora-rank 1", "peft"), ("--tensorboard logs", "tensorboard")])
def test_an_optional_package_that_is_missing_is_told_with_how_to_install_it(
    options: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse_arguments(options.split())
    monkeypatch.setattr(config, "find_spec", lambda name: None)
    parse_arguments([])
    with pytest.raises(UserError, match=f"needs {package}; install it with: pip install {package}=="):
        parse_arguments(options.split())


def test_only_the_default_checkpoint_is_pretrained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert needs_pretraining(SFTConfig()) and not needs_pretraining(SFTConfig(model=Path("checkpoints/other.pt")))
    Path("checkpoints").mkdir()
    Path("checkpoints/pretrained.pt").touch()
    assert not needs_pretraining(SFTConfig())
