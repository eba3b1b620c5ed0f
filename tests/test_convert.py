"""The converting command: what it writes is read elsewhere and comes back with the same bits."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from part3_pretrain import convert
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.huggingface.write import CARD_SETTINGS, model_card
from part3_pretrain.model import Transformer
from part4_sft.config import DEFAULT_TEMPLATE, SFTConfig
from tests.conftest import Command, assert_refused


@pytest.fixture
def checkpoint(tiny_model: Transformer, tokenizer: Tokenizer) -> Checkpoint:
    return Checkpoint(tiny_model, tokenizer, {"seed": 0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_gives_the_same_bits_which_transformers_reads(
    run_main: Command, checkpoint: Checkpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    model = deepcopy(checkpoint.model).to(dtype)
    folder, again, back = tmp_path / "folder", tmp_path / "again", tmp_path / "back.pt"
    save_checkpoint(tmp_path / "model.pt", replace(checkpoint, model=model))
    status, printed, _ = run_main(convert.main, "to-hf", tmp_path / "model.pt", folder)
    assert status == 0 and str(folder / "model.safetensors") in printed
    assert run_main(convert.main, "from-hf", folder, back)[:2] == (0, f"written: {back}\n")
    loaded = load_checkpoint(back, dtype=None)
    assert (loaded.model.config, loaded.made_by) == (model.config, {"from": str(folder)})
    torch.testing.assert_close(loaded.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert loaded.tokenizer.to_str() == checkpoint.tokenizer.to_str()

    run_main(convert.main, "to-hf", back, again)
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o444 == 0o444, "others may read it"
        if file.name != "README.md":  # it tells where the model came from
            assert file.read_bytes() == (again / file.name).read_bytes(), file

    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(theirs.state_dict()["lm_head.weight"], model.lm_head.weight.data, rtol=0, atol=0)


SETTINGS = {name: getattr(SFTConfig(), name) for name in [*CARD_SETTINGS, "temperature"]}
SETTINGS["prompt_template"] = DEFAULT_TEMPLATE
BY_TURNS = {"prompt_template": None, "train_on_turns": "all"}
FINE_TUNED: dict[str, Any] = {
    "from": "checkpoints/pretrained.pt",
    "settings": SETTINGS | {"data": "data/mine.csv"},
    "dataset": {"trained_on": 2, "sft_test": 200},
    "results": {"pretrained": {"bleu": 0.125, "rated_4_or_more": 0.25}, "sft": {"bleu": 0.5, "rated_4_or_more": 1.0}},
}
FINE_TUNED_PARTS = [
    '---\nbase_model: "pretrained.pt"\ndatasets: ["mine.csv"]\ntags: ["sft", "conversational"]\npipeline_tag: text-gen',
    "from `pretrained.pt` on 2 (context, response) pairs (mine.csv), with the loss on the response alone.\n\n## Prompt",
    "\n```\nCustomer: {context}\nAgent:\n```\n",
    "\n- epochs: 5\n- learning rate: 5e-05\n- batch size: 1\n- LoRA rank (0: all weights trained): 0\n- number format",
    "Replies to 200 held-out contexts, at temperature 0.4:\n\n| measure | pretrained | sft |\n| --- | --- | --- |\n",
    "\n| BLEU | 0.1250 | 0.5000 |\n| rated 4 or more | 0.2500 | 1.0000 |\n",
]


@pytest.mark.parametrize(
    ("made_by", "parts"),
    [
        (FINE_TUNED, FINE_TUNED_PARTS),
        (FINE_TUNED | {"settings": SETTINGS | {"data": None}}, ["pairs (synthetic retail support)"]),
        (
            FINE_TUNED | {"settings": SETTINGS | {"data": None, "lora_rank": 4} | BY_TURNS},
            [
                "conversations (synthetic retail support), with the loss on every turn",
                'tags: ["sft", "conversational", "lora"]',
                "The chat template of the model that it was made from",
            ],
        ),
        ({"seed": 3}, ["Not fine-tuned by `part4_sft`. How it was made:\n\n- seed: 3\n"]),
        ({"from": "models/SmolLM2"}, ["Converted from `SmolLM2`, which does not tell how it was made."]),
    ],
)
def test_the_model_card_tells_how_the_model_was_made(checkpoint: Checkpoint, made_by: Any, parts: list[str]) -> None:
    card = model_card("my-agent", replace(checkpoint, made_by=made_by))
    header = "\npipeline_tag: text-generation\nlibrary_name: transformers\n---\n\n# my-agent\n"
    for part in [header, "of the llama family with 39,840 parameters", *parts]:
        assert part in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("to-hf missing.pt out", "missing.pt"),
        ("to-hf model.pt model.pt", "model.pt is there already"),
        ("to-hf model.pt folder", "folder is there already"),
        ("from-hf missing out.pt", "there is no folder missing"),
        ("from-hf empty new/out.pt", "config.json"),
        ("from-hf folder empty", "empty is a folder"),
        ("from-hf folder model.pt/out.pt", "cannot write model.pt/out.pt"),
        ("to-onnx a b", "to-onnx"),
        ("", "direction"),
    ],
)
def test_a_users_mistake_ends_in_one_line_and_nothing_is_written(
    run_main: Command, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: Any, arguments: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_checkpoint(Path("model.pt"), checkpoint)
    run_main(convert.main, "to-hf", "model.pt", "folder")
    Path("empty").mkdir()
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    assert_refused(run_main(convert.main, *arguments.split()), message)
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before
