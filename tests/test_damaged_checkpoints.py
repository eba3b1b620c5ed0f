"""Hostile and damaged models through the real command line: each ends in one `error:` line, before any training.

A checkpoint is one file; a Hugging Face model is a folder. Undamaged ones are in test_checkpoint and test_huggingface.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError
from part4_sft import sft

Command = Callable[..., tuple[int | str | None, str, str]]
Refusal = Callable[[Path], str]


@pytest.fixture
def refusal(run_main: Command, tmp_path: Path) -> Refusal:
    """Fine-tunes the model at a path, which must fail; returns the one line that the user is told."""
    data, out = tmp_path / "pairs.jsonl", tmp_path / "out"
    data.write_text("\n".join(json.dumps({"context": f"Where is {n}?", "response": "Here."}) for n in range(3)))

    def of(path: Path) -> str:
        given = ["--data", data, "--out-dir", out, "--checkpoint-dir", out]
        status, _, told = run_main(sft.main, "--model", path, *given)
        assert status == 2 and told.startswith("error: ") and str(path) in told
        assert told.count("\n") == 1 and len(told) < len(str(path)) + 500
        assert not out.exists()
        return told

    return of


# ---------------------------------------------------------------------------------------------------- one file


@pytest.fixture
def path(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(tiny_checkpoint.read_bytes())
    return path


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file(path: Path, refusal: Refusal, share: float) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    assert "is damaged or not a checkpoint" in refusal(path)


def test_a_text_file(path: Path, refusal: Refusal) -> None:
    path.write_text("Dear shop,\nmy bookshelf is broken.\n", encoding="utf-8")
    assert "is damaged or not a checkpoint" in refusal(path)


def test_a_flipped_bit_in_any_tensor_is_found(path: Path, refusal: Refusal) -> None:
    contents = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        tensors = [archive.read(name) for name in archive.namelist() if "/data/" in name]
    assert len(tensors) > 10
    for numbers in tensors:
        damaged = bytearray(contents)
        damaged[contents.index(numbers) + len(numbers) // 2] ^= 1
        path.write_bytes(damaged)
        torch.load(path, weights_only=True, mmap=True)  # does not see it
        assert "checksum" in refusal(path)


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(path: Path) -> None:
    """Nothing hangs on a few bytes, such as those between two tensors."""
    contents, wanted = path.read_bytes(), load_checkpoint(path)
    rng, refused = Random(0), 0
    for first in [0] * 40 + [len(contents) - 2000] * 40:  # the directory is at the end
        place = rng.randrange(first, len(contents))
        damaged = bytearray(contents)
        damaged[place] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            found = load_checkpoint(path)
        except UserError:
            refused += 1
            continue
        assert (found.model.config, found.made_by) == (wanted.model.config, wanted.made_by), place
        assert found.tokenizer.to_str() == wanted.tokenizer.to_str(), place
        for name, weight in wanted.model.named_parameters():
            assert torch.equal(found.model.get_parameter(name), weight), (place, name)
    assert refused > 40


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2)), "not a checkpoint"),
        (torch.save, "what might be code is not run"),
    ],
    ids=["pickle", "torch"],
)
def test_code_in_a_file_is_not_run(tmp_path: Path, refusal: Refusal, write: Any, named: str) -> None:
    folder, path = tmp_path / "made by the file", tmp_path / "model.pt"
    write({"format": 2, "model_config": RunsCode(folder)}, path)
    assert named in refusal(path)
    assert not folder.exists()
    with suppress(RuntimeError):
        torch.load(path, weights_only=False)  # a careless reader runs it
    assert folder.exists()


def test_a_compressed_file_is_refused_before_it_grows_in_memory(path: Path, refusal: Refusal) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**7)
    assert "it is compressed" in refusal(path)


@pytest.mark.parametrize("number", [1, 3])
def test_another_format_is_told_as_such(path: Path, refusal: Refusal, number: int) -> None:
    torch.save(torch.load(path, weights_only=True) | {"format": number}, path)
    told = refusal(path)
    assert f"has format {number}, this version reads 2; " in told and "damaged" not in told


def weight(change: Callable[[Tensor], Tensor], name: str = "norm.weight") -> Callable[[dict[str, Any]], None]:
    """Changes one tensor of a checkpoint's contents."""

    def changes(contents: dict[str, Any]) -> None:
        contents["weights"][name] = change(contents["weights"][name].detach().clone())

    return changes


def setting(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda contents: contents["model_config"].update(changes)


def put(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda contents: contents.update(changes)


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda contents: contents.pop(key)


WRONG_CONTENTS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no format": (without("format"), "is damaged or not a checkpoint ('format')"),
    "no weights": (put(weights={}), "the tensor embed_tokens.weight is missing"),
    "no weights at all": (without("weights"), "holds no 'weights'"),
    "weights that are no table": (put(weights=[1]), "cannot be used"),
    "a number for a tensor": (put(weights={"norm.weight": 3}), "cannot be used"),
    "a NaN": (weight(lambda w: w.index_fill(0, torch.tensor([3]), torch.nan)), "norm.weight holds NaN or infinite"),
    "an infinity": (weight(lambda w: w.index_fill(0, torch.tensor([3]), -torch.inf)), "norm.weight holds NaN or infin"),
    "too large for float32": (weight(lambda w: w.double() * 1e300), "norm.weight holds NaN or infinite"),
    "a wrong shape": (weight(lambda w: w[:-1]), "norm.weight has the shape [31]; by the config it must be [32]"),
    "integers": (weight(lambda w: w.char()), "norm.weight holds torch.int8"),
    "no numbers": (weight(lambda w: w.to("meta")), "cannot be used"),
    "sizes that lie": (
        weight(lambda w: torch.ones(1).expand(10**6, 10**6), "embed_tokens.weight"),
        "its tensors claim to hold more numbers than the file does",
    ),
    "another size": (setting(hidden_size=64), "by the config it must be "),
    "an unknown setting": (setting(flavour="vanilla"), "'flavour'"),
    "a size of 0": (setting(max_positions=0), "whole numbers above 0"),
    "a billion layers": (setting(num_layers=10**9), "1000000000 layers"),
    "a head as wide as the memory": (setting(head_dim=10**10), "heads of 10000000000"),
    "3 key-value heads": (setting(num_kv_heads=3), "cannot share 3 key-value heads"),
    "a setting that is NaN": (setting(norm_eps=float("nan")), "norm_eps"),
    "an <EOS> beyond the vocabulary": (setting(eos_ids=(600,)), "must be there and below vocab_size = 600"),
    "a <PAD> beyond the vocabulary": (setting(pad_id=600), "must be there and below vocab_size = 600"),
    "no <EOS>": (setting(eos_ids=()), "must be there and below vocab_size = 600"),
    "another family": (setting(family="gpt"), "its family is 'gpt'"),
    "no tokenizer": (without("tokenizer"), "holds no 'tokenizer'"),
    "a tokenizer that is none": (put(tokenizer="{}"), "cannot be used: Model missing"),
    "a tokenizer of 10 MB of junk": (put(tokenizer="[" * 10**7), "cannot be used: "),
    "a tokenizer without tokens": (put(tokenizer=Tokenizer(models.BPE()).to_str()), "makes no token of a text"),
    "no history": (put(made_by=None), "cannot be used"),
}


@pytest.mark.parametrize(("change", "named"), WRONG_CONTENTS.values(), ids=WRONG_CONTENTS)
def test_contents_that_do_not_fit_together(
    path: Path, refusal: Refusal, change: Callable[[dict[str, Any]], Any], named: str
) -> None:
    contents = torch.load(path, weights_only=True)
    contents["weights"] = dict(contents["weights"])
    change(contents)
    torch.save(contents, path)
    assert named in refusal(path)


@pytest.mark.parametrize("contents", [[1, 2], {"weights": {}}, None])
def test_a_file_of_something_else(path: Path, refusal: Refusal, contents: Any) -> None:
    torch.save(contents, path)
    assert "is damaged or not a checkpoint" in refusal(path)


def test_a_tokenizer_larger_than_the_model(
    path: Path, refusal: Refusal, tiny_model: Transformer, tokenizer: Tokenizer
) -> None:
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens(["sofa", "lamp"])
    save_checkpoint(path, Checkpoint(tiny_model, larger, {}))
    assert "the tokenizer has an entry 601, but the model only 600 embeddings" in refusal(path)


# ---------------------------------------------------------------------------------------------------- a folder


@pytest.fixture
def folder(tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_folder(tmp_path / "model", tiny_model, tokenizer, {}, "")
    return tmp_path / "model"


def edit_header(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the header of a safetensors file: 8 bytes of its length, JSON, and then the numbers."""
    contents = path.read_bytes()
    end = 8 + int.from_bytes(contents[:8], "little")
    header = json.loads(contents[8:end])
    change(header)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + contents[end:])


NORM, EMBEDDINGS = "model.norm.weight", "model.embed_tokens.weight"
LIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a larger shape": lambda header: header[NORM].update(shape=[10**12]),
    "a shape whose product is past 64 bits": lambda header: header[NORM].update(shape=[2**40, 2**40]),
    "a negative shape": lambda header: header[NORM].update(shape=[-32]),
    "an end past the file's": lambda header: header[NORM].update(data_offsets=[0, 10**15]),
    "an end before the beginning": lambda header: header[NORM].update(data_offsets=[128, 0]),
    "two tensors in one place": lambda header: header[NORM].update(data_offsets=header[EMBEDDINGS]["data_offsets"]),
    "a format with fewer bytes": lambda header: header[NORM].update(dtype="F16"),
    "an unknown format": lambda header: header[NORM].update(dtype="F7"),
    "a tensor left out": lambda header: header.pop(NORM),
    "a tensor that is not there": lambda header: header.update({"x": header[NORM]}),
    "no tensors": lambda header: header.clear(),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_a_safetensors_header_that_lies(folder: Path, refusal: Refusal, lie: Callable[[dict[str, Any]], Any]) -> None:
    edit_header(folder / "model.safetensors", lie)
    assert "model.safetensors is damaged or not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("length", [0, 7, 10**8, 2**63, 2**64 - 1])
def test_a_safetensors_header_of_another_length(folder: Path, refusal: Refusal, length: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert "model.safetensors is damaged or not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_safetensors(folder: Path, refusal: Refusal, share: float) -> None:
    contents = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(contents[: int(share * len(contents))])
    assert "model.safetensors is damaged or not a safetensors file" in refusal(folder)


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_number_in_safetensors_that_is_none(folder: Path, refusal: Refusal, number: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[EMBEDDINGS][300, 7] = number
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "the tensor embed_tokens.weight holds NaN or infinite numbers" in refusal(folder)


def test_a_name_of_a_tensor_in_two_lines_is_told_in_one(folder: Path, refusal: Refusal) -> None:
    edit_header(folder / "model.safetensors", lambda header: header.update({"a\nb": header.pop(NORM)}))
    assert "the tensor a" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_100_mb_of_junk_are_not_even_read(folder: Path, refusal: Refusal, name: str) -> None:
    with (folder / name).open("wb") as file:
        file.write(b'{"model": {"type": "BPE", "vocab": {')
        file.truncate(100 * 10**6)
    assert f"{name} is longer than 64 MiB" in refusal(folder)


@pytest.mark.parametrize("junk", [b"[" * 10**6, b" " * 10**6, b"\xff" * 10**6, b'{"model": "' + b"a" * 10**6 + b'"}'])
def test_junk_that_is_short_enough_to_be_read(folder: Path, refusal: Refusal, junk: bytes) -> None:
    (folder / "tokenizer.json").write_bytes(junk)
    assert "tokenizer.json is " in refusal(folder)


def test_an_end_of_text_token_that_a_text_could_hold(folder: Path, refusal: Refusal) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert 'takes "<EOS>" in a text for the end' in refusal(folder)


def test_a_tokenizer_on_which_the_library_itself_fails(folder: Path) -> None:
    """It says so in lines of its own, which cannot be kept back, before ours."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["continuing_subword_prefix"] = "x" * 50
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"tokenizer\.json is damaged or not a tokenizer"):
        load_checkpoint(folder)
