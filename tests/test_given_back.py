"""A model goes back as it was trained: transformers' chat pipeline, given messages, answers as `chat` does."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from part3_pretrain import convert
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft import chat, sft
from part4_sft.formats import load_pairs
from tests.chat_templates import FAMILIES
from tests.conftest import Command, in_folder

QUESTIONS = [f"Multiply {number} by 4." for number in range(6)]


@pytest.fixture
def base(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A checkpoint with a chat template, whose settings end a text with something else, and punish repetitions."""
    family = FAMILIES["chatml"]
    torch.manual_seed(0)
    own = family.tokenizer(tokenizer)
    model = Transformer(ModelConfig(own.get_vocab_size(), 32, 64, 2, 2, 2))
    with torch.no_grad():  # so large that replies depend on the questions
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=0.3)
    settings = family.settings | {"generation_config.json": {"eos_token_id": 1, "repetition_penalty": 1.3}}
    save_checkpoint(tmp_path / "base.pt", Checkpoint(model, own, {}, settings))
    return tmp_path / "base.pt"


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    """A file of conversations of two turns, every third with a system message."""
    entries = []
    for number, question in enumerate(QUESTIONS * 4):
        texts = [question, f"That is {number}, I am sure.", "Halve it.", "Half of it is two, and no more."]
        turns = [{"role": role, "content": text} for role, text in zip(["user", "assistant"] * 2, texts)]
        system = [{"role": "system", "content": "Be kind."}] * (number % 3 == 0)
        entries.append(json.dumps({"messages": system + turns}))
    (tmp_path / "mine.jsonl").write_text("\n".join(entries))
    return tmp_path / "mine.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False], ids=["the model's own template", "a prompt template"])
def test_the_pipeline_answers_as_chat_does(
    own: bool, base: Path, conversations: Path, run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = [] if own else ["--prompt-template", r"### Instruction:\n{context}\n\n### Response:"]
    options = ["--epochs", 2, "--learning-rate", 0.001, "--batch-size", 8, "--samples-per-context", 1]
    options += ["--max-new-tokens", 16, "--model", base, "--data", conversations, *in_folder(tmp_path)]
    status, _, stderr = run_main(sft.main, *options, *how)
    assert status == 0, stderr
    trained, folder = tmp_path / "checkpoints" / "sft_model.pt", tmp_path / "given back"
    settings = load_checkpoint(trained).made_by["settings"]
    assert settings["chat_template"] == ("model" if own else "none")
    assert settings["prompt_template"] == (None if own else how[1])
    for name in ("sft_dataset", "sft_validation", "sft_test"):
        pairs = load_pairs(tmp_path / "outputs" / f"{name}.json")
        assert {len(pair.turns) for pair in pairs} <= {3, 4}

    assert run_main(convert.main, "to-hf", trained, folder)[0] == 0
    end = load_checkpoint(base).tokenizer.token_to_id("<|im_end|>")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [end, 1] if own else 1}
    answer = transformers.pipeline("text-generation", str(folder))

    def theirs(messages: list[dict[str, str]]) -> str:
        return str(answer(messages, do_sample=False, max_new_tokens=16)[0]["generated_text"][-1]["content"]).strip()

    replies = []
    for question in QUESTIONS:
        *_, printed, _ = run_main(
            chat.main, "--model", trained, "--context", question, "--json", "--temperature", 0, "--max-new-tokens", 16
        )
        ours = json.loads(printed)["sft"]["text"]
        assert theirs([{"role": "user", "content": question}]) == ours
        replies.append(ours)
    assert len(set(replies)) > 3 and all(replies)

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTIONS[0]}\nHalve it.\n/new\nHalve it.\n"))
    _, printed, _ = run_main(chat.main, "--model", trained, "--json", "--temperature", 0, "--max-new-tokens", 16)
    first, second, anew = [json.loads(line)["sft"]["text"] for line in printed.splitlines()]
    turns: list[dict[str, Any]] = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": first}]
    thanks = {"role": "user", "content": "Halve it."}
    assert anew == theirs([thanks])
    assert second == (theirs([*turns, thanks]) if own else anew)
    assert not own or second != anew
