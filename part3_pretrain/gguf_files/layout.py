"""What GGUF calls the tensors and sizes of a model, and in which order it keeps the rows of queries and keys."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

from torch import Tensor

from part3_pretrain.model import ModelConfig, rotary_frequencies
from part3_pretrain.runtime.cli import UserError

REQUIREMENT = "gguf==0.19.0"
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
KEYS = {  # of config.json, and of the metadata behind the name of the architecture
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
TENSORS = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKENS = {"bos_token": "bos_token_id", "unk_token": "unknown_token_id", "pad_token": "padding_token_id"}
END_TOKENS = ("eos_token_id", "eot_token_id", "eom_token_id")  # of a text, of a turn, of a message
ROPE_FACTORS = "rope_freqs.weight"  # see `rope_factors`


def check_installed(purpose: str) -> None:
    """Raise UserError where the package is missing that knows the number formats of GGUF."""
    if find_spec("gguf") is None:
        raise UserError(f"{purpose} needs gguf", f"install it with: pip install {REQUIREMENT}")


def architecture_of(family: str) -> str:
    """Return the architecture that GGUF files of a family have; llama.cpp computes Mistral as Llama."""
    return "llama" if family == "mistral" else family


def our_name(name: str) -> str:
    """Return the name that a tensor of a GGUF file has in `Transformer`; an unknown one stays what it is."""
    stem, _, kind = name.rpartition(".")
    block, _, part = stem.rpartition(".")
    if block.startswith("blk.") and part in BLOCK_TENSORS:
        return f"layers.{block.removeprefix('blk.')}.{BLOCK_TENSORS[part]}.{kind}"
    return f"{TENSORS.get(stem, stem)}.{kind}"


def gguf_name(name: str) -> str:
    """Return the name that a parameter of `Transformer` has in a GGUF file."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("layers."):
        _, number, part = stem.split(".", 2)
        return f"blk.{number}.{_key_of(BLOCK_TENSORS, part)}.{kind}"
    return f"{_key_of(TENSORS, stem)}.{kind}"


def interleave_heads(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Return the rows of Llama's queries and keys as llama.cpp has them, pair by pair; any other tensor as it is.

    A rotary pair is two rows of a head: here, as in Hugging Face's layout, the first rows of all pairs come first.
    """
    return _reorder(name, tensor, config, (2, -1))


def halve_heads(name: str, tensor: Tensor, config: ModelConfig) -> Tensor:
    """Undo `interleave_heads`."""
    return _reorder(name, tensor, config, (-1, 2))


def _reorder(name: str, tensor: Tensor, config: ModelConfig, pairs: tuple[int, int]) -> Tensor:
    heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(name.split(".")[-2])
    if heads is None or architecture_of(config.family) != "llama":
        return tensor
    return tensor.unflatten(0, (heads, *pairs)).transpose(1, 2).reshape(tensor.shape)


def rope_factors(config: ModelConfig) -> Tensor:
    """Return by what Llama 3.1's scaling divides each rotary frequency, (head_dim / 2,)."""
    return rotary_frequencies(replace(config, rope_scaling=None)) / rotary_frequencies(config)


def _key_of(table: dict[str, str], value: str) -> str:
    return next(key for key, other in table.items() if other == value)
