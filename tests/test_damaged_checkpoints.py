"""Damaged, hostile and unsupported models are refused in one line, and no code in them is run.

A checkpoint is one file; a Hugging Face model is a folder. Undamaged ones are in test_checkpoint and test_huggingface.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import nn

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft import sft
from tests.conftest import Command, assert_refused, in_folder
from tests.processes import in_ranks

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def path(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    return path


@pytest.fixture
def folder(tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_folder(tmp_path / "model", Checkpoint(tiny_model, tokenizer, {}))
    return tmp_path / "model"


def refusal(path: Path) -> str:
    """Load a model, which must fail; return the line that the user is told."""
    with pytest.raises(UserError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message and len(message) < len(str(path)) + 500 and len(message.splitlines()) == 1
    return message


def truncate(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@dataclass
class RunsCode:
    """Makes a folder when it is unpickled."""

    folder: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_the_command_ends_in_one_line_and_writes_nothing(
    run_main: Command, path: Path, folder: Path, tmp_path: Path
) -> None:
    truncate(path, 0.5)
    truncate(folder / "model.safetensors", 0.5)
    (tmp_path / "pairs.csv").write_text("context,response\nWhere?,Here.\nWhen?,Today.\nWhy?,So.\n")
    before = set(tmp_path.rglob("*"))
    for model in (path, folder):
        options = ["--model", model, "--data", tmp_path / "pairs.csv", *in_folder(tmp_path)]
        assert_refused(run_main(sft.main, *options), f"{model} ")
    assert set(tmp_path.rglob("*")) == before


def test_code_in_a_checkpoint_or_training_state_is_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "model.pt", tmp_path / "made by the file"
    path.write_bytes(pickle.dumps(RunsCode(made), protocol=2))
    assert "not a zip file" in refusal(path)
    torch.save({"format": 2, "run": {}, "values": {}, "weights": RunsCode(made)}, path)
    message = "it holds more than tensors and plain values, and what might be code is not run"
    assert message in refusal(path)
    with pytest.raises(UserError, match=f"{path} is damaged .*{message}.*start anew without --resume"):
        TrainingState(path, {}, resume=True)
    assert not made.exists()
    torch.load(path, weights_only=False)  # a careless reader runs it
    assert made.exists()


def test_code_in_the_state_of_several_processes_is_not_run(tmp_path: Path) -> None:
    """Each of its files in turn is hostile; then its index is that of a file whose plain values are."""
    made, model = tmp_path / "made by the file", nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters())

    def refuse(file: Path, hostile: bytes, reason: str = "") -> None:
        file.write_bytes(hostile)
        with pytest.raises(UserError, match=rf"state is damaged \({reason}.*start anew without --resume$"):
            TrainingState(tmp_path / "state.pt", {}, resume=True).restore(model, optimizer)
        assert not made.exists()

    def main() -> None:
        with distributed.process_group(shard=False):
            state = TrainingState(tmp_path / "state.pt", {})
            state.save(model, optimizer, {})
            state.store.finish()
            save = tmp_path / "state" / "save-000001"
            (save / ".metadata").write_bytes(pickle.dumps(RunsCode(made)))  # which is torch's own index
            TrainingState(tmp_path / "state.pt", {}, resume=True).restore(model, optimizer)
            assert not made.exists()
            for file in (save / "index.json", save / "values.json", save / "__0_0.distcp"):
                contents = file.read_bytes()
                refuse(file, pickle.dumps(RunsCode(made)))
                file.write_bytes(contents)
            index = json.loads((save / "index.json").read_text())
            for part in index["parts"]:
                if part[1] is None:  # a plain value
                    part[2:] = "hostile", 0, 10_000
            torch.save(RunsCode(made), save / "hostile")
            refuse(save / "index.json", json.dumps(index).encode(), "it holds more than tensors and plain values")
            index["parts"][0][2] = "../elsewhere"
            refuse(save / "index.json", json.dumps(index).encode(), "../elsewhere is no file beside its index")

    assert in_ranks(main, 1) == [0]


def test_a_flipped_bit_is_found_or_changes_nothing(path: Path) -> None:
    """In a tensor it is found, which torch does not; nothing hangs on a few bytes, as between two tensors."""
    contents, rng = path.read_bytes(), Random(0)
    with zipfile.ZipFile(path) as archive:
        tensors = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    in_tensors = [contents.index(tensor) + len(tensor) // 2 for tensor in tensors]
    anywhere = [rng.randrange(len(contents)) for _ in range(40)]
    in_directory = [rng.randrange(len(contents) - 2000, len(contents)) for _ in range(40)]
    assert len(tensors) > 10
    for place in in_tensors + anywhere + in_directory:
        damaged = bytearray(contents)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            save_checkpoint(path, load_checkpoint(path))
        except UserError as error:
            assert place not in in_tensors or "(the checksum of archive/data/" in str(error)
        else:
            assert place not in in_tensors and path.read_bytes() == contents


def test_a_compressed_file_is_refused_before_it_grows_in_memory(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    assert "it is compressed" in refusal(path)


@pytest.mark.parametrize("contents", [[1, 2], {"weights": {}}, None, 0.0, 0.01, 0.99])
def test_a_truncated_file_or_one_of_something_else(path: Path, contents: Any) -> None:
    if isinstance(contents, float):
        truncate(path, contents)
    else:
        torch.save(contents, path)
    assert "is damaged or not a checkpoint" in refusal(path)


def put(**changes: Any) -> Change:
    return lambda contents: contents.update(changes)


def shape(**changes: Any) -> Change:
    return lambda contents: contents["model_config"].update(changes)


def weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda contents: contents["weights"].update({"norm.weight": change(contents["weights"]["norm.weight"].data)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(format=1), "has format 1, this version reads 2; make it anew, or use the version"),
        (put(format=torch.ones(2)), "has format Tensor, this version reads 2"),
        (put(format=[[[0] * 9] * 9]), "has format list, this version reads 2"),
        (lambda contents: contents.pop("weights"), "holds no 'weights'; make it anew or name another"),
        (put(weights={}), "the tensor embed_tokens.weight is missing"),
        (put(weights=[1]), "cannot be used"),
        (weight(lambda w: w.index_fill(0, torch.tensor([3]), torch.nan)), "norm.weight holds NaN or infinite"),
        (weight(lambda w: w.index_fill(0, torch.tensor([3]), torch.inf)), "norm.weight holds NaN or infinite"),
        (weight(lambda w: w.index_fill(0, torch.tensor([3]), -torch.inf)), "norm.weight holds NaN or infinite"),
        (weight(lambda w: w.double() * 1e300), "norm.weight holds NaN or infinite"),  # in float32
        (weight(lambda w: w[:-1]), "norm.weight has the shape [31]; by the config it must be [32]"),
        (weight(lambda w: w.char()), "norm.weight holds torch.int8; quantised weights are not supported"),
        (weight(lambda w: w.to("meta")), "cannot be used"),
        (weight(lambda w: torch.ones(1).expand(10**6, 10**6)), "claim to hold more numbers than the"),
        (shape(flavour="vanilla"), "'flavour'"),
        (shape(num_layers=10**9), "1000000000 layers"),  # other shapes that cannot be are in test_model
        (shape(eos_ids=(2,)), 'the tokenizer takes "!" in a text for the end'),
        (put(tokenizer="{}"), "cannot be used: Model missing"),
        (put(tokenizer=Tokenizer(models.BPE()).to_str()), "makes no token of a text"),
        (weight(lambda w: w.to(torch.float8_e4m3fn)), "float8_e4m3fn; quantised weights are not supported"),
        (put(made_by=None), "cannot be used"),
        (put(made_by={"settings": 3}), "what it tells of its making cannot be: settings"),
        (put(made_by={"settings": {"prompt_template": "Hello"}}), "cannot be: prompt_template"),
        (put(made_by={"hand_over": "x"}), "what it tells of its making cannot be: hand_over"),
        (put(made_by={"settings": {"max_length": "a"}}), "cannot be: max_length"),
        (put(hugging_face={"../outside.txt": "evil"}), "'../outside.txt' is no settings file of a model"),
        (put(hugging_face={"/tmp/outside.txt": "evil"}), "'/tmp/outside.txt' is no settings file of a model"),
        (put(hugging_face={"config.json": "evil"}), "'config.json' is no settings file of a model"),
        (put(hugging_face={"chat_template.jinja": {}}), "'chat_template.jinja' is no settings file of a model"),
    ],
)
def test_contents_that_do_not_fit_together(path: Path, change: Change, message: str) -> None:
    contents = torch.load(path, weights_only=True)
    change(contents)
    torch.save(contents, path)
    assert message in refusal(path)


# ---------------------------------------------------------------------------------------------------- a folder

LLAMA3 = {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": 4}  # and the length before
UNSUPPORTED = ["hidden_act", "attention_bias", "mlp_bias", "attention_dropout", "quantization_config"]
UNSUPPORTED += ["rope_interleaved", "partial_rotary_factor", "num_local_experts", "num_experts", "no_rope_layers"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *[({key: 0.5}, f"config.json asks for {key} = 0.5, which is not supported") for key in UNSUPPORTED],
        ({"model_type": "mixtral"}, 'its model_type is "mixtral"; those that can be used are llama, mistral, '),
        ({"model_type": ...}, "its model_type is null"),
        ({"use_sliding_window": True, "sliding_window": 511}, "it attends to a sliding window (sliding_window = 511)"),
        ({"model_type": "mistral", "max_position_embeddings": 4097}, "sliding window (sliding_window = 4096)"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types = sliding_attention, which is"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 'rope scaling of type "yarn"; only llama3 is supported'),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "asks for partial_rotary_factor in its rope scaling"),
        ({"rope_parameters": LLAMA3}, "must give original_max_position_embeddings as a number above 0, not null"),
        ({"rope_parameters": LLAMA3 | {"factor": 0}}, "must give factor as a number above 0, not 0"),
        ({"rope_parameters": "long"}, "a value in its JSON files is of the wrong kind ("),
        ({"rope_theta": -1}, "rope_theta"),
        *[({"rms_norm_eps": value}, "rms_norm_eps") for value in (None, [1], float("nan"), float("inf"))],
        ({"num_key_value_heads": -2}, "must give num_key_value_heads as a whole number above 0, not -2"),
        ({"hidden_size": "many"}, 'hidden_size as a whole number above 0, not "many"'),
        *[({"num_hidden_layers": value}, "num_hidden_layers as a whole number above 0") for value in (..., True, 2.0)],
        ({"num_hidden_layers": 3}, "the tensor layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "the tensor layers.1.input_layernorm.weight is surplus: the config has no place"),
        ({"model_type": "qwen2"}, "the tensor layers.0.self_attn.k_proj.bias is missing"),
        ({"vocab_size": 599}, "entry 599, but the model only 599 embeddings"),
        ({"vocab_size": 700}, "embed_tokens.weight has the shape [600, 32]; by the config it must be [700, 32]"),
        *[({"vocab_size": value}, "wrong kind") for value in (10**18, 10**30)],
        ({"eos_token_id": 640}, "below vocab_size = 600"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_computed_is_refused_by_name(folder: Path, changes: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))
    assert message in refusal(folder)


def test_a_folder_that_names_no_end_of_text_token(folder: Path) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": None, "eos_token": None}))
    assert "no file names its end-of-text token; set eos_token_id in config.json" in refusal(folder)


def test_tensors_that_do_not_fit_are_refused_by_name(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"a\nb": torch.ones(3)}, folder / "model.safetensors")
    assert "the tensor a" in refusal(folder)  # and in one line
    save_file(weights | {"lm_head.weight": torch.ones(600, 32)}, folder / "model.safetensors")
    assert "lm_head.weight differs from the embeddings, though the config ties them" in refusal(folder)


LIES = [(b'"F32"', b'"F16"'), (b'"shape":[32]', b'"shape":[99]'), (b'"data_offsets":[', b'"data_offsets":[9')]


@pytest.mark.parametrize(("truth", "lie"), LIES)
def test_a_safetensors_header_that_lies(folder: Path, truth: bytes, lie: bytes) -> None:
    path = folder / "model.safetensors"
    assert truth in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(truth, lie, 1))
    assert "model.safetensors is damaged or not a safetensors file" in refusal(folder)


JUNK: list[tuple[bytes, str, str]] = [  # and what is said of it in config.json and in tokenizer.json
    (b"[" * 10**6, "is not JSON (", "is damaged or not a tokenizer ("),
    (b'{"model": "' + b"a" * 10**6 + b'"}', "its model_type is null", "is damaged or not a tokenizer ("),
    (b"[1]", "must hold a JSON object; copy it anew", "is damaged or not a tokenizer ("),
    (b"{}\xff", "is not UTF-8 text (byte 2); copy it anew", "is not UTF-8 text"),
    (b" " * 2**26, "is not JSON (", "is damaged or not a tokenizer ("),
    (b" " * (2**26 + 1), "is longer than 64 MiB, too long to be genuine; copy it anew", "is longer than 64 MiB"),
]


def test_junk_missing_and_truncated_files_are_refused(folder: Path) -> None:
    for index, name in enumerate(["config.json", "tokenizer.json", "model.safetensors"]):
        path, contents = folder / name, (folder / name).read_bytes()
        path.unlink()
        assert name in refusal(folder)
        for share in (0.0, 0.001, 0.5, 0.99):
            path.write_bytes(contents[: int(share * len(contents))])
            assert name in refusal(folder)
        for junk, *messages in JUNK if index < 2 else []:
            path.write_bytes(junk)
            assert messages[index] in refusal(folder)
        path.write_bytes(contents)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_pipe_is_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name} is missing; " in refusal(folder) or f"{name} is not a file; copy it anew" in refusal(folder)


def test_an_index_may_only_name_files_of_the_folder(folder: Path) -> None:
    for weight_map, message in [
        ({"a": "../model.safetensors"}, "must name the files of this folder that hold the tensors"),
        ({}, "must name the files of this folder that hold the tensors"),
        ({"a": "long" * 70}, f"{'long' * 70} is missing; "),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing; weights in other formats have to be saved as"),
        (["model.safetensors"], "wrong kind"),
    ]:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert message in refusal(folder)
