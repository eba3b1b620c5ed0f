"""Talking to both models, through the real command line and in a real pseudo-terminal."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft import chat
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling
from part4_sft.metrics import generate_replies
from tests.conftest import Command, Terminal

CONTEXT = "The tiered planter has a large crack (order 48213)."


@pytest.fixture(scope="module")
def sft_checkpoint(tiny_checkpoint: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another tiny model, which says that it was fine-tuned from the first one."""
    torch.manual_seed(1)
    model = Transformer(ModelConfig(tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_layers=2))
    path = tmp_path_factory.mktemp("fine-tuned") / "sft_model.pt"
    made_by = {"from": str(tiny_checkpoint), "settings": {"prompt_template": "Question: {context}\\nAnswer:"}}
    save_checkpoint(path, Checkpoint(model, tokenizer, made_by))
    return path


@pytest.fixture
def ask(run_main: Command, sft_checkpoint: Path) -> Callable[..., dict[str, Any]]:
    def call(*options: object) -> dict[str, Any]:
        status, printed, _ = run_main(chat.main, "--model", sft_checkpoint, "--json", "--max-new-tokens", 20, *options)
        assert status == 0
        return json.loads(printed)

    return call


def test_a_message_is_answered_as_in_the_evaluation(
    ask: Callable[..., dict[str, Any]],
    tiny_model: Transformer,
    tokenizer: Tokenizer,
) -> None:
    found = ask("--context", CONTEXT, "--seed", 3)
    encoder = PairEncoder(tokenizer, eos_id=1, template="Question: {context}\nAnswer:")
    wanted = generate_replies(tiny_model, encoder, [Pair(CONTEXT, "")], Sampling(max_new_tokens=20), "3/0")
    assert found["context"] == CONTEXT
    assert found["pretrained"]["text"] == wanted.texts[0]
    assert found["pretrained"]["stops_by_itself"] == wanted.stopped[0]
    assert found["sft"]["text"] != found["pretrained"]["text"]
    assert found["sft"]["rating"] < 4 and "does not name the customer's item" in found["sft"]["faults"]


def test_options_of_sampling_count(ask: Callable[..., dict[str, Any]]) -> None:
    def reply(*options: object) -> object:
        return ask("--context", CONTEXT, *options)["sft"]["text"]

    assert reply() == reply() and len({reply(), reply("--seed", 1), reply("--temperature", 5)}) == 3
    assert reply("--temperature", 0) == reply("--top-k", 1) == reply("--top-p", 0.001) != reply()


def test_what_is_not_of_the_retail_world_is_not_rated(ask: Callable[..., dict[str, Any]]) -> None:
    assert "rating" not in ask("--context", "How are you?")["sft"]


def test_every_line_of_a_program_is_answered(
    run_main: Command, sft_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{CONTEXT}\n\nHello\n{CONTEXT}\n"))
    status, printed, _ = run_main(chat.main, "--model", sft_checkpoint, "--json", "--max-new-tokens", 20)
    found = [json.loads(line) for line in printed.splitlines()]
    assert status == 0 and [one["context"] for one in found] == [CONTEXT, "Hello", CONTEXT]
    assert found[0]["sft"]["text"] != found[2]["sft"]["text"]  # asked once more, it draws other words


def test_without_json_it_prints_a_line_for_each_model(run_main: Command, sft_checkpoint: Path) -> None:
    status, printed, _ = run_main(
        chat.main, "--model", sft_checkpoint, "--context", CONTEXT, "--max-new-tokens", 5, "--temperature", 0
    )
    asked, first, second, end = printed.split("\n", 3)
    assert (status, asked, end) == (0, f"customer: {CONTEXT}", "\n")
    assert first.startswith("pretrained: ") and second.startswith("fine-tuned: ")
    assert "(rated " in first and "(rated " in second


@pytest.mark.slow
def test_both_stand_side_by_side_and_lines_can_be_edited_and_recalled(
    terminal: Callable[..., Terminal], sft_checkpoint: Path, tmp_path: Path
) -> None:
    options = ["--model", sft_checkpoint, "--max-new-tokens", 60, "--temperature", 0]
    talking = terminal("part4_sft.chat", *options, HOME=str(tmp_path))
    talking.wait_for("\n>")
    talking.press("Hallo\x7f\x7f\x7f\x7fello\r")
    talking.wait_for("fine-tuned")
    talking.wait_for("\n>\n")
    heading = next(line for line in talking.text.split("\n") if "fine-tuned" in line)
    assert heading.startswith("pretrained") and heading.index("fine-tuned") > 38
    assert "> Hello" in talking.text
    talking.press("\x1b[A")  # the line before
    talking.wait_for("\n> Hello\n")
    talking.press("\x04\x15\x04")  # Ctrl-D does nothing in a line; it is deleted, then Ctrl-D ends
    assert talking.end() == 0
    assert (tmp_path / ".part4_sft_history").read_text() == "Hello\n"
    again = terminal("part4_sft.chat", *options, HOME=str(tmp_path))
    again.wait_for("\n>")
    again.press("\x1b[A")
    again.wait_for("> Hello")


def test_input_of_another_encoding_is_refused(
    run_main: Command, sft_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("größer\n".encode("latin-1")), encoding="utf-8"))
    status, printed, complained = run_main(chat.main, "--model", sft_checkpoint)
    assert (status, printed) == (2, "") and complained.startswith("error: the input is not utf-8 text")


def test_mistakes_end_in_one_line(
    run_main: Command, sft_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for options in (
        ["--model", tmp_path / "missing.pt"],
        ["--model", tiny_checkpoint],  # was not fine-tuned from anything
        ["--model", sft_checkpoint, "--base", tmp_path / "missing.pt"],
        ["--model", sft_checkpoint, "--prompt-template", "nothing"],
        ["--model", sft_checkpoint, "--max-new-tokens", 1000],
        ["--model", sft_checkpoint, "--temperature", -1],
        ["--model", sft_checkpoint, "--context", " "],
    ):
        status, _, complained = run_main(chat.main, "--context", "Hello", *options)
        assert status == 2 and complained.startswith("error: ") and complained.count("\n") == 1, complained
