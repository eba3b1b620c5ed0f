"""Batched autoregressive sampling with a key-value cache.

A reply depends on its own prompt, the settings and the seed alone: each prompt has its own stream of random numbers,
so neither the batch size nor the neighbours in the batch change it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from part3_pretrain.model import Transformer
from part3_pretrain.runtime.device import free_memory

MAX_CACHE_BYTES = 2**30  # for the keys and values of one batch on a CPU
MAX_BATCH_SIZE = 200  # larger batches are no faster there
BYTES_PER_LOGIT = 64  # at most, of all that `sample` makes of one


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the likeliest token; top_k 0 and top_p 1 leave nothing out."""

    temperature: float = 0.4
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
    seeds: Sequence[int | str] | None = None,
    batch_size: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Generated]:
    """Continue every prompt until <EOS> or for `max_new_tokens`; <PAD> is never drawn (both as the config has them).

    Args:
        seeds: one for each prompt in the place of `seed`, so that several samples of a prompt can be drawn together.
        batch_size: replies written at once; by default those of `fitting_batch_size`.
        progress: called with the size of each batch once its replies are written.

    Raises ValueError where a prompt is empty or leaves the model too few positions for `max_new_tokens`.
    """
    _check(model, prompts, sampling)
    seeds = seeds or [seed] * len(prompts)
    if batch_size is None:
        batch_size = fitting_batch_size(model, max(map(len, prompts), default=0) + sampling.max_new_tokens)
    # Little padding in each batch, and samples of a prompt side by side.
    by_length = sorted(range(len(prompts)), key=lambda index: (len(prompts[index]), prompts[index]))
    replies: dict[int, Generated] = {}
    for start in range(0, len(prompts), batch_size):
        batch = by_length[start : start + batch_size]
        continuations: list[list[int]] = [[] for _ in batch]
        for step in _decode(model, [(seeds[index], prompts[index]) for index in batch], sampling):
            for row, token in step:
                continuations[row].append(token)
        for index, ids in zip(batch, continuations):
            stopped = bool(ids) and ids[-1] in model.config.eos_ids
            replies[index] = Generated(ids[:-1] if stopped else ids, stopped)
        progress(len(batch))
    return [replies[index] for index in range(len(prompts))]


def stream(model: Transformer, prompt: list[int], sampling: Sampling, seed: int | str = 0) -> Iterator[int]:
    """Yield the ids that `generate` returns for one prompt, each as soon as it is drawn; refuse what it refuses."""
    _check(model, [prompt], sampling)
    for [(_, token)] in _decode(model, [(seed, prompt)], sampling):
        if token not in model.config.eos_ids:
            yield token


def fitting_batch_size(model: Transformer, longest: int) -> int:
    """Return how many sequences of `longest` tokens are written at once, as their keys and values fit into memory.

    On a GPU these and the logits take a quarter of what is free, and leave the rest to the prompts' activations. That
    has not run on a GPU.
    """
    shape, weight = model.config, model.embed_tokens.weight
    sequence_bytes = 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * longest * weight.itemsize
    free = free_memory(weight.device)
    if free is None:
        return max(1, min(MAX_BATCH_SIZE, MAX_CACHE_BYTES // sequence_bytes))
    return max(1, free // 4 // (sequence_bytes + BYTES_PER_LOGIT * shape.vocab_size))


def longest_prompt(model: Transformer, sampling: Sampling) -> int:
    """Return the most tokens that a prompt may have, so that the longest reply still fits behind it."""
    return model.config.max_positions - sampling.max_new_tokens


def _check(model: Transformer, prompts: list[list[int]], sampling: Sampling) -> None:
    room = longest_prompt(model, sampling)
    if any(not 0 < len(prompt) <= room for prompt in prompts):
        raise ValueError(f"a prompt must have 1 to {room} tokens, so that {sampling.max_new_tokens} new ones fit")


@torch.inference_mode()
def _decode(
    model: Transformer, seeds_and_prompts: list[tuple[int | str, list[int]]], sampling: Sampling
) -> Iterator[list[tuple[int, int]]]:
    """Yield at each step (index, next token) of every prompt that still goes on; an <EOS> is its last token."""
    weight = model.embed_tokens.weight
    prompts = list(dict.fromkeys(tuple(prompt) for _, prompt in seeds_and_prompts))  # read once for all samples
    longest = max(map(len, prompts))

    # Prompts end in the same column, so that all rows write their next token into the same place of the cache.
    tokens = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=weight.device)
    padding = torch.tensor([[longest - len(prompt)] for prompt in prompts], device=weight.device)  # (rows, 1)
    columns = torch.arange(longest + sampling.max_new_tokens, device=weight.device)
    # 0, or minus infinity for padding, to be added to the scores; each layer would convert a boolean mask.
    padding_mask = torch.where(columns < padding[:, None, None], -torch.inf, 0.0).to(weight.dtype)
    mask = weight.new_full((longest, longest), -torch.inf).triu(1) + padding_mask[..., :longest]
    mask.diagonal(dim1=-2, dim2=-1).zero_()  # else padding would look at nothing, and nothing has no softmax
    positions, prompt_caches = (columns[:longest] - padding).clamp(min=0), model.new_caches(len(prompts), longest)
    hidden = model(tokens, positions, mask, prompt_caches, output_positions=columns[longest - 1 : longest])[:, 0]

    place = {prompt: row for row, prompt in enumerate(prompts)}  # from here on, a row is a sample
    rows = torch.tensor([place[tuple(prompt)] for _, prompt in seeds_and_prompts], device=weight.device)
    hidden, padding, padding_mask = hidden[rows], padding[rows], padding_mask[rows]
    caches = model.new_caches(len(rows), len(columns))
    for cache, read in zip(caches, prompt_caches):
        cache.append(read.keys[rows], read.values[rows])
    # (rows, max_new_tokens), uniform: the random numbers that each prompt draws its tokens with.
    generators = [torch.Generator().manual_seed(crc32(repr(both).encode())) for both in seeds_and_prompts]
    shape, dtype = sampling.max_new_tokens, torch.float64
    noise = torch.stack([torch.rand(shape, generator=own, dtype=dtype) for own in generators]).to(weight.device)

    indices = list(range(len(rows)))  # of the samples that the rows belong to
    for step in range(sampling.max_new_tokens):
        next_tokens = sample(model.lm_head(hidden), noise[:, step], sampling, model.config.pad_id)  # (rows,)
        next_ids = next_tokens.tolist()
        yield list(zip(indices, next_ids))

        running = list(range(len(indices)))
        for row in reversed(range(len(indices))):
            if next_ids[row] in model.config.eos_ids:
                running[row] = running[-1]  # the last row takes its place, and all others stay where they are
                running.pop()
        if not running or step == sampling.max_new_tokens - 1:
            return
        if len(running) < len(indices):
            indices, kept = [indices[row] for row in running], torch.tensor(running)
            for cache in caches:
                cache.keep_rows(kept)
            rows = kept.to(weight.device, non_blocking=True)
            next_tokens, noise = next_tokens[rows], noise[rows]
            padding, padding_mask = padding[rows], padding_mask[rows]
        column = longest + step  # of these tokens
        hidden = model(next_tokens[:, None], column - padding, padding_mask[..., : column + 1], caches)[:, 0]


def sample(logits: Tensor, noise: Tensor, sampling: Sampling, pad_id: int | None) -> Tensor:
    """Draw one id a row, (batch,), by inverting the cumulative distribution; `pad_id` is never drawn.

    A token must be one of the `top_k` likeliest and in the nucleus `top_p` (Holtzman et al. 2020), both chosen from
    the same probabilities, those of all tokens.

    Args:
        logits: (batch, vocab_size).
        noise: uniform in [0, 1), (batch,).
    """
    logits = logits.float()
    if pad_id is not None:
        logits = logits.index_fill(-1, torch.full((1,), pad_id, device=logits.device), -torch.inf)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_k or sampling.top_p < 1:
        ordered, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        likelier = ordered.cumsum(-1) - ordered  # the sum of all likelier tokens
        ordered[likelier >= sampling.top_p] = 0.0
        if sampling.top_k:
            ordered[:, sampling.top_k :] = 0.0
        probabilities = torch.zeros_like(probabilities).scatter(-1, ids, ordered)
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)  # float32 would round small ones away
    return torch.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], right=True)[:, 0]
