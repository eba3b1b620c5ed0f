"""The Transformer: a decoder of the Llama family, with a static key-value cache for generation.

RMSNorm (Zhang and Sennrich 2019) before each block, rotary positions (Su et al. 2021) in the half-split layout that
Hugging Face uses, grouped-query attention (Ainslie et al. 2023), SwiGLU (Shazeer 2020). Llama and Mistral have no
biases, Qwen2 has them on queries, keys and values, Qwen3 normalises queries and keys instead. Parameters carry the
names of `transformers.LlamaModel`, so weights travel without a table of names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from part3_pretrain.norm import RMSNorm

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
MAX_SIZE = 1024  # layers, and width of a head: the claim of a billion would fill the memory before it is refused

Rope = tuple[Tensor, Tensor]  # cosines and signed sines, see `rotary_factors`
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, each (batch, heads, time, head_dim)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model, by default one that two CPU cores pretrain in minutes; ValueError where none can be."""

    vocab_size: int
    hidden_size: int = 160
    intermediate_size: int = 448
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 4
    head_dim: int = None  # type: ignore[assignment]  # by default hidden_size / num_heads
    max_positions: int = 512
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, float] | None = None  # the numbers of Llama 3.1's scaling, see `rotary_frequencies`
    norm_eps: float = 1e-5
    tie_embeddings: bool = True
    eos_ids: tuple[int, ...] = (1,)  # any of them ends a reply; the first is what fine-tuning teaches
    pad_id: int | None = 0  # never drawn
    family: str = "llama"  # one of FAMILIES

    def __post_init__(self) -> None:
        if self.head_dim is None and self.num_heads:  # 0 heads are refused below
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_heads)
        sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.num_layers]
        sizes += [self.num_heads, self.num_kv_heads, self.head_dim, self.max_positions]
        if not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"its sizes must be whole numbers above 0, not {tuple(sizes)}")
        layers, heads, kv_heads, head_dim = self.num_layers, self.num_heads, self.num_kv_heads, self.head_dim
        if layers > MAX_SIZE or head_dim > MAX_SIZE:
            raise ValueError(f"{layers} layers with heads of {head_dim}: at most {MAX_SIZE} can be used")
        if heads % kv_heads or head_dim % 2:
            raise ValueError(f"{heads} heads of width {head_dim} cannot share {kv_heads} key-value heads")
        if not (0 < self.norm_eps < math.inf and 0 < self.rope_theta < math.inf):
            raise ValueError("norm_eps and rope_theta must be numbers above 0")
        control = [*self.eos_ids] if self.pad_id is None else [*self.eos_ids, self.pad_id]
        if not self.eos_ids or not all(0 <= token < self.vocab_size for token in control):
            raise ValueError(f"its control tokens {control} must be there and below vocab_size = {self.vocab_size}")
        if self.family not in FAMILIES:
            raise ValueError(f"its family is {self.family!r}; those that can be used are {', '.join(FAMILIES)}")


class KVCache:
    """One layer's keys and values of all tokens so far, (batch, kv_heads, capacity, head_dim)."""

    def __init__(self, config: ModelConfig, batch_size: int, capacity: int, like: Tensor) -> None:
        self.keys = like.new_empty(batch_size, config.num_kv_heads, capacity, config.head_dim)
        self.values = torch.empty_like(self.keys)
        self.length = 0  # tokens so far

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of new tokens, (batch, kv_heads, time, head_dim), and return those of all tokens so far."""
        start, end = self.length, self.length + keys.shape[2]
        self.keys[:, :, start:end] = keys
        self.values[:, :, start:end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep_rows(self, rows: Tensor) -> None:
        """Keep only the sequences with the indices `rows`, in this order; copy only those that change their place.

        `rows` is on the CPU, so that nothing here waits for a GPU.
        """
        moved = (rows != torch.arange(len(rows))).nonzero()[:, 0]
        places, sources = (indices.to(self.keys.device, non_blocking=True) for indices in (moved, rows[moved]))
        for cached in (self.keys, self.values):
            cached[places, :, : self.length] = cached[sources, :, : self.length]
        self.keys, self.values = self.keys[: len(rows)], self.values[: len(rows)]


class Attention(nn.Module):
    """Self-attention with rotary positions; several query heads may share one key-value head.

    Returns the heads' outputs side by side, (batch, time, num_heads * head_dim); `Block` applies `o_proj` to them.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        bias = config.family == "qwen2"
        self.q_proj = nn.Linear(config.hidden_size, config.num_heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, config.num_kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_heads * config.head_dim, config.hidden_size, bias=False)
        self.normalises = config.family == "qwen3"
        if self.normalises:
            self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, rope: Rope, attend: Attend, cache: KVCache | None) -> Tensor:
        queries, keys, values = (
            projection(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (batch, heads, time, head_dim)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.normalises:
            queries, keys = self.q_norm(queries), self.k_norm(keys)
        queries, keys = rotate(queries, *rope), rotate(keys, *rope)
        if cache is not None:
            keys, values = cache.append(keys, values)
        group_size = queries.shape[1] // keys.shape[1]
        if group_size > 1 and keys.is_cuda:  # whose kernels for masks and for float32 share no keys (torch 2.13)
            keys, values = keys.repeat_interleave(group_size, dim=1), values.repeat_interleave(group_size, dim=1)
        return attend(queries, keys, values).transpose(1, 2).flatten(2)


class SwiGLU(nn.Module):
    """The feed-forward part of a block: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention and SwiGLU, each of the normalised input and added to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Tensor, rope: Rope, attend: Attend, cache: KVCache | None, output_positions: Tensor | None
    ) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), rope, attend, cache)
        if output_positions is not None:  # from here on, no token needs another one
            x, attended = x.index_select(1, output_positions), attended.index_select(1, output_positions)
        x = x + self.self_attn.o_proj(attended)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """A causal language model without its last product: token ids in, hidden states out, see `forward`."""

    layers: Any  # of type Block each, which torch cannot say

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False  # whether training computes the blocks twice to save memory
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_embeddings()
        self.frequencies = rotary_frequencies(config)  # no buffer: buffers are cast with the weights, see `_apply`
        if self.embed_tokens.weight.is_meta:  # where there are no numbers to draw, torch takes seconds to see that
            return
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for block in self.layers:  # keeps the residual stream's variance independent of depth (Radford et al. 2019)
            for projection in (block.self_attn.o_proj, block.mlp.down_proj):
                nn.init.normal_(projection.weight, std=0.02 / (2 * config.num_layers) ** 0.5)

    def tie_embeddings(self) -> None:
        """Make input and output embeddings one tensor (Press and Wolf 2017), where the config asks for it."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Transformer:
        """Move or cast the weights, as `to` and `bfloat16` ask for; the rotary angles are moved too, but never cast."""
        super()._apply(fn, recurse)
        self.frequencies = self.frequencies.to(self.embed_tokens.weight.device)
        return self

    def new_caches(self, batch_size: int, capacity: int) -> list[KVCache]:
        """Return an empty cache for each layer, with room for `capacity` tokens of each sequence."""
        return [KVCache(self.config, batch_size, capacity, like=self.embed_tokens.weight) for _ in self.layers]

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[KVCache] | None = None,
        *,
        lengths: list[int] | None = None,
        output_positions: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states after the last norm, (batch, time or n, hidden_size); `lm_head` makes them logits.

        Args:
            tokens: ids, (batch, time).
            positions: place of each token in its sequence, (batch, time); by default they count on from the caches.
            mask: which tokens each token attends to, broadcastable to (batch, heads, time, tokens so far): boolean, or
                0 and minus infinity to be added to the scores; by default each attends to itself and to all before it.
            caches: one for each layer; they hold the tokens before `tokens`, and the new ones are added.
            lengths: of the texts that stand one behind another in `tokens`, which is then a batch of one row; no
                text attends to another, and there is no padding.
            output_positions: columns of `tokens` to return, (n,), by default all; `o_proj` and SwiGLU of the last
                block skip the others, which makes a fine-tuning step about 5% faster.
        """
        start = caches[0].length if caches else 0
        columns = torch.arange(start + tokens.shape[1], device=tokens.device)
        if lengths is not None:
            positions = torch.cat([columns[:length] for length in lengths])[None]
        elif positions is None:
            positions = columns[None, start:]
        if mask is None and start:  # without a mask, attention takes the first new token for the first of all
            mask = columns <= columns[start:, None]
        x = self.embed_tokens(tokens)
        rope = rotary_factors(positions[:, None, :, None] * self.frequencies, x.dtype)
        attend = attention(mask, lengths, like=x)
        for block, cache in zip(self.layers, caches or repeat(None)):
            arguments = (x, rope, attend, cache, output_positions if block is self.layers[-1] else None)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x = block(*arguments)
        return self.norm(x)


def rotary_frequencies(config: ModelConfig) -> Tensor:
    """Return the angle by which each pair of dimensions turns from one position to the next, theta^(-2i/head_dim).

    (head_dim / 2,), always in float32 and on the CPU. With `rope_scaling`, as Llama 3.1 does it (Grattafiori et al.
    2024): waves longer than the text that the model was first trained on are stretched by `factor`, short ones are left
    alone, those between are interpolated.
    """
    dimensions = torch.arange(0, config.head_dim, 2, device="cpu").float()
    frequencies = config.rope_theta ** (-dimensions / config.head_dim)
    if config.rope_scaling is None:
        return frequencies
    low, high = config.rope_scaling["low_freq_factor"], config.rope_scaling["high_freq_factor"]
    turns = config.rope_scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / config.rope_scaling["factor"])


def rotary_factors(angles: Tensor, dtype: torch.dtype) -> Rope:
    """Return the two factors of `rotate`, each (..., head_dim), for angles (..., head_dim / 2)."""
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + head_dim/2) of `x`, (batch, heads, time, head_dim), by the angles of `rotary_factors`."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


def attention(mask: Tensor | None, lengths: list[int] | None, like: Tensor) -> Attend:
    """Choose the softmax attention (Vaswani et al. 2017) for what `Transformer.forward` was given.

    On CUDA, texts that stand one behind another take one call, not one for each: flash attention in bfloat16, padded
    rows in float32. The indices for that are made on the CPU and copied without waiting. It has not run on a GPU.
    """
    if lengths is None:
        return partial(_attend, mask=mask)
    if not like.is_cuda:
        return partial(_attend_text_by_text, lengths=lengths)
    if like.dtype == torch.bfloat16:
        ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(like.device, non_blocking=True)
        return partial(_attend_within_texts_by_flash, ends=ends, longest=max(lengths))
    tokens, places = (indices.to(like.device, non_blocking=True) for indices in padded_rows(lengths))
    return partial(_attend_within_padded_rows, tokens=tokens, places=places)


def padded_rows(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Return how texts that stand one behind another become rows with padding on the right, and how they come back.

    The token at each place of the rows, (texts, longest), any for padding; the place of each token, (time,).
    """
    tokens = pad_sequence(torch.arange(sum(lengths)).split(lengths), batch_first=True)
    is_text = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return tokens, is_text.flatten().nonzero()[:, 0]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=mask is None, enable_gqa=True)


def _attend_text_by_text(queries: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Tensor:
    texts = zip(*(x.split(lengths, dim=2) for x in (queries, keys, values)))
    return torch.cat([_attend(*text) for text in texts], dim=2)


def _attend_within_padded_rows(queries: Tensor, keys: Tensor, values: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    rows = (x[0].index_select(1, tokens.flatten()).unflatten(1, tokens.shape) for x in (queries, keys, values))
    mixed = _attend(*(x.transpose(0, 1) for x in rows))  # (texts, heads, longest, head_dim); no text sees its padding
    return mixed.transpose(0, 1).flatten(1, 2).index_select(1, places)[None]


def _attend_within_texts_by_flash(queries: Tensor, keys: Tensor, values: Tensor, ends: Tensor, longest: int) -> Tensor:
    queries, keys, values = (x[0].transpose(0, 1) for x in (queries, keys, values))
    causal = (-1, 0)  # a window: every token before, none after
    mixed = varlen_attn(queries, keys, values, ends, ends, longest, longest, window_size=causal)
    return mixed.transpose(0, 1)[None]  # type: ignore[union-attr]  # more than one tensor only where that is asked for
