"""Models of every family, made by transformers: the same logits, the same greedy text, and back without a lost bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError
from part4_sft.generation import Sampling, generate

SHAPE: dict[str, Any] = {  # unusual numbers, so that one that is not passed on shows
    "vocab_size": 640,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-3,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
THETA = {"rope_type": "default", "rope_theta": 500.0}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("Llama", {"rope_parameters": THETA, "num_key_value_heads": 6}),
    "llama3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama3.2": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, "head_dim": 16}),
    "tinyllama": ("Llama", {}),
    "smollm2": ("Llama", {"rope_parameters": THETA, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("Mistral", {"rope_parameters": THETA, "sliding_window": None}),
    "mistral, window too long to matter": ("Mistral", {"rope_parameters": THETA, "sliding_window": 4096}),
    "qwen2.5": ("Qwen2", {"rope_parameters": THETA, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"rope_parameters": THETA, "head_dim": 20}),
}


def saved_by_transformers(
    folder: Path, family: str, tokenizer: Tokenizer, shape: dict[str, Any] = SHAPE, spread: float = 0.2, **save: Any
) -> Any:
    """A model with random weights, large enough that its logits differ, and its folder as transformers writes it."""
    name, options = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**shape | options)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=spread)
    model.save_pretrained(folder, **save)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.to_str()), eos_token="<EOS>", pad_token="<PAD>"
    ).save_pretrained(folder)
    return model


def prompts() -> list[list[int]]:
    numbers = torch.Generator().manual_seed(1)
    return [torch.randint(3, 600, (length,), generator=numbers).tolist() for length in (20, 3, 11, 1)]


def theirs_greedily(model: Any, asked: list[list[int]], steps: int) -> list[list[int]]:
    """transformers' own continuation of a batch that is padded on the left, without the prompt and after-<EOS>."""
    longest = max(map(len, asked))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in asked])
    attends = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])
    found = model.generate(
        padded, attention_mask=attends, max_new_tokens=steps, do_sample=False, suppress_tokens=[0], pad_token_id=0
    )
    return [row[: row.index(1)] if 1 in row else row for row in found[:, longest:].tolist()]


@torch.no_grad()
def assert_same_model(ours: Transformer, theirs: Any, steps: int = 32) -> None:
    tokens = torch.randint(640, (3, 100), generator=torch.Generator().manual_seed(2))
    wanted = theirs(tokens).logits
    assert wanted.std() > 0.5
    torch.testing.assert_close(ours.lm_head(ours(tokens)), wanted, atol=1e-4, rtol=0)
    replies = generate(ours, prompts(), Sampling(temperature=0, max_new_tokens=steps))
    assert [reply.ids for reply in replies] == theirs_greedily(theirs, prompts(), steps)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_same_greedy_text_and_the_same_bits_back(family: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = saved_by_transformers(tmp_path / "in", family, tokenizer)
    checkpoint = load_checkpoint(tmp_path / "in")
    assert_same_model(checkpoint.model, theirs)

    save_checkpoint(tmp_path / "model.pt", load_checkpoint(tmp_path / "in", dtype=None))
    again = load_checkpoint(tmp_path / "model.pt", dtype=None)
    write_folder(tmp_path / "out", again.model, again.tokenizer, again.hugging_face, "")
    assert_same_bits(
        load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "in" / "model.safetensors")
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert_same_bits(loaded.state_dict(), theirs.state_dict())
    assert_same_model(load_checkpoint(tmp_path / "out").model, loaded)


def assert_same_bits(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert found[name].dtype == weight.dtype and torch.equal(found[name], weight), name


def test_shards_are_read_like_one_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = saved_by_transformers(tmp_path, "qwen2.5", tokenizer, max_shard_size="50KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3 and not (tmp_path / "model.safetensors").exists()
    assert_same_model(load_checkpoint(tmp_path).model, theirs, steps=4)


def test_bfloat16_weights_stay_bfloat16_on_the_way_through(tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = saved_by_transformers(tmp_path / "in", "qwen3", tokenizer)
    theirs.bfloat16().save_pretrained(tmp_path / "in")
    checkpoint = load_checkpoint(tmp_path / "in", dtype=None)
    write_folder(tmp_path / "out", checkpoint.model, checkpoint.tokenizer, checkpoint.hugging_face, "")
    assert_same_bits(
        load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "in" / "model.safetensors")
    )
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert load_checkpoint(tmp_path / "in").model.embed_tokens.weight.dtype == torch.float32


def test_a_model_pretrained_here_is_read_by_transformers(
    tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    write_folder(tmp_path, tiny_model, tokenizer, {}, "# card")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokens = torch.randint(2, 300, (2, 50), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = tiny_model.lm_head(tiny_model(tokens))
        torch.testing.assert_close(loaded(tokens).logits, wanted, atol=1e-4, rtol=0)
    text = "Customer: my walnut desk (order 48213) is late.\nAgent: I am sorry."
    assert read(text)["input_ids"] == tokenizer.encode(text).ids
    assert (read.eos_token_id, read.pad_token_id) == (1, 0)
    assert loaded.generation_config.eos_token_id == 1
    assert load_checkpoint(tmp_path).model.config == tiny_model.config


def test_the_end_of_text_token_is_the_tokenizers_and_whatever_else_ends_a_reply(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    saved_by_transformers(tmp_path / "in", "llama3.1", tokenizer)
    edit(tmp_path / "in" / "generation_config.json", eos_token_id=[5, 7])
    edit(tmp_path / "in" / "config.json", eos_token_id=5, pad_token_id=7)
    config = load_checkpoint(tmp_path / "in").model.config
    assert config.eos_ids == (1, 5, 7)
    assert config.pad_id is None  # else the model could never draw what ends its reply

    checkpoint = load_checkpoint(tmp_path / "in")
    write_folder(tmp_path / "out", checkpoint.model, checkpoint.tokenizer, checkpoint.hugging_face, "")
    assert 1 in transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config.eos_token_id


@pytest.mark.parametrize("pad_id", [-1, 640, "x", None])
def test_a_padding_token_that_does_not_exist_is_none(folder: Path, pad_id: Any) -> None:
    edit(folder / "config.json", pad_token_id=pad_id)
    assert load_checkpoint(folder).model.config.pad_id is None


def test_the_chat_template_goes_through(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    checkpoint = load_checkpoint(folder)
    write_folder(tmp_path / "out", checkpoint.model, checkpoint.tokenizer, checkpoint.hugging_face, "")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_folder_that_holds_something_is_not_written_into(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="there already"):
        write_folder(folder, checkpoint.model, checkpoint.tokenizer, checkpoint.hugging_face, "")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_tokenizer_that_cuts_or_fills_up_does_neither_here(tokenizer: Tokenizer, tmp_path: Path) -> None:
    saved_by_transformers(tmp_path, "smollm2", tokenizer)
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=50)
    cutting.save(str(tmp_path / "tokenizer.json"))
    text = "the walnut bookshelf arrived broken"
    assert load_checkpoint(tmp_path).tokenizer.encode(text).ids == tokenizer.encode(text).ids


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def good_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    saved_by_transformers(folder, "qwen2.5", tokenizer)
    return folder


@pytest.fixture
def folder(good_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good_folder, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None as a value is written, `...` removes the key."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(folder) in message
    return message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": ...}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"attention_bias": True}, "attention_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_experts": 8}, "num_experts"),
        ({"use_sliding_window": True, "sliding_window": 128}, "sliding_window = 128"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": LLAMA3_ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_parameters": LLAMA3_ROPE | {"factor": 0}}, "factor"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"num_key_value_heads": -2}, "num_key_value_heads"),
        ({"head_dim": -16}, "head_dim"),
        ({"model_type": "mistral", "sliding_window": 128}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding_attention"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"vocab_size": 10**18}, "wrong kind"),
        ({"rope_parameters": ..., "rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"rope_parameters": "long"}, "wrong kind"),
        ({"rms_norm_eps": [1]}, "rms_norm_eps"),
        ({"vocab_size": 10**30}, "wrong kind"),
        ({"eos_token_id": 640}, "below vocab_size"),
        ({"num_hidden_layers": ...}, "num_hidden_layers"),
        ({"num_key_value_heads": 4}, "4 key-value heads"),
        ({"num_hidden_layers": 4}, "layers.3"),
        ({"num_hidden_layers": 2}, "layers.2"),
        ({"intermediate_size": 96}, "mlp"),
        ({"vocab_size": 100}, "entry 599, but the model only 100 embeddings"),
        ({"vocab_size": 700}, "embed_tokens"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"head_dim": 10**9}, "heads of 1000000000"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be_computed_is_refused_by_name(folder: Path, changes: dict[str, Any], named: str) -> None:
    edit(folder / "config.json", **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda weights: weights.pop("model.norm.weight"), "norm.weight is missing"),
        (lambda weights: weights.pop("model.layers.1.self_attn.q_proj.bias"), "q_proj.bias is missing"),
        (lambda weights: weights.update({"score.weight": torch.ones(2)}), "score.weight is surplus"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(47)}), "norm.weight has the shape [47]"),
        (lambda weights: weights.update({"model.norm.weight": torch.ones(48).char()}), "quantised"),
        (lambda weights: weights.update({"lm_head.weight": torch.ones(640, 48)}), "differs from the embeddings"),
    ],
    ids=["missing", "missing bias", "surplus", "shape", "integers", "untied"],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    folder: Path, change: Callable[[dict[str, Tensor]], Any], named: str
) -> None:
    edit_weights(folder, change)
    assert named in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "junk"])
def test_missing_and_damaged_files_are_refused(folder: Path, name: str, damage: str) -> None:
    contents = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage == "cut":
        (folder / name).write_bytes(contents[: len(contents) // 2])
    if damage == "junk":
        (folder / name).write_bytes(b"\xff" * 1000)
    assert name in refusal(folder)


@pytest.mark.parametrize("named", ["../model.safetensors", "gone.safetensors"])
def test_an_index_may_only_name_files_of_the_folder(folder: Path, named: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}))
    refusal(folder)


def test_repeated_tied_embeddings_and_old_rotary_buffers_are_no_fault(folder: Path) -> None:
    def add(weights: dict[str, Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_weights(folder, add)
    assert load_checkpoint(folder).model.config.tie_embeddings


def test_a_tokenizer_that_does_not_fit_is_refused(folder: Path, tokenizer: Tokenizer) -> None:
    ending = Tokenizer.from_str(tokenizer.to_str())
    ending.post_processor = TemplateProcessing(single="$A <EOS>", special_tokens=[("<EOS>", 1)])
    ending.save(str(folder / "tokenizer.json"))
    assert "post_processor" in refusal(folder)
    larger = Tokenizer.from_str(tokenizer.to_str())
    larger.add_tokens([f"token{number}" for number in range(100)])
    larger.save(str(folder / "tokenizer.json"))
    assert "640 embeddings" in refusal(folder)


# ---------------------------------------------------------------------------------------------------- a real size


@pytest.mark.slow
def test_the_exact_shape_of_smollm2_135m(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shape = SHAPE | {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
        "initializer_range": 0.041666666666666664,
    }
    theirs = saved_by_transformers(tmp_path / "in", "smollm2", tokenizer, shape | {"rms_norm_eps": 1e-5}, spread=0.04)
    checkpoint = load_checkpoint(tmp_path / "in")
    assert sum(parameter.numel() for parameter in checkpoint.model.parameters()) == 134_515_008
    assert_same_model(checkpoint.model, theirs)
    write_folder(tmp_path / "out", checkpoint.model, checkpoint.tokenizer, checkpoint.hugging_face, "")
    assert_same_bits(
        load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "in" / "model.safetensors")
    )
