"""Models of every family, made by transformers: the same logits, the same greedy text, and back without a lost bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.huggingface.config import from_hugging_face
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft.generation import Sampling, generate

# Unusual numbers, so that one that is not passed on shows.
SHAPE: dict[str, Any] = {"vocab_size": 640, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3}
SHAPE |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256, "rms_norm_eps": 1e-3}
SHAPE |= {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3_ROPE |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
THETA = {"rope_type": "default", "rope_theta": 500.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"rope_parameters": THETA, "num_key_value_heads": 6}),
    "llama3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama3.2": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 16}),
    "tinyllama": ("Llama", {}),
    "smollm2": ("Llama", {"rope_parameters": THETA, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"rope_parameters": THETA, "sliding_window": None}),
    "mistral, window as long as any text": ("Mistral", {"rope_parameters": THETA, "sliding_window": 256}),
    "qwen2.5": ("Qwen2", {"rope_parameters": THETA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_parameters": THETA, "head_dim": 20}),
    "qwen3, head_dim left to transformers": ("Qwen3", {"num_attention_heads": 2, "head_dim": 128}),
}


def saved_by_transformers(
    folder: Path, family: str, tokenizer: Tokenizer, shape: dict[str, Any] = SHAPE, spread: float = 0.2, **save: Any
) -> Any:
    """Return a model with random weights, large enough that its logits differ; transformers writes it to the folder."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**shape | options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=spread)
    model.save_pretrained(folder, **save)
    copy = Tokenizer.from_str(tokenizer.to_str())
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=copy, eos_token="<EOS>", pad_token="<PAD>")
    fast.save_pretrained(folder)
    return model


@torch.no_grad()
def assert_same_model(ours: Transformer, theirs: Any) -> None:
    """Compare logits, and greedy continuations of prompts that transformers pads on the left."""
    rng = torch.Generator().manual_seed(1)
    tokens = torch.randint(640, (3, 100), generator=rng)
    logits = theirs(tokens).logits
    assert logits.std() > 0.5
    torch.testing.assert_close(ours.lm_head(ours(tokens)), logits, atol=1e-4, rtol=0)

    prompts = [torch.randint(3, 600, (length,), generator=rng).tolist() for length in (20, 3, 11, 1)]
    padded = torch.tensor([[0] * (20 - len(prompt)) + prompt for prompt in prompts])
    greedy = {"do_sample": False, "suppress_tokens": [0], "pad_token_id": 0}
    expected = theirs.generate(padded, attention_mask=(padded != 0).long(), max_new_tokens=32, **greedy)
    replies = generate(ours, prompts, Sampling(temperature=0, max_new_tokens=32))
    for reply, row in zip(replies, expected[:, 20:].tolist(), strict=True):
        assert reply.ids == (row[: row.index(1)] if 1 in row else row)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; `...` removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def load_config(folder: Path) -> ModelConfig:
    settings = {path.name: json.loads(path.read_text()) for path in folder.glob("*config.json")}
    return from_hugging_face(settings, Tokenizer.from_file(str(folder / "tokenizer.json")))


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    saved_by_transformers(tmp_path / "in", "qwen2.5", tokenizer)
    return tmp_path / "in"


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_same_greedy_text_and_the_same_bits_back(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = saved_by_transformers(tmp_path / "in", family, tokenizer)
    if "left to transformers" in family:
        edit(tmp_path / "in" / "config.json", head_dim=...)
    assert_same_model(load_checkpoint(tmp_path / "in").model, theirs)

    save_checkpoint(tmp_path / "model.pt", load_checkpoint(tmp_path / "in", dtype=None))
    write_folder(tmp_path / "out", load_checkpoint(tmp_path / "model.pt", dtype=None))
    written, original = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "in"))
    torch.testing.assert_close(written, original, rtol=0, atol=0)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded.state_dict(), theirs.state_dict(), rtol=0, atol=0)


def test_shards_are_read_like_one_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = saved_by_transformers(tmp_path, "qwen2.5", tokenizer, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3 and not (tmp_path / "model.safetensors").exists()
    assert_same_model(load_checkpoint(tmp_path).model, theirs)


def test_transformers_reads_a_model_pretrained_here(
    tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_folder(tmp_path, Checkpoint(tiny_model, tokenizer, {}))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(2, 300)[None]
    torch.testing.assert_close(theirs(tokens).logits, tiny_model.lm_head(tiny_model(tokens)), atol=1e-4, rtol=0)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "Customer: my walnut desk (order 48213) is late.\nAgent: I am sorry."
    assert their_tokenizer(text)["input_ids"] == tokenizer.encode(text).ids
    assert (their_tokenizer.eos_token_id, their_tokenizer.pad_token_id) == (1, 0)
    assert not their_tokenizer.clean_up_tokenization_spaces
    assert their_tokenizer.model_max_length == tiny_model.config.max_positions
    assert theirs.generation_config.eos_token_id == 1 and theirs.generation_config.pad_token_id == 0
    assert load_checkpoint(tmp_path).model.config == tiny_model.config
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}  # older versions of transformers read no other


def test_the_tokenizers_eos_ends_a_reply_and_whatever_other_files_name(folder: Path, tmp_path: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=[5, 7])
    edit(folder / "config.json", eos_token_id=5, pad_token_id=7)
    config = load_config(folder)
    assert config.eos_ids == (1, 5, 7)
    assert config.pad_id is None  # else the model could never draw what ends its reply
    write_folder(tmp_path / "out", load_checkpoint(folder))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.eos_token_id == [1, 5, 7]

    edit(folder / "tokenizer_config.json", eos_token={"content": "<PAD>"})  # as older versions wrote it
    assert load_config(folder).eos_ids == (0, 5, 7)
    edit(folder / "tokenizer_config.json", eos_token=None)
    edit(folder / "generation_config.json", eos_token_id=0)
    assert load_config(folder).eos_ids == (0, 5)


def test_a_padding_token_that_does_not_exist_is_none(folder: Path) -> None:
    for pad_id, expected in [(-1, None), (640, None), ("x", None), (None, None), (639, 639)]:
        edit(folder / "config.json", pad_token_id=pad_id)
        assert load_config(folder).pad_id == expected


def test_a_config_may_leave_out_the_defaults_of_transformers(folder: Path) -> None:
    defaults = {"rms_norm_eps": 1e-6, "head_dim": 8, "num_key_value_heads": 6, "tie_word_embeddings": False}
    edit(folder / "config.json", **defaults, rope_parameters=THETA)
    complete = load_config(folder)
    optional: dict[str, Any] = {"rms_norm_eps": ..., "head_dim": None, "tie_word_embeddings": ..., "hidden_act": ...}
    optional |= {"num_key_value_heads": None, "layer_types": ..., "sliding_window": 16, "use_sliding_window": False}
    theta: dict[str, Any] = {"rope_theta": 500.0}
    scaling = {"rope_theta": 700.0, "rope_scaling": theta | {"type": "default"}}
    for rope in (theta, {"rope_theta": 700.0, "rope_parameters": theta}, scaling):
        edit(folder / "config.json", **optional | {"rope_parameters": ...} | rope)
        assert load_config(folder) == complete
    edit(folder / "config.json", rope_theta=None, rope_scaling=None)
    assert load_config(folder).rope_theta == 10_000.0


def test_repeated_tied_embeddings_and_old_rotary_buffers_are_no_fault(folder: Path) -> None:
    weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_checkpoint(folder).model.config.tie_embeddings


def test_settings_files_go_back_as_they_came(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }} \u2713", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<EOS>"}')
    edit(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    edit(folder / "generation_config.json", temperature=0.3)
    save_checkpoint(tmp_path / "model.pt", load_checkpoint(folder))
    write_folder(tmp_path / "out", load_checkpoint(tmp_path / "model.pt"))
    assert (tmp_path / "out" / "chat_template.jinja").read_text(encoding="utf-8") == "{{ messages }} \u2713"
    for name in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"):
        before, after = (json.loads((tmp_path / side / name).read_text()) for side in ("in", "out"))
        if name == "config.json":
            assert after.pop("torch_dtype") == before.pop("dtype")  # the same, by the name that all readers know
        assert after == before


@pytest.mark.slow
def test_the_exact_shape_of_smollm2_135m(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shape = SHAPE | {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    shape |= {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192}
    theirs = saved_by_transformers(tmp_path / "in", "smollm2", tokenizer, shape, spread=0.04)
    checkpoint = load_checkpoint(tmp_path / "in")
    assert sum(parameter.numel() for parameter in checkpoint.model.parameters()) == 134_515_008
    assert_same_model(checkpoint.model, theirs)
