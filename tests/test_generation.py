from __future__ import annotations

from itertools import takewhile
from random import Random
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import pytest
import torch
from torch import Tensor, nn

from part3_pretrain.model import ModelConfig, Transformer
from part4_sft import generation
from part4_sft.generation import Generated, Sampling, generate, longest_prompt, sample, stream

PAD, EOS, VOCAB, POSITIONS = 0, 1, 24, 64
RNG = Random(0)
PROMPTS = [[RNG.randrange(2, VOCAB) for _ in range(length)] for length in (30, 1, 7, 2, 19, 40, 3, 12, 1, 25, 6)]
GREEDY = Sampling(temperature=0, max_new_tokens=20)
SOFT = Sampling(0.8, max_new_tokens=20)
WILD = Sampling(1.5, top_k=12, top_p=0.95, max_new_tokens=20)


def random_model(**config: Any) -> Transformer:
    """Return a model that is sure of itself: replies differ between prompts, and some of them end by themselves."""
    torch.manual_seed(3)
    shape = ModelConfig(VOCAB, 32, 64, num_layers=2, num_kv_heads=2, max_positions=POSITIONS, **config)
    model = Transformer(shape).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 12
    return model


def biased(token: int, bias: float, **config: Any) -> Transformer:
    """Return the same model with `bias` added to the logit of one token."""
    model = random_model(**config)
    head = nn.Linear(model.config.hidden_size, VOCAB)
    head.weight = model.lm_head.weight
    head.bias.data.zero_()[token] = bias
    model.lm_head = head
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model()


# ---------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("sampling", [GREEDY, SOFT, WILD])
def test_a_reply_does_not_depend_on_batch_size_or_neighbours(model: Transformer, sampling: Sampling) -> None:
    alone = generate(model, PROMPTS, sampling, batch_size=1)
    assert {reply.stopped for reply in alone} == {True, False}  # rows leave the batch at different steps
    assert len({tuple(reply.ids) for reply in alone}) == len(alone)
    for batch_size in (3, 7, None):
        assert generate(model, PROMPTS, sampling, batch_size=batch_size) == alone
    assert generate(model, PROMPTS[::-1], sampling, batch_size=3) == alone[::-1]
    assert [list(stream(model, prompt, sampling)) for prompt in PROMPTS] == [reply.ids for reply in alone]


def test_a_neighbour_that_needs_every_position_does_not_shorten_a_reply() -> None:
    endless = biased(EOS, -1e4)
    prompts = [PROMPTS[0][:4], (PROMPTS[5] + PROMPTS[0])[: longest_prompt(endless, SOFT)]]
    assert len(prompts[1]) == POSITIONS - 20
    together = generate(endless, prompts, SOFT)
    assert together == generate(endless, prompts, SOFT, batch_size=1)
    assert [(len(reply.ids), reply.stopped) for reply in together] == [(20, False), (20, False)]


@torch.inference_mode()
def test_greedy_replies_equal_those_of_full_passes_without_cache(model: Transformer) -> None:
    for prompt, reply in zip(PROMPTS, generate(model, PROMPTS, GREEDY)):
        ids = list(prompt)
        while len(ids) < len(prompt) + 20 and EOS not in ids[len(prompt) :]:
            logits = model.lm_head(model(torch.tensor([ids]))[0, -1])
            ids.append(1 + int(logits[1:].argmax()))  # <PAD> is 0
        assert reply.ids + [EOS] * reply.stopped == ids[len(prompt) :]


def test_batches_are_as_large_as_the_cache_and_the_limit_allow(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batch_sizes() -> list[int]:
        sizes: list[int] = []
        generate(model, PROMPTS, SOFT, progress=sizes.append)
        return sizes

    assert batch_sizes() == [11]
    # 40 + 20 tokens of float32 keys and values, in 2 layers with 2 heads of width 8
    monkeypatch.setattr(generation, "MAX_CACHE_BYTES", 4 * (2 * 60 * 2 * 2 * 8 * 4))
    assert batch_sizes() == [4, 4, 3]
    monkeypatch.setattr(generation, "MAX_BATCH_SIZE", 3)
    assert batch_sizes() == [3, 3, 3, 2]
    monkeypatch.setattr(generation, "MAX_CACHE_BYTES", 1)
    assert batch_sizes() == [1] * 11
    assert generate(model, [], SOFT) == []


# ---------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("sampling", [GREEDY, SOFT])
def test_pad_is_never_drawn_unless_the_model_has_none(model: Transformer, sampling: Sampling) -> None:
    assert generate(biased(PAD, 1e4), PROMPTS, sampling) == generate(model, PROMPTS, sampling)
    without_padding = biased(PAD, 1e4, pad_id=None)
    assert generate(without_padding, PROMPTS, sampling) == [Generated([PAD] * 20, stopped=False)] * len(PROMPTS)


@pytest.mark.parametrize("end", [EOS, 7])
def test_any_eos_ends_a_reply_and_is_no_part_of_it(end: int) -> None:
    ends = biased(end, 1e4, eos_ids=(EOS, 7))
    assert generate(ends, PROMPTS, SOFT) == [Generated([], stopped=True)] * len(PROMPTS)
    assert list(stream(ends, PROMPTS[0], SOFT)) == []


@pytest.mark.parametrize("length", [0, POSITIONS - 19])
def test_a_prompt_that_is_empty_or_leaves_too_few_positions_is_refused(model: Transformer, length: int) -> None:
    with pytest.raises(ValueError, match="a prompt must have 1 to 44 tokens, so that 20 new ones fit"):
        generate(model, [[5], [5] * length], SOFT)
    with pytest.raises(ValueError, match="a prompt must have"):
        next(stream(model, [5] * length, SOFT))


# ---------------------------------------------------------------------------------------------------- drawing


def test_the_seed_and_the_prompt_decide_the_reply(model: Transformer) -> None:
    replies = [generate(model, PROMPTS, SOFT, seed=seed) for seed in (1, 1, 2, "1")]
    assert replies[0] == replies[1]
    assert replies[0] != replies[2] and replies[0] != replies[3]
    assert [list(stream(model, prompt, SOFT, seed=2)) for prompt in PROMPTS] == [reply.ids for reply in replies[2]]


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


DRAWS = 20_000
UNEQUAL = [3.0, -1.0, 0.5, 2.0, 0.4, -3.0, 1.7]  # without <PAD>, 0.44 0.32 0.10 0.09 0.02 0.003
EQUAL = [0.0] * 5  # without <PAD>, exactly 0.25 each


@pytest.mark.parametrize(
    ("logits", "sampling", "allowed"),
    [
        *((UNEQUAL, Sampling(temperature), [1, 2, 3, 4, 5, 6]) for temperature in (0.7, 1.0, 1.5)),
        (UNEQUAL, Sampling(0.0), [3]),
        (UNEQUAL, Sampling(0.7, top_k=1), [3]),
        (UNEQUAL, Sampling(0.7, top_k=3), [2, 3, 6]),
        (UNEQUAL, Sampling(0.7, top_k=50), [1, 2, 3, 4, 5, 6]),
        (UNEQUAL, Sampling(1.0, top_p=0.40), [3]),
        (UNEQUAL, Sampling(1.0, top_p=0.50), [3, 6]),
        (UNEQUAL, Sampling(1.0, top_p=0.80), [2, 3, 6]),
        (UNEQUAL, Sampling(1.0, top_p=0.95, top_k=2), [3, 6]),
        (EQUAL, Sampling(1.0, top_p=0.50), [1, 2]),  # of equals the first
        (EQUAL, Sampling(1.0, top_k=3), [1, 2, 3]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_softmax_over_the_allowed_ones_says(
    logits: list[float], sampling: Sampling, allowed: list[int]
) -> None:
    noise = torch.arange(DRAWS, dtype=torch.float64) / DRAWS  # every value equally often, from 0
    drawn = sample(torch.tensor(logits).repeat(DRAWS, 1), noise, sampling, PAD)
    expected: Tensor = torch.full((len(logits),), -torch.inf)
    expected[allowed] = torch.tensor(logits)[allowed] / (sampling.temperature or 1.0)
    frequencies = torch.bincount(drawn, minlength=len(logits)) / DRAWS
    torch.testing.assert_close(frequencies, expected.softmax(0), atol=2 / DRAWS, rtol=0)
    assert set(drawn.tolist()) == set(allowed)


def test_very_unlikely_tokens_are_drawn_too() -> None:
    logits = torch.tensor([[0.0, 20.0, *[0.0] * 5000]])  # about 2e-9 each, which a sum in float32 does not change by
    tail = 5000 / (5000 + torch.tensor(20.0).double().exp().item())
    noise = torch.tensor([1 - tail * 0.75, 1 - tail * 0.25], dtype=torch.float64)
    drawn = sample(logits.repeat(2, 1), noise, Sampling(1.0), PAD).tolist()
    assert drawn == pytest.approx([2 + 1250, 2 + 3750], abs=20)
