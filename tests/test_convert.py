"""The converting command: what it writes is read elsewhere, comes back with the same bits, and answers the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from part3_pretrain import convert
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling
from part4_sft.metrics import generate_replies
from part4_sft.training import train

Command = Callable[..., tuple[int | str | None, str, str]]
PAIRS = [Pair("My desk is late.", "I am sorry."), Pair("Where is my tent?", "It is on its way.")]


@pytest.fixture
def command(run_main: Command) -> Command:
    return partial(run_main, convert.main)


@pytest.fixture(scope="module")
def fine_tuned(
    tiny_checkpoint: Path, encoder: PairEncoder, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Transformer]:
    """A checkpoint of a model that knows two replies by heart."""
    checkpoint = load_checkpoint(tiny_checkpoint)
    config = SFTConfig(learning_rate=1e-2, epochs=60)
    train(checkpoint.model, encoder.encode_all(PAIRS), config, after_epoch=lambda epoch, loss: None)
    settings = {name: getattr(config, name) for name in ("epochs", "learning_rate", "batch_size", "lora_rank", "dtype")}
    settings |= {"data": None, "seed": 0, "temperature": 0.7, "prompt_template": config.prompt_template}
    made_by = {
        "from": "checkpoints/pretrained.pt",
        "settings": settings,
        "dataset": {"trained_on": 2, "sft_test": 200},
        "results": {"pretrained": {"bleu": 0.125}, "sft": {"bleu": 0.5}},
    }
    path = tmp_path_factory.mktemp("fine-tuned") / "sft_model.pt"
    save_checkpoint(path, Checkpoint(checkpoint.model, checkpoint.tokenizer, made_by))
    return path, checkpoint.model.eval()


def test_there_and_back_gives_the_same_weights_and_tokenizer(
    command: Command, fine_tuned: tuple[Path, Transformer], tmp_path: Path
) -> None:
    path, model = fine_tuned
    assert command("to-hf", path, tmp_path / "folder")[0] == 0
    assert command("from-hf", tmp_path / "folder", tmp_path / "back.pt")[0] == 0
    back = load_checkpoint(tmp_path / "back.pt", dtype=None)
    assert back.model.config == model.config
    for name, weight in model.named_parameters():
        assert torch.equal(back.model.get_parameter(name), weight), name
    assert back.tokenizer.to_str() == load_checkpoint(path).tokenizer.to_str()

    assert command("to-hf", tmp_path / "back.pt", tmp_path / "again")[0] == 0
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in (tmp_path / "folder").iterdir())  # others may read them


def test_the_pipeline_of_transformers_answers_as_we_do(
    command: Command, fine_tuned: tuple[Path, Transformer], encoder: PairEncoder, tmp_path: Path
) -> None:
    path, model = fine_tuned
    command("to-hf", path, tmp_path)
    pipeline = transformers.pipeline("text-generation", model=str(tmp_path))
    asked = [*PAIRS, Pair("My jam is late.", ""), Pair("Where is it? (order 48213)", "")]
    ours = generate_replies(model, encoder, asked, Sampling(temperature=0, max_new_tokens=40), seed=0).texts
    assert ours[:2] == [pair.response for pair in PAIRS]
    for pair, wanted in zip(asked, ours):
        prompt = encoder.template.replace("{context}", pair.context)
        (found,) = pipeline(prompt, do_sample=False, max_new_tokens=40, return_full_text=False)
        assert found["generated_text"].strip() == wanted


def test_the_model_card_tells_data_settings_and_results(
    command: Command, fine_tuned: tuple[Path, Transformer], tmp_path: Path
) -> None:
    command("to-hf", fine_tuned[0], tmp_path / "my-agent")
    card = (tmp_path / "my-agent" / "README.md").read_text(encoding="utf-8")
    for told in ("# my-agent", "2 (context, response) pairs", "epochs: 60", "Customer: {context}\nAgent:", "0.5000"):
        assert told in card


def test_the_settings_of_a_hugging_face_folder_go_back_with_the_weights(
    command: Command, tiny_model: Transformer, tokenizer: Tokenizer, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    command("to-hf", tiny_checkpoint, tmp_path / "in")
    settings = tmp_path / "in" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": "{{ messages }}"}))
    command("from-hf", tmp_path / "in", tmp_path / "model.pt")
    command("to-hf", tmp_path / "model.pt", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["chat_template"] == "{{ messages }}"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["to-hf", "missing.pt", "out"], "missing.pt"),
        (["to-hf", "{checkpoint}", "a file"], "a file"),
        (["from-hf", "missing", "out.pt"], "missing"),
        (["from-hf", "empty", "out.pt"], "config.json"),
        (["from-hf", "empty", "empty"], "is a folder"),
        (["to-onnx", "a", "b"], "to-onnx"),
        ([], "{to-hf,from-hf}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_users_mistake_ends_in_one_line_and_nothing_is_written(
    command: Command,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file").write_text("precious")
    Path("empty").mkdir()
    given = (argument.replace("{checkpoint}", str(tiny_checkpoint)) for argument in arguments)
    status, _, complained = command(*given)
    assert status == 2
    assert complained.startswith("error:") and complained.count("\n") == 1 and complaint in complained
    assert {path.name for path in tmp_path.iterdir()} == {"a file", "empty"} and not list(Path("empty").iterdir())
