"""GGUF files in and out: the same model and the same ids as transformers reads from them, and nothing of a false one."""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zipfile
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
from part3_pretrain.huggingface.write import write_folder
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
    "qwen3": {"family": "qwen3", "head_dim": 32, "tie_embeddings": False},
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


def rewrite(path: Path, target: Path, kind: GGMLQuantizationType | None = None, **changes: Any) -> Path:
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
    assert back.model.config == replace(checkpoint.model.config, family=layout.architecture_of(checkpoint.model.config.family))
    torch.testing.assert_close(back.model.state_dict(), checkpoint.model.state_dict(), rtol=0, atol=0)
    assert {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors} == {
        layout.gguf_name(name): "F16" if weight.dim() > 1 else "F32"
        for name, weight in checkpoint.model.named_parameters()
    }
