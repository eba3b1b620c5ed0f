from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from part3_pretrain.model import ModelConfig, Transformer
from part4_sft.generation import Generated, Sampling, generate, sample, stream

PAD, EOS, VOCAB, POSITIONS = 0, 1, 24, 64


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Random, but sure of itself: replies differ between prompts, and some of them end by themselves."""
    torch.manual_seed(3)
    shape = ModelConfig(
        VOCAB, hidden_size=32, intermediate_size=64, num_layers=2, num_kv_heads=2, max_positions=POSITIONS
    )
    model = Transformer(shape).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return model


def biased(model: Transformer, token: int, bias: float) -> Transformer:
    """The same model with `bias` added to the logit of one token."""
    changed = Transformer(model.config).eval()
    changed.load_state_dict(model.state_dict())
    changed.lm_head = nn.Linear(model.config.hidden_size, VOCAB)
    with torch.no_grad():
        changed.lm_head.weight.copy_(model.lm_head.weight)
        changed.lm_head.bias.zero_()[token] = bias
    return changed


def prompts(*lengths: int) -> list[list[int]]:
    rng = Random(0)
    return [[rng.randrange(2, VOCAB) for _ in range(length)] for length in lengths]


def replies(model: Transformer, asked: list[list[int]], sampling: Sampling, **options: Any) -> list[Generated]:
    return generate(model, asked, sampling, **options)


# ---------------------------------------------------------------------------------------------------- batches

LENGTHS = (30, 1, 7, 2, 19, 40, 3, 12, 1, 25, 6)


@pytest.mark.parametrize("sampling", [Sampling(0.8, max_new_tokens=20), Sampling(1.5, 12, 0.95, 20)])
def test_a_reply_does_not_depend_on_batch_size_or_neighbours(model: Transformer, sampling: Sampling) -> None:
    asked = prompts(*LENGTHS)
    alone = replies(model, asked, sampling, batch_size=1)
    assert {reply.stopped for reply in alone} == {True, False}  # rows leave the batch at different steps
    assert len({tuple(reply.ids) for reply in alone}) == len(alone)
    for batch_size in (3, 7, 100):
        assert replies(model, asked, sampling, batch_size=batch_size) == alone
    assert replies(model, asked[::-1], sampling, batch_size=3) == alone[::-1]


@pytest.mark.parametrize("sampling", [Sampling(0, max_new_tokens=20), Sampling(1.5, 12, 0.95, 20)])
def test_streamed_token_by_token_a_reply_is_the_same(model: Transformer, sampling: Sampling) -> None:
    asked = prompts(*LENGTHS)
    wanted = [reply.ids for reply in replies(model, asked, sampling)]
    assert [list(stream(model, prompt, sampling)) for prompt in asked] == wanted
    with pytest.raises(ValueError, match="a prompt must have"):
        next(stream(model, [], sampling))


def test_a_neighbour_that_needs_every_position_does_not_shorten_a_reply(model: Transformer) -> None:
    endless = biased(model, EOS, -1e4)
    asked, sampling = prompts(4, POSITIONS - 20), Sampling(max_new_tokens=20)
    together = replies(endless, asked, sampling)
    assert together == replies(endless, asked, sampling, batch_size=1)
    assert [len(reply.ids) for reply in together] == [20, 20]


def test_greedy_replies_equal_those_of_full_passes_without_cache(model: Transformer) -> None:
    asked = prompts(*LENGTHS)
    assert replies(model, asked, Sampling(temperature=0, max_new_tokens=20)) == [_naive(model, p, 20) for p in asked]


@torch.inference_mode()
def _naive(model: Transformer, prompt: list[int], steps: int) -> Generated:
    ids: list[int] = []
    for _ in range(steps):
        logits = model.lm_head(model(torch.tensor([prompt + ids])))[0, -1]
        logits[PAD] = -torch.inf
        token = int(logits.argmax())
        if token == EOS:
            return Generated(ids, stopped=True)
        ids.append(token)
    return Generated(ids, stopped=False)


# ---------------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_pad_is_never_drawn_even_where_it_is_by_far_the_likeliest(model: Transformer, temperature: float) -> None:
    fond_of_padding = biased(model, PAD, 1e4)
    drawn = replies(fond_of_padding, prompts(*LENGTHS), Sampling(temperature, max_new_tokens=20))
    assert all(PAD not in reply.ids for reply in drawn)
    assert drawn == replies(model, prompts(*LENGTHS), Sampling(temperature, max_new_tokens=20))


def test_eos_ends_a_reply_and_is_no_part_of_it(model: Transformer) -> None:
    assert (
        replies(biased(model, EOS, 1e4), prompts(3, 9), Sampling(max_new_tokens=20))
        == [Generated([], stopped=True)] * 2
    )
    assert all(EOS not in reply.ids for reply in replies(model, prompts(*LENGTHS), Sampling(max_new_tokens=20)))


def test_a_reply_without_eos_has_max_new_tokens_and_has_not_stopped(model: Transformer) -> None:
    for reply in replies(biased(model, EOS, -1e4), prompts(3, 9), Sampling(max_new_tokens=11)):
        assert len(reply.ids) == 11 and not reply.stopped


@pytest.mark.parametrize("length", [0, POSITIONS - 19])
def test_a_prompt_that_is_empty_or_leaves_too_few_positions_is_refused(model: Transformer, length: int) -> None:
    with pytest.raises(ValueError, match="prompt"):
        replies(model, prompts(3, length), Sampling(max_new_tokens=20))


# ---------------------------------------------------------------------------------------------------- drawing


def test_the_seed_decides_the_replies(model: Transformer) -> None:
    asked, sampling = prompts(*LENGTHS), Sampling(max_new_tokens=20)
    assert replies(model, asked, sampling, seed=1) == replies(model, asked, sampling, seed=1)
    assert replies(model, asked, sampling, seed=1) != replies(model, asked, sampling, seed=2)


DRAWS = 20_000
LOGITS = torch.tensor([3.0, -1.0, 0.5, 2.0, 0.4, -3.0, 1.7])


def frequencies(sampling: Sampling) -> Tensor:
    """How often each token is drawn from `LOGITS` where the noise takes every value equally often."""
    noise = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    drawn = sample(LOGITS.repeat(DRAWS, 1), noise, sampling, PAD)
    return torch.bincount(drawn, minlength=len(LOGITS)) / DRAWS


def expected(temperature: float, allowed: list[int]) -> Tensor:
    logits = torch.full_like(LOGITS, -torch.inf)
    logits[allowed] = LOGITS[allowed] / temperature
    return logits.softmax(0)


@pytest.mark.parametrize(
    ("sampling", "allowed"),
    [
        (Sampling(1.0), [1, 2, 3, 4, 5, 6]),
        (Sampling(0.7), [1, 2, 3, 4, 5, 6]),
        (Sampling(1.5), [1, 2, 3, 4, 5, 6]),
        (Sampling(0.0), [3]),
        (Sampling(0.7, top_k=1), [3]),
        (Sampling(0.7, top_k=3), [2, 3, 6]),
        (Sampling(0.7, top_k=50), [1, 2, 3, 4, 5, 6]),
        (Sampling(1.0, top_p=0.40), [3]),  # without <PAD>, 0.44 0.32 0.10 0.09 0.02 0.003
        (Sampling(1.0, top_p=0.50), [3, 6]),
        (Sampling(1.0, top_p=0.80), [2, 3, 6]),
        (Sampling(1.0, top_p=0.95, top_k=2), [3, 6]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_softmax_over_the_allowed_ones_says(
    sampling: Sampling, allowed: list[int]
) -> None:
    wanted = expected(sampling.temperature or 1.0, allowed)
    assert torch.allclose(frequencies(sampling), wanted, atol=2 / DRAWS)
