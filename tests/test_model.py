"""The Transformer: causal, and the same with and without a cache; `test_huggingface.py` compares it with others'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from part3_pretrain.model import KVCache, ModelConfig, Transformer

# Unusual numbers, so that one that is not passed on shows.
SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 2,
    "max_positions": 64,
    "rope_theta": 500.0,
    "norm_eps": 1e-3,
}


def random_model(*, tie_embeddings: bool) -> Transformer:
    """Weights so large that attention is sharp and the logits differ."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE, tie_embeddings=tie_embeddings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    return model


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(tie_embeddings=False)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(1))


def logits_in_steps(model: Transformer, tokens: Tensor, steps: list[int], cache: KVCache) -> Tensor:
    """The logits of tokens that are read a few at a time."""
    parts = []
    for part in tokens.split(steps, dim=1):
        columns = torch.arange(cache.length + part.shape[1])
        positions = columns[None, cache.length :]
        parts.append(model.lm_head(model(part, positions, columns <= positions.T, cache)))
    return torch.cat(parts, dim=1)


@torch.no_grad()
def test_a_later_token_never_changes_earlier_hidden_states(model: Transformer, tokens: Tensor) -> None:
    before = model(tokens)
    for changed in (1, 9, 19):
        other = tokens.clone()
        other[:, changed] = (other[:, changed] + 1) % 97
        after = model(other)
        torch.testing.assert_close(after[:, :changed], before[:, :changed], atol=1e-5, rtol=0)
        assert ((after - before)[:, changed:].abs().amax(-1) > 1e-3).all()


@torch.no_grad()
@pytest.mark.parametrize("steps", [[20], [7, 1, 1, 8, 3], [1] * 20])
def test_cache_gives_the_logits_of_the_full_forward(model: Transformer, tokens: Tensor, steps: list[int]) -> None:
    full = model.lm_head(model(tokens))
    cached = logits_in_steps(model, tokens, steps, KVCache(model.config, 3, 25, like=full))
    assert full.std() > 1
    torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_by_default_a_token_looks_at_all_before_it_with_a_cache_too(model: Transformer, tokens: Tensor) -> None:
    full = model(tokens)
    cache = KVCache(model.config, 3, 20, like=full)
    model(tokens[:, :15], cache=cache)
    rest = model(tokens[:, 15:], positions=torch.arange(15, 20)[None], cache=cache)
    torch.testing.assert_close(rest, full[:, 15:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_cache_keeps_the_right_rows(model: Transformer, tokens: Tensor) -> None:
    full = model.lm_head(model(tokens))
    cache = KVCache(model.config, 3, 20, like=full)
    logits_in_steps(model, tokens[:, :12], [12], cache)
    rows = torch.tensor([2, 0])
    cache.keep(rows)
    cached = logits_in_steps(model, tokens[rows, 12:], [5, 3], cache)
    torch.testing.assert_close(cached, full[rows, 12:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_texts_in_one_row_do_not_see_each_other(model: Transformer, tokens: Tensor) -> None:
    texts = [tokens[0, :7], tokens[1, :1], tokens[2]]
    row = model(torch.cat(texts)[None], lengths=[len(text) for text in texts])
    alone = torch.cat([model(text[None]) for text in texts], dim=1)
    torch.testing.assert_close(row, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_only_the_wanted_tokens_come_out(model: Transformer, tokens: Tensor) -> None:
    wanted = torch.tensor([0, 19, 25, 59])
    torch.testing.assert_close(model(tokens, wanted=wanted), model(tokens).flatten(0, 1)[wanted], atol=1e-5, rtol=1e-5)


def test_tied_embeddings_are_one_tensor() -> None:
    tied, untied = (random_model(tie_embeddings=tie) for tie in (True, False))
    assert tied.lm_head.weight is tied.embed_tokens.weight
    count = sum(parameter.numel() for parameter in tied.parameters())
    assert sum(parameter.numel() for parameter in untied.parameters()) == count + 97 * 48
