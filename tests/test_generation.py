from __future__ import annotations

from itertools import takewhile
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock
from zlib import crc32

import pytest
import torch
from torch import nn

from part3_pretrain.model import ModelConfig, Transformer
from part4_sft import generation
from part4_sft.generation import Generated, Sampling, generate, sample, stream

PAD, EOS, VOCAB = 0, 1, 24
RNG = Random(5)
# The longest fills the model's 64 positions together with 20 new tokens.
PROMPTS = [[RNG.randrange(2, VOCAB) for _ in range(length)] for length in (30, 1, 7, 2, 19, 44, 3, 12, 1, 25, 6)]
GREEDY = Sampling(temperature=0, max_new_tokens=20)
SOFT = Sampling(0.8, max_new_tokens=20)
BYTES_OF_LONGEST = 2 * 64 * 2 * 2 * 8 * 4  # 44 + 20 float32 keys and values, in 2 layers with 2 heads of width 8
WILD = Sampling(1.5, top_k=12, top_p=0.95, max_new_tokens=20)


def random_model(favourite: int = PAD, bias: float = 0.0, **config: Any) -> Transformer:
    """Return a model that is sure of itself, so that some replies end by themselves; add a bias to one logit."""
    torch.manual_seed(3)
    model = Transformer(ModelConfig(VOCAB, 32, 64, num_layers=2, num_kv_heads=2, max_positions=64, **config)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 12
    model.lm_head.bias = nn.Parameter(torch.zeros(VOCAB).index_fill(0, torch.tensor(favourite), bias))
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model()


@pytest.mark.parametrize("sampling", [GREEDY, SOFT, WILD])
def test_a_reply_does_not_depend_on_batch_size_or_neighbours(model: Transformer, sampling: Sampling) -> None:
    alone = generate(model, PROMPTS, sampling, batch_size=1)
    assert {reply.stopped for reply in alone} == {True, False}  # rows leave the batch at different steps
    assert len({tuple(reply.ids) for reply in alone}) == len(alone)
    for batch_size in (3, 7, None):
        assert generate(model, PROMPTS, sampling, batch_size=batch_size) == alone
    assert generate(model, PROMPTS[::-1], sampling, batch_size=3) == alone[::-1]
    assert [list(stream(model, prompt, sampling)) for prompt in PROMPTS] == [reply.ids for reply in alone]


@pytest.mark.parametrize(
    ("cache_bytes", "max_batch_size", "expected"),
    [
        (generation.MAX_CACHE_BYTES, generation.MAX_BATCH_SIZE, [11]),
        (4 * BYTES_OF_LONGEST, 200, [4, 4, 3]),
        (2**30, 3, [3, 3, 3, 2]),
        (1, 200, [1] * 11),
    ],
)
def test_batches_are_as_large_as_the_cache_and_the_limit_allow(
    cache_bytes: int, max_batch_size: int, expected: list[int], model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MAX_CACHE_BYTES", cache_bytes)
    monkeypatch.setattr(generation, "MAX_BATCH_SIZE", max_batch_size)
    sizes: list[int] = []
    generate(model, PROMPTS, SOFT, progress=sizes.append)
    assert sizes == expected
    assert generate(model, [], SOFT) == []


def test_on_a_gpu_cache_and_logits_take_a_quarter_of_what_is_free(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "MAX_BATCH_SIZE", 2)  # holds for a CPU alone, as does the next
    monkeypatch.setattr(generation, "MAX_CACHE_BYTES", 1)
    sizes: list[int] = []
    for free in (4 * 4 * (BYTES_OF_LONGEST + generation.BYTES_PER_LOGIT * VOCAB), 0):
        monkeypatch.setattr(generation, "free_memory", Mock(return_value=free))
        generate(model, PROMPTS, SOFT, progress=sizes.append)
    assert sizes == [4, 4, 3] + [1] * 11


@pytest.mark.parametrize("sampling", [GREEDY, SOFT, WILD])
def test_samples_of_a_prompt_that_are_drawn_together_are_those_drawn_alone(
    model: Transformer, sampling: Sampling
) -> None:
    seeds: list[int | str] = [0, 1, "0/other 1", 3]
    together = generate(model, PROMPTS * 4, sampling, seeds=[seed for seed in seeds for _ in PROMPTS])
    alone = [reply for seed in seeds for reply in generate(model, PROMPTS, sampling, seed=seed)]
    assert together == alone


def test_pad_is_never_drawn_unless_the_model_has_none(model: Transformer) -> None:
    assert generate(random_model(PAD, 1e4), PROMPTS, SOFT) == generate(model, PROMPTS, SOFT)
    without_padding = random_model(PAD, 1e4, pad_id=None)
    assert generate(without_padding, PROMPTS, SOFT) == [Generated([PAD] * 20, stopped=False)] * len(PROMPTS)


@pytest.mark.parametrize("end", [EOS, 7])
def test_any_eos_ends_a_reply_and_is_no_part_of_it(end: int) -> None:
    ends = random_model(end, 1e4, eos_ids=(EOS, 7))
    assert generate(ends, PROMPTS, SOFT) == [Generated([], stopped=True)] * len(PROMPTS)
    assert list(stream(ends, PROMPTS[0], SOFT)) == []


@pytest.mark.parametrize("length", [0, 45])
def test_a_prompt_that_is_empty_or_leaves_too_few_positions_is_refused(model: Transformer, length: int) -> None:
    with pytest.raises(ValueError, match="a prompt must have 1 to 44 tokens, so that 20 new ones fit"):
        generate(model, [[5], [5] * length], SOFT)
    with pytest.raises(ValueError, match="a prompt must have"):
        next(stream(model, [5] * length, SOFT))


def test_the_seed_decides_the_reply(model: Transformer) -> None:
    first, second, third = (generate(model, PROMPTS, SOFT, seed=seed) for seed in (1, 2, "1"))
    assert first != second and first != third
    assert [list(stream(model, prompt, SOFT, seed=2)) for prompt in PROMPTS] == [reply.ids for reply in second]


def test_the_random_numbers_of_a_prompt_stay_the_same_from_version_to_version() -> None:
    indifferent = random_model()
    for parameter in indifferent.parameters():
        parameter.data.zero_()  # every token but <PAD> is as likely as any other
    for prompt, reply in zip(PROMPTS, generate(indifferent, PROMPTS, SOFT, seed=5)):
        own = torch.Generator().manual_seed(crc32(repr((5, prompt)).encode()))
        drawn = (1 + torch.rand(20, dtype=torch.float64, generator=own) * (VOCAB - 1)).long().tolist()
        assert reply.ids == list(takewhile(lambda token: token != EOS, drawn))


def test_settings_are_taken_from_the_options_of_a_command() -> None:
    options = SimpleNamespace(temperature=0.5, top_k=3, top_p=0.8, max_new_tokens=9, seed=4)
    assert Sampling.of(options) == Sampling(temperature=0.5, top_k=3, top_p=0.8, max_new_tokens=9)


UNEQUAL = [3.0, -1.0, 0.5, 2.0, 0.4, -3.0, 1.7]  # without <PAD>, 0.44 0.32 0.10 0.09 0.02 0.003
EQUAL = [0.0] * 5  # without <PAD>, exactly 0.25 each


@pytest.mark.parametrize(
    ("logits", "sampling", "allowed"),
    [
        *((UNEQUAL, Sampling(temperature), [1, 2, 3, 4, 5, 6]) for temperature in (0.7, 1.5)),
        (UNEQUAL, Sampling(0.0), [3]),
        (UNEQUAL, Sampling(0.7, top_k=1), [3]),
        (UNEQUAL, Sampling(1.0, top_p=0.40), [3]),
        (UNEQUAL, Sampling(1.0, top_p=0.80), [2, 3, 6]),
        (UNEQUAL, Sampling(1.0, top_p=0.95, top_k=2), [3, 6]),
        (EQUAL, Sampling(1.0, top_p=0.50), [1, 2]),  # of equals the first
        (EQUAL, Sampling(1.0, top_k=3), [1, 2, 3]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_softmax_over_the_allowed_ones_says(
    logits: list[float], sampling: Sampling, allowed: list[int]
) -> None:
    noise = torch.arange(20_000, dtype=torch.float64) / 20_000  # every value equally often, from 0
    drawn = sample(torch.tensor(logits).repeat(20_000, 1), noise, sampling, PAD)
    expected = torch.full((len(logits),), -torch.inf)
    expected[allowed] = torch.tensor(logits)[allowed] / (sampling.temperature or 1.0)
    frequencies = torch.bincount(drawn, minlength=len(logits)) / 20_000
    torch.testing.assert_close(frequencies, expected.softmax(0), atol=1e-4, rtol=0)
    assert set(drawn.tolist()) == set(allowed)


def test_very_unlikely_tokens_are_drawn_too() -> None:
    logits = torch.tensor([[0.0, 20.0, *[0.0] * 5000]])  # about 2e-9 each, which a sum in float32 does not change by
    tail = 5000 / (5000 + torch.tensor(20.0).double().exp().item())
    noise = torch.tensor([1 - tail * 0.75, 1 - tail * 0.25], dtype=torch.float64)
    drawn = sample(logits.repeat(2, 1), noise, Sampling(1.0), PAD).tolist()
    assert drawn == pytest.approx([2 + 1250, 2 + 3750], abs=20)
