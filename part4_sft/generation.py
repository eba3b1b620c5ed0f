"""Batched autoregressive sampling with a key-value cache.

A reply depends on its own prompt, the settings and the seed alone: each prompt has its own stream of random numbers,
so neither the batch size nor the neighbours in the batch change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

import torch
from torch import Tensor

from part3_pretrain.model import KVCache, Transformer

CACHE_AT_ONCE = 2**30  # bytes for keys and values
MOST_AT_ONCE = 200  # replies: more are no faster on a CPU


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave nothing out."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128


@dataclass(frozen=True)
class Generated:
    """The ids that follow a prompt, without <EOS>, and whether <EOS> ended them."""

    ids: list[int]
    stopped: bool


def generate(
    model: Transformer,
    prompts: list[list[int]],
    sampling: Sampling,
    *,
    seed: int | str = 0,
    batch_size: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Generated]:
    """Continues every prompt until <EOS> or for `max_new_tokens`; <PAD> is never drawn (both as the config has them).

    Args:
        prompts: ids of each prompt, none empty.
        batch_size: replies written at once; by default as many as fit into the memory of `CACHE_AT_ONCE`.
        progress: called with the number of replies whenever some are written.

    Raises:
        ValueError: a prompt is empty, or leaves the model no positions for `max_new_tokens`.
    """
    _check(model, prompts, sampling)
    if batch_size is None:
        longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
        batch_size = min(MOST_AT_ONCE, max(1, CACHE_AT_ONCE // cache_bytes(model, longest)))
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding in each batch
    replies: dict[int, Generated] = {}
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        written: list[list[int]] = [[] for _ in chosen]
        for drawn in _draws(model, [prompts[index] for index in chosen], sampling, seed):
            for row, token in drawn:
                written[row].append(token)
        for index, ids in zip(chosen, written):
            stopped = any(token in model.config.eos_ids for token in ids[-1:])
            replies[index] = Generated(ids[: len(ids) - stopped], stopped)
        progress(len(chosen))
    return [replies[index] for index in range(len(prompts))]


def stream(model: Transformer, prompt: list[int], sampling: Sampling, seed: int | str = 0) -> Iterator[int]:
    """What `generate` continues one prompt with, token by token, each as soon as it is drawn; the same ids.

    Raises ValueError where `generate` does.
    """
    _check(model, [prompt], sampling)
    for ((_, token),) in _draws(model, [prompt], sampling, seed):
        if token not in model.config.eos_ids:
            yield token


def longest_prompt(model: Transformer, sampling: Sampling) -> int:
    """Most tokens of a prompt, so that the longest reply still fits behind it."""
    return model.config.max_positions - sampling.max_new_tokens


def _check(model: Transformer, prompts: list[list[int]], sampling: Sampling) -> None:
    room = longest_prompt(model, sampling)
    if any(not 0 < len(prompt) <= room for prompt in prompts):
        raise ValueError(f"a prompt must have 1 to {room} tokens, so that {sampling.max_new_tokens} new ones fit")


def cache_bytes(model: Transformer, length: int) -> int:
    """What the keys and values of one row of so many tokens need."""
    config = model.config
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * length * model.embed_tokens.weight.itemsize


@torch.inference_mode()
def _draws(
    model: Transformer, prompts: list[list[int]], sampling: Sampling, seed: int | str
) -> Iterator[list[tuple[int, int]]]:
    """Step by step, which prompts (by index) go on with which token; the last of a prompt may be <EOS>."""
    device = model.embed_tokens.weight.device
    longest = max(map(len, prompts))
    steps = sampling.max_new_tokens
    cache = KVCache(model.config, len(prompts), longest + steps, like=model.embed_tokens.weight)
    noise = torch.stack([_noise(prompt, steps, seed) for prompt in prompts]).to(device)

    # Prompts end in the same column, so that all rows write their next token into the same place of the cache.
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)[:, None]
    columns = torch.arange(longest + steps, device=device)
    # Added to the scores: 0, or minus infinity where a row has padding. (A boolean mask every layer would convert.)
    hides = torch.zeros(len(prompts), longest + steps, dtype=cache.keys.dtype, device=device)
    hides[columns < padding] = -torch.inf
    causal = torch.full((longest, longest), -torch.inf, dtype=hides.dtype, device=device).triu(1)
    mask = (causal + hides[:, None, :longest])[:, None]
    mask.diagonal(dim1=-2, dim2=-1).zero_()  # else padding would look at nothing, and nothing has no softmax

    rows = list(range(len(prompts)))  # which prompt each row of the batch belongs to
    for step in range(steps):
        positions = (columns[cache.length : cache.length + tokens.shape[1]] - padding).clamp(min=0)
        last = torch.arange(1, len(rows) + 1, device=device) * tokens.shape[1] - 1
        hidden = model(tokens, positions, mask, cache, wanted=last)
        drawn = sample(model.lm_head(hidden), noise[:, step], sampling, model.config.pad_id)
        tokens_drawn = drawn.tolist()
        yield list(zip(rows, tokens_drawn))
        stopped = [token in model.config.eos_ids for token in tokens_drawn]
        running = [index for index in range(len(rows)) if not stopped[index]]
        if not running:
            return
        if len(running) < len(rows):
            # Rows from the end take the places of those that have stopped: all others need not be moved.
            order = [index if not stopped[index] else running.pop() for index in range(len(running))]
            keep = torch.tensor(order, device=device)
            cache.keep(keep)
            rows = [rows[index] for index in order]
            drawn, noise, padding, hides = drawn[keep], noise[keep], padding[keep], hides[keep]
        tokens = drawn[:, None]
        mask = hides[:, None, None, : cache.length + 1]


def _noise(prompt: list[int], steps: int, seed: int | str) -> Tensor:
    """The uniform random numbers that this prompt draws its tokens with, (steps,)."""
    own_seed = crc32(repr((seed, prompt)).encode())
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(own_seed))


def sample(logits: Tensor, noise: Tensor, sampling: Sampling, pad_id: int | None) -> Tensor:
    """Draws one token a row by inverting the cumulative distribution.

    Args:
        logits: (batch, vocab_size).
        noise: uniform in [0, 1), (batch,).

    Returns:
        ids, (batch,).
    """
    logits = logits.float()
    if pad_id is not None:
        logits = logits.index_fill(-1, torch.tensor(pad_id, device=logits.device), -torch.inf)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_k or sampling.top_p < 1:
        probabilities = _truncated(probabilities, sampling)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)  # float32 would round small ones away
    return torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)[:, 0]


def _truncated(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Sets those to 0, (batch, vocab_size), that are not among the `top_k` or outside of the nucleus `top_p`."""
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    ordered[before >= sampling.top_p] = 0.0  # nucleus sampling (Holtzman et al. 2020)
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0.0
    return torch.zeros_like(probabilities).scatter(-1, ids, ordered)
