"""Batched autoregressive sampling with a key-value cache.

A reply depends on its own prompt, the settings and the seed alone: each prompt has its own stream of random numbers,
so neither the batch size nor the neighbours in the batch change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from part3_pretrain.model import Transformer

MAX_CACHE_BYTES = 2**30  # for the keys and values of one batch
MAX_BATCH_SIZE = 200  # larger batches are no faster on a CPU


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave nothing out."""

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    max_new_tokens: int = 128

    @classmethod
    def of(cls, config: Any) -> Sampling:
        """Take these four settings from the options of a command."""
        return cls(config.temperature, config.top_k, config.top_p, config.max_new_tokens)


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
    """Continue every prompt until <EOS> or for `max_new_tokens`; <PAD> is never drawn (both as the config has them).

    Args:
        prompts: ids of each prompt, none empty.
        batch_size: replies written at once; by default up to `MAX_BATCH_SIZE`, as their cache has `MAX_CACHE_BYTES`.
        progress: called with the size of each batch once its replies are written.

    Raises:
        ValueError: a prompt is empty, or leaves the model no positions for `max_new_tokens`.
    """
    _check(model, prompts, sampling)
    if batch_size is None:
        longest_sequence = max(map(len, prompts), default=0) + sampling.max_new_tokens
        batch_size = min(MAX_BATCH_SIZE, max(1, MAX_CACHE_BYTES // _cache_bytes(model, longest_sequence)))
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding in each batch
    replies: dict[int, Generated] = {}
    for start in range(0, len(prompts), batch_size):
        batch = by_length[start : start + batch_size]
        continuations: list[list[int]] = [[] for _ in batch]
        for step in _decode(model, [prompts[index] for index in batch], sampling, seed):
            for row, token in step:
                continuations[row].append(token)
        for index, ids in zip(batch, continuations):
            if ids and ids[-1] in model.config.eos_ids:
                replies[index] = Generated(ids[:-1], stopped=True)
            else:
                replies[index] = Generated(ids, stopped=False)
        progress(len(batch))
    return [replies[index] for index in range(len(prompts))]


def stream(model: Transformer, prompt: list[int], sampling: Sampling, seed: int | str = 0) -> Iterator[int]:
    """Yield the same ids as `generate` returns for one prompt, each as soon as it is drawn.

    Raises ValueError where `generate` does.
    """
    _check(model, [prompt], sampling)
    for [(_, token)] in _decode(model, [prompt], sampling, seed):
        if token not in model.config.eos_ids:
            yield token


def longest_prompt(model: Transformer, sampling: Sampling) -> int:
    """Return the most tokens that a prompt may have, so that the longest reply still fits behind it."""
    return model.config.max_positions - sampling.max_new_tokens


def _check(model: Transformer, prompts: list[list[int]], sampling: Sampling) -> None:
    room = longest_prompt(model, sampling)
    if any(not 0 < len(prompt) <= room for prompt in prompts):
        raise ValueError(f"a prompt must have 1 to {room} tokens, so that {sampling.max_new_tokens} new ones fit")


def _cache_bytes(model: Transformer, length: int) -> int:
    """Return the bytes that the keys and values of one sequence of this many tokens need."""
    config = model.config
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * length * model.embed_tokens.weight.itemsize


@torch.inference_mode()
def _decode(
    model: Transformer, prompts: list[list[int]], sampling: Sampling, seed: int | str
) -> Iterator[list[tuple[int, int]]]:
    """Yield at each step the next token of every prompt that still goes on, after the prompt's index.

    An <EOS> is yielded too, as the last token of its prompt.
    """
    weight = model.embed_tokens.weight
    longest = max(map(len, prompts))
    capacity = longest + sampling.max_new_tokens
    caches = model.new_caches(len(prompts), capacity)

    # Prompts end in the same column, so that all rows write their next token into the same place of the cache.
    tokens = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=weight.device)
    padding = torch.tensor([[longest - len(prompt)] for prompt in prompts], device=weight.device)  # (rows, 1)
    columns = torch.arange(capacity, device=weight.device)
    # 0, or minus infinity for padding, to be added to the scores; each layer would convert a boolean mask.
    padding_mask = weight.new_zeros(len(prompts), capacity).masked_fill(columns < padding, -torch.inf)
    mask = _prompt_mask(padding_mask[:, :longest])  # (rows, 1, longest, longest)
    noise = torch.stack([_noise(prompt, sampling.max_new_tokens, seed) for prompt in prompts]).to(weight.device)

    indices = list(range(len(prompts)))  # of the prompts that the rows belong to
    for step in range(sampling.max_new_tokens):
        start, time = caches[0].length, tokens.shape[1]  # the whole prompt at first, then one token
        positions = (columns[start : start + time] - padding).clamp(min=0)  # (rows, time)
        hidden = model(tokens, positions, mask, caches, output_positions=columns[time - 1 : time])[:, 0]
        next_tokens = sample(model.lm_head(hidden), noise[:, step], sampling, model.config.pad_id)  # (rows,)
        next_ids = next_tokens.tolist()
        yield list(zip(indices, next_ids))

        stopped = [token in model.config.eos_ids for token in next_ids]
        if all(stopped):
            return
        if any(stopped):
            order = _rows_that_go_on(stopped)
            indices = [indices[row] for row in order]
            rows = torch.tensor(order, device=weight.device)
            for cache in caches:
                cache.keep_rows(rows)
            next_tokens, noise = next_tokens[rows], noise[rows]
            padding, padding_mask = padding[rows], padding_mask[rows]
        tokens = next_tokens[:, None]
        mask = padding_mask[:, None, None, : start + time + 1]  # (rows, 1, 1, tokens so far)


def _prompt_mask(padding_mask: Tensor) -> Tensor:
    """Return what hides padding and all later tokens, (rows, 1, time, time), for a padding mask (rows, time)."""
    time = padding_mask.shape[1]
    causal = padding_mask.new_full((time, time), -torch.inf).triu(1)
    mask = (causal + padding_mask[:, None])[:, None]
    mask.diagonal(dim1=-2, dim2=-1).zero_()  # else padding would look at nothing, and nothing has no softmax
    return mask


def _rows_that_go_on(stopped: list[bool]) -> list[int]:
    """Return the rows to keep, in order: running rows from the end fill the gaps, so that all others stay in place."""
    running = [row for row, has_stopped in enumerate(stopped) if not has_stopped]
    order = list(range(len(running)))
    gaps = [row for row in order if stopped[row]]
    for gap, moved in zip(gaps, reversed(running)):
        order[gap] = moved
    return order


def _noise(prompt: list[int], steps: int, seed: int | str) -> Tensor:
    """Return the uniform random numbers that this prompt draws its tokens with, (steps,)."""
    own_seed = crc32(repr((seed, prompt)).encode())
    return torch.rand(steps, dtype=torch.float64, generator=torch.Generator().manual_seed(own_seed))


def sample(logits: Tensor, noise: Tensor, sampling: Sampling, pad_id: int | None) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        logits: (batch, vocab_size).
        noise: uniform in [0, 1), (batch,).
        pad_id: the token that is never drawn, if there is one.

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
    """Set to 0 all but the `top_k` likeliest tokens and the nucleus `top_p` (Holtzman et al. 2020).

    Both count in the probabilities as given, (batch, vocab_size), which are not scaled to add up to 1 again.
    """
    ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered  # the sum of all likelier tokens
    ordered[before >= sampling.top_p] = 0.0
    if sampling.top_k:
        ordered[:, sampling.top_k :] = 0.0
    return torch.zeros_like(probabilities).scatter(-1, ids, ordered)
