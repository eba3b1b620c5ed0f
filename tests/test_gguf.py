"""GGUF files in and out: the same model and the same ids as transformers reads there, and nothing of a false one."""

from __future__ import annotations

import os
import random
import struct
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from tokenizers import Tokenizer

from part3_pretrain import convert
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.gguf_files import layout, vocabulary
from part3_pretrain.gguf_files.vocabulary import metadata_from_tokenizer, tokenizer_from_metadata
from part3_pretrain.gguf_files.write import write_gguf
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft.generation import Sampling, generate
from tests.conftest import Command, assert_refused

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_layers": 2, "num_heads": 4, "pad_id": None}
SHAPE |= {"num_kv_heads": 2, "rope_theta": 500.0, "norm_eps": 1e-5}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama, embeddings of its own": {"tie_embeddings": False},
    "mistral": {"family": "mistral", "head_dim": 32},
    "qwen2": {"family": "qwen2"},
    "qwen3": {"family": "qwen3", "num_heads": 2, "head_dim": 128, "tie_embeddings": False},
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}<EOS>{% endfor %}"


def checkpoint_of(tokenizer: Tokenizer, **shape: Any) -> Checkpoint:
    """A model with random weights, large enough that its logits differ, which float16 holds exactly."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=tokenizer.get_vocab_size() + 3, **SHAPE | shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
            parameter.copy_(parameter.half())
    return Checkpoint(model, tokenizer, {"seed": 0})


@pytest.fixture
def file(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", checkpoint_of(tokenizer))
    return tmp_path / "tiny.gguf"


def rewrite(path: Path, target: Path, kind: GGMLQuantizationType | None, **changes: Any) -> Path:
    """Write the same file anew with other metadata, `...` for none, and its matrices in another format."""
    reader = GGUFReader(path)
    writer = GGUFWriter(target, "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in changes:
            writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
    for key, value in changes.items():
        if value is not ...:
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
            add[type(value)](key, value)  # type: ignore[operator]
    for tensor in reader.tensors:
        values = tensor.data
        if kind is not None and values.ndim > 1:
            stored = gguf.quantize(values.astype(np.float32), kind)
            writer.add_tensor(tensor.name, stored, raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def theirs_of(path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


@torch.no_grad()
def assert_same_model(ours: Transformer, theirs: Any, prompts: list[list[int]], atol: float = 1e-4) -> None:
    """Compare the logits of prompts, and 32 greedy tokens behind each."""
    for prompt in prompts:
        row = torch.tensor([prompt])
        logits = theirs(row).logits
        torch.testing.assert_close(ours.lm_head(ours(row)), logits, atol=atol, rtol=0)
        eos, plain = ours.config.eos_ids[0], {"do_sample": False, "repetition_penalty": 1.0}
        expected = theirs.generate(row, max_new_tokens=32, pad_token_id=0, eos_token_id=eos, **plain)[0, len(prompt) :]
        reply = generate(ours, [prompt], Sampling(temperature=0, max_new_tokens=32))[0].ids
        assert reply == expected.tolist()[: expected.tolist().index(eos) if eos in expected else 32]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_is_the_same_model_to_transformers(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tokenizer, **FAMILIES[family])
    path = tmp_path / "model.gguf"
    write_gguf(path, checkpoint)
    prompts = [[5, 9, 200, 31, 7, 100], list(range(20, 90))]
    assert_same_model(checkpoint.model, theirs_of(path), prompts)
    back = load_checkpoint(path)
    config = checkpoint.model.config
    assert back.model.config == replace(config, family=layout.architecture_of(config.family))
    torch.testing.assert_close(back.model.state_dict(), checkpoint.model.state_dict(), rtol=0, atol=0)
    assert {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors} == {
        layout.gguf_name(name): "F16" if weight.dim() > 1 else "F32"
        for name, weight in checkpoint.model.named_parameters()
    }


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_what_is_quantised_is_read_as_transformers_reads_it(kind: str, file: Path, tmp_path: Path) -> None:
    path = rewrite(file, tmp_path / "quantised.gguf", GGMLQuantizationType[kind])
    assert_same_model(load_checkpoint(path).model, theirs_of(path), [[5, 9, 200, 31], list(range(20, 60))])
    assert load_checkpoint(path, dtype=None).model.layers[0].mlp.up_proj.weight.dtype == {
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }.get(kind, torch.float32)


def test_the_scaled_positions_of_llama3_come_back_and_others_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """llama.cpp keeps the factors by which frequencies are divided, and not what they come of."""
    path = tmp_path / "model.gguf"
    config = checkpoint_of(tokenizer, rope_theta=5e5, head_dim=64, rope_scaling=LLAMA3).model.config
    write_gguf(path, Checkpoint(Transformer(config), tokenizer, {}))
    assert load_checkpoint(path).model.config == config
    data = bytearray(path.read_bytes())
    place = data.rindex(layout.rope_factors(config).numpy().tobytes())
    data[place + 8 : place + 12] = struct.pack("<f", 2.0)
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"not scaled as Llama 3\.1 scales them"):
        load_checkpoint(path)


def varied_texts(count: int) -> list[str]:
    """Texts of letters of several scripts, digits, signs, emoji and white space of all kinds."""
    rng = random.Random(0)
    parts = [
        "order",
        "Its'",
        "don't",
        "I'LL",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        "12",
        "2026",
        "é",
        "ß",
        "Größe",
        "日本",
        "語",
    ]
    parts += [
        "привет",
        "🙂",
        "...",
        "!?",
        "<|im_end|>",
        "<EOS>",
        "{}",
        "=>",
        "\u00a0",
        "½",
        "Customer",
        " walnut",
        "\r\n",
    ]
    return ["".join(rng.choices(parts, k=rng.randint(1, 24))) for _ in range(count)]


@pytest.mark.parametrize("split", vocabulary.SPLITS)
def test_a_tokenizer_gives_the_same_ids_after_the_way_there_and_back(split: str, tokenizer: Tokenizer) -> None:
    metadata = metadata_from_tokenizer(tokenizer, tokenizer.get_vocab_size() + 3)
    assert metadata["tokenizer.ggml.pre"] == "smollm", "what is pretrained here splits texts as SmolLM does"
    metadata |= {"tokenizer.ggml.pre": split, "tokenizer.ggml.bos_token_id": 5, "tokenizer.ggml.add_bos_token": True}
    ours = tokenizer_from_metadata(metadata)
    again = tokenizer_from_metadata(metadata_from_tokenizer(ours, 700) | {"tokenizer.ggml.bos_token_id": 5})
    for text in varied_texts(100):
        assert ours.encode(text).ids == again.encode(text).ids
        assert ours.encode(text).ids[0] == 5, "BOS, once"
        if split == "smollm":
            assert ours.encode(text, add_special_tokens=False).ids == tokenizer.encode(text).ids
    assert ours.encode("<EOS>", add_special_tokens=False).ids != [1], "a control token in a text stays text"
    ours.encode_special_tokens = False
    assert ours.encode("<EOS>", add_special_tokens=False).ids == [1]


@pytest.mark.parametrize("split", ["gpt-2", "llama-bpe"])
def test_the_same_ids_as_transformers_tokenizer_of_the_file(split: str, file: Path, tmp_path: Path) -> None:
    path = rewrite(file, tmp_path / "other.gguf", None, **{"tokenizer.ggml.pre": split})
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = load_checkpoint(path).tokenizer
    ours.encode_special_tokens = False  # as theirs does
    for text in varied_texts(200):
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)


def test_a_tokenizer_that_gguf_has_no_name_for_is_refused(run_main: Command, file: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(file)
    stored = checkpoint.tokenizer.to_str().replace('"individual_digits":true', '"individual_digits":false')
    save_checkpoint(tmp_path / "other.pt", replace(checkpoint, tokenizer=Tokenizer.from_str(stored)))
    outcome = run_main(convert.main, "to-gguf", tmp_path / "other.pt", tmp_path / "out.gguf")
    assert_refused(outcome, "splits texts in another way than smollm, gpt-2, llama-bpe, qwen2")
    assert not (tmp_path / "out.gguf").exists()


def test_numbers_beyond_float16_are_refused_and_leave_no_file(
    run_main: Command, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    checkpoint = checkpoint_of(tokenizer)
    model = deepcopy(checkpoint.model)
    model.layers[1].mlp.up_proj.weight.data[0, 0] = 1e6
    save_checkpoint(tmp_path / "large.pt", replace(checkpoint, model=model))
    outcome = run_main(convert.main, "to-gguf", tmp_path / "large.pt", tmp_path / "out.gguf")
    assert_refused(outcome, "layers.1.mlp.up_proj.weight holds numbers that are too large for float16")
    assert [path.name for path in tmp_path.iterdir()] == ["large.pt"]


def test_settings_go_into_the_file_and_come_back(run_main: Command, file: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(file)
    config = replace(checkpoint.model.config, eos_ids=(1, 7, 9))
    settings = deepcopy(checkpoint.hugging_face)
    settings["tokenizer_config.json"] |= {"chat_template": TEMPLATE, "bos_token": {"content": "<PAD>"}}
    for name in ("config.json", "generation_config.json"):
        settings[name]["eos_token_id"] = [1, 7, 9]
    model = Transformer(config)
    save_checkpoint(tmp_path / "model.pt", Checkpoint(model, checkpoint.tokenizer, {"seed": 0}, settings))
    assert run_main(convert.main, "to-gguf", tmp_path / "model.pt", tmp_path / "a.gguf")[0] == 0
    assert run_main(convert.main, "from-gguf", tmp_path / "a.gguf", tmp_path / "folder")[0] == 0
    back = load_checkpoint(tmp_path / "folder")
    assert back.model.config == config
    assert back.hugging_face["generation_config.json"] == {
        "bos_token_id": 0,
        "pad_token_id": None,
        "eos_token_id": [1, 7, 9],
    }
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert (theirs.chat_template, theirs.eos_token, theirs.bos_token) == (TEMPLATE, "<EOS>", "<PAD>")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "a.gguf").fields.items()}
    assert fields["tokenizer.chat_template"] == TEMPLATE
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "eom")] == [0, 1, 7, 9]
    assert fields["tokenizer.ggml.tokens"][-3:] == [f"[PAD{number}]" for number in range(600, 603)]
    assert fields["tokenizer.ggml.token_type"][:3] == [3, 3, 1] and fields["tokenizer.ggml.token_type"][-1] == 5
    assert fields["general.file_type"] == 1 and fields["general.name"] == "a"


def test_a_file_is_not_written_over_itself(run_main: Command, file: Path) -> None:
    before = file.read_bytes()
    refused = run_main(convert.main, "to-gguf", file, file)
    assert_refused(refused, "is read by this run, which would write over it")
    assert file.read_bytes() == before


def header(*entries: bytes, tensors: int = 0, count: int | None = None, version: int = 3) -> bytes:
    """The beginning of a file with these metadata entries."""
    counts = struct.pack("<IQQ", version, tensors, len(entries) if count is None else count)
    return b"GGUF" + counts + b"".join(entries)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


HUGE = 2**63 - 1
HOSTILE = {
    "an empty file": (b"", "does not begin as a GGUF file does"),
    "no GGUF at all": (b"<html>" * 100, "does not begin as a GGUF file does"),
    "the first version": (header(version=1), "version 1 of GGUF"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version 50331648 of GGUF"),
    "countless metadata": (header(count=HUGE), "cut short, or claims to hold more than it does"),
    "countless tensors": (header(tensors=HUGE), "cut short, or claims to hold more"),
    "an endless text": (header(struct.pack("<Q", HUGE)), "cut short, or claims to hold more"),
    "an endless list of numbers": (header(text(b"a") + struct.pack("<IIQ", 9, 4, HUGE)), "cut short, or claims"),
    "an endless list of texts": (header(text(b"a") + struct.pack("<IIQ", 9, 8, HUGE)), "cut short, or claims"),
    "lists in lists": (header(text(b"a") + struct.pack("<IIQ", 9, 9, 1)), "a value of the kind 9"),
    "a value of no kind": (header(text(b"a") + struct.pack("<I", 77)), "a value of the kind 77"),
    "bytes that are no text": (header(text(b"\xff")), "can't decode byte"),
    "a tensor of a thousand dimensions": (header(tensors=1) + text(b"x") + struct.pack("<I", 1000), "1000 dimensions"),
    "no alignment": (header(text(b"general.alignment") + struct.pack("<II", 4, 0)), "its alignment is 0"),
    "nothing in it": (header(), "it holds no general.architecture"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_false_and_hostile_files_are_refused_before_anything_is_made_of_them(
    name: str, run_main: Command, tmp_path: Path
) -> None:
    content, complaint = HOSTILE[name]
    (tmp_path / "false.gguf").write_bytes(content)
    assert_refused(run_main(convert.main, "from-gguf", tmp_path / "false.gguf", tmp_path / "out"), complaint)
    assert not (tmp_path / "out").exists()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": (
        {"general.architecture": "mamba"},
        'its architecture is "mamba"; those that can be used',
    ),
    "tokenizer": ({"tokenizer.ggml.model": "t5"}, 'its tokenizer is "t5", "smollm"; those that can be used are "gpt2"'),
    "split": ({"tokenizer.ggml.pre": "other"}, 'its tokenizer is "gpt2", "other"; those that can be used are "gpt2"'),
    "experts": ({"llama.expert_count": 8}, "its metadata ask for expert_count, which is not supported"),
    "window": ({"llama.attention.sliding_window": 16}, "its metadata ask for attention.sliding_window"),
    "scaling": ({"llama.rope.scaling.type": "yarn"}, "its metadata ask for rope.scaling.type"),
    "rotation": ({"llama.rope.dimension_count": 8}, "it rotates 8 of 16 dimensions, which is not supported"),
    "parts": ({"split.count": 3}, "it is one of several parts; join them with llama-gguf-split --merge"),
    "a missing size": ({"llama.block_count": ...}, "it holds no llama.block_count"),
    "no end": ({"tokenizer.ggml.eos_token_id": ...}, "it holds no tokenizer.ggml.eos_token_id"),
    "an end that is no token": ({"tokenizer.ggml.eos_token_id": 9999}, "its metadata name the token 9999, and its"),
    "more layers": ({"llama.block_count": 3}, "the tensor layers.2.input_layernorm.weight is missing"),
    "fewer layers": ({"llama.block_count": 1}, "the tensor layers.1.input_layernorm.weight is surplus"),
    "a billion layers": ({"llama.block_count": 10**9}, "1000000000 layers with heads of 16: at most 1024 can be used"),
    "no heads": ({"llama.attention.head_count": 0}, "cannot be used: "),
    "a text for a number": ({"llama.block_count": "many"}, "cannot be used: "),
    "merges of nothing": ({"tokenizer.ggml.merges": ["qqq zzz"]}, "cannot be used: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(name: str, run_main: Command, file: Path, tmp_path: Path) -> None:
    changes, complaint = REFUSED[name]
    if architecture := changes.get("general.architecture"):
        data = file.read_bytes().replace(text(b"llama"), text(architecture.encode()), 1)
        (tmp_path / "other.gguf").write_bytes(data)
    else:
        rewrite(file, tmp_path / "other.gguf", None, **changes)
    outcome = run_main(convert.main, "from-gguf", tmp_path / "other.gguf", tmp_path / "out")
    assert_refused(outcome, complaint)


def test_cut_anywhere_a_file_is_refused(run_main: Command, file: Path, tmp_path: Path) -> None:
    whole = file.read_bytes()
    for length in [3, 10, 100, 1000, 20_000, len(whole) // 2, len(whole) - 1]:
        file.write_bytes(whole[:length])
        assert_refused(run_main(convert.main, "from-gguf", file, tmp_path / "out"), "cannot be used: ")


def test_tensors_that_share_their_bytes_do_not_fill_the_memory(run_main: Command, file: Path, tmp_path: Path) -> None:
    """All tensors claim the same place: as many numbers as one likes come of a small file."""
    reader, data = GGUFReader(file), bytearray(file.read_bytes())
    for tensor in reader.tensors:
        place = tensor.field.offset + sum(part.nbytes for part in tensor.field.parts) - 8
        data[place : place + 8] = bytes(8)
    file.write_bytes(data[: len(data) // 2])
    outcome = run_main(convert.main, "from-gguf", file, tmp_path / "out")
    assert_refused(outcome, "its tensors claim to hold more numbers than the file does")


@pytest.mark.parametrize("kind", [9999, 24])
def test_a_format_that_gives_no_numbers_is_refused(kind: int, run_main: Command, file: Path, tmp_path: Path) -> None:
    data, field = bytearray(file.read_bytes()), GGUFReader(file).tensors[3].field
    place = field.offset + sum(part.nbytes for part in field.parts) - 12
    data[place : place + 4] = struct.pack("<I", kind)
    file.write_bytes(data)
    assert_refused(run_main(convert.main, "from-gguf", file, tmp_path / "out"), "is stored ")


def test_missing_files_folders_and_pipes_are_told(run_main: Command, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "folder.gguf").mkdir()
    for name, complaint in [
        ("pipe.gguf", "it is no file, but a pipe or the like"),
        ("folder.gguf", "is it the folder of a Hugging Face model?"),
        ("missing.gguf", "No such file or directory; name a file that is there"),
    ]:
        assert_refused(run_main(convert.main, "from-gguf", tmp_path / name, tmp_path / "out"), complaint)


def test_where_the_package_is_missing_the_line_says_how_to_install_it(
    run_main: Command, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "find_spec", lambda name: None)
    for direction, source, target in [("from-gguf", file, "out"), ("to-gguf", file, "out.gguf")]:
        outcome = run_main(convert.main, direction, source, tmp_path / target)
        assert_refused(outcome, f"needs gguf; install it with: pip install {layout.REQUIREMENT}")
