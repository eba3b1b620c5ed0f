"""Checkpoints: what is saved comes back, and nothing else is believed or run."""

from __future__ import annotations

import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.command_line import UserError
from part3_pretrain.model import ModelConfig, Transformer
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


def refusal(path: Path) -> str:
    """What the user is told, in one line that names the file."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message


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
    assert "python -m part3_pretrain.pretrain" in refusal(tmp_path / "missing.pt")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(path: Path, share: float) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    refusal(path)


def test_a_text_file_is_refused(path: Path) -> None:
    path.write_text("Dear shop,\nmy bookshelf is broken.\n", encoding="utf-8")
    refusal(path)


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "write",
    [lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2)), torch.save],
    ids=["pickle", "torch"],
)
def test_code_in_a_file_is_not_run(tmp_path: Path, write: Any) -> None:
    folder, path = tmp_path / "made by the file", tmp_path / "model.pt"
    write({"model_config": RunsCode(folder)}, path)
    refusal(path)
    assert not folder.exists()
    with suppress(RuntimeError):
        torch.load(path, weights_only=False)  # a careless reader runs it
    assert folder.exists()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"model_config": {"vocab_size": 270, "hidden_size": 64, "num_heads": 4}}, id="wrong shapes"),
        pytest.param({"model_config": {"vocab_size": 270, "flavour": "vanilla"}}, id="unknown setting"),
        pytest.param({"weights": {}}, id="no weights"),
        pytest.param({"tokenizer": "{}"}, id="no tokenizer"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(path: Path, change: dict[str, Any]) -> None:
    torch.save(torch.load(path, weights_only=True) | change, path)
    refusal(path)


@pytest.mark.parametrize("contents", [[1, 2], {"weights": {}}])
def test_a_file_of_something_else_is_refused(path: Path, contents: Any) -> None:
    torch.save(contents, path)
    refusal(path)


def test_a_tokenizer_too_large_for_the_model_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "model.pt"
    save_checkpoint(
        path, Checkpoint(Transformer(ModelConfig(tokenizer.get_vocab_size() - 1, num_layers=1)), tokenizer, {})
    )
    assert "entry 269, but the model only 269 embeddings" in refusal(path)


def test_a_save_that_fails_leaves_the_old_file_alone(path: Path, model: Transformer, tokenizer: Tokenizer) -> None:
    before = path.read_bytes()
    with pytest.raises((pickle.PicklingError, AttributeError)):
        save_checkpoint(path, Checkpoint(model, tokenizer, {"cannot be saved": lambda: None}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
