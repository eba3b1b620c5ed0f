"""What is saved comes back. What is damaged or hostile is in test_damaged_checkpoints."""

from __future__ import annotations

import pickle
import zipfile
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.weights import model_from_tensors

MADE_BY = {"seed": 3, "learning_rate": 2e-3, "corpus": None}
SETTINGS = {"config.json": {"model_type": "llama"}, "chat_template.jinja": "{{ messages }}"}


@pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("asked", [{}, {"dtype": torch.bfloat16}, {"dtype": None}])
def test_everything_comes_back(
    tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path, saved: torch.dtype, asked: dict[str, torch.dtype]
) -> None:
    path, model = tmp_path / "new folder" / "model.pt", deepcopy(tiny_model).to(saved)
    save_checkpoint(path, Checkpoint(model, tokenizer, MADE_BY, SETTINGS))
    loaded = load_checkpoint(path, **asked)
    assert (loaded.model.config, loaded.made_by, loaded.hugging_face) == (model.config, MADE_BY, SETTINGS)
    assert loaded.tokenizer.to_str() == tokenizer.to_str()
    assert loaded.model.lm_head.weight is loaded.model.embed_tokens.weight
    expected = model.to(asked.get("dtype", torch.float32) or saved)
    torch.testing.assert_close(loaded.model.state_dict(), expected.state_dict(), rtol=0, atol=0)  # same dtype, too


def test_the_weights_of_a_model_are_copies(tiny_model: Transformer) -> None:
    tensors = {name: weight.detach().clone() for name, weight in tiny_model.named_parameters()}
    model = model_from_tensors(tiny_model.config, tensors.items(), dtype=None)
    tensors["norm.weight"].zero_()
    assert torch.equal(model.norm.weight, tiny_model.norm.weight)


def test_the_format_of_the_file_is_what_other_versions_read(tiny_checkpoint: Path) -> None:
    contents = torch.load(tiny_checkpoint, weights_only=True)
    assert list(contents) == ["format", "model_config", "weights", "tokenizer", "made_by", "hugging_face"]
    assert contents["format"] == 2 and "lm_head.weight" not in contents["weights"]  # tied embeddings are stored once
    names = zipfile.ZipFile(tiny_checkpoint).namelist()
    assert all(name.startswith("archive/") for name in names)  # not with the name of a file: same bytes wherever


def test_a_save_that_fails_leaves_the_old_file_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "model.pt", load_checkpoint(tiny_checkpoint)
    path.write_text("old")
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, Checkpoint(checkpoint.model, checkpoint.tokenizer, {"cannot be saved": lambda: None}))
    assert list(tmp_path.iterdir()) == [path] and path.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.pt", r"there is no file .*missing\.pt; .*python -m part3_pretrain\.pretrain"),
        ("a" * 300, "cannot read .*; name a file that is there and may be read"),
    ],
)
def test_a_path_without_a_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_checkpoint(tmp_path / name)
