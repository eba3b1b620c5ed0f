"""The Transformer with and without caches; `test_huggingface.py` compares it with transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from part3_pretrain.model import ModelConfig, Transformer, attention, rotary_frequencies
from part3_pretrain.weights import model_from_tensors

SHAPE: dict[str, Any] = dict(
    vocab_size=97, hidden_size=48, intermediate_size=80, num_layers=3, num_heads=6, num_kv_heads=2, max_positions=64
)
TOKENS = torch.randint(97, (3, 20), generator=torch.Generator().manual_seed(1))
assert_close = torch.testing.assert_close
TOLERANCE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def model() -> Transformer:
    """Weights so large that attention is sharp and the logits differ."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**SHAPE, tie_embeddings=False)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.dim() == 1 else 0.0, std=0.2)
    return model


@torch.no_grad()
def test_caches_give_the_hidden_states_of_the_full_forward_for_the_rows_that_are_kept(model: Transformer) -> None:
    tokens, full, caches, start = TOKENS, model(TOKENS), model.new_caches(3, 20), 0
    assert model.lm_head(full).std() > 1
    for rows, length in (([0, 1, 2], 7), ([0, 1, 2], 1), ([2, 1], 3), ([1], 1), ([0], 8)):  # of the rows that are left
        for cache in caches:
            cache.keep_rows(torch.tensor(rows))
        tokens, full, end = tokens[rows], full[rows], start + length
        assert_close(model(tokens[:, start:end], caches=caches), full[:, start:end], **TOLERANCE)
        start = end


@torch.no_grad()
def test_texts_in_one_row_do_not_see_each_other(model: Transformer) -> None:
    texts = [TOKENS[0, :7], TOKENS[1, :1], TOKENS[2]]
    row = model(torch.cat(texts)[None], lengths=[len(text) for text in texts])
    assert_close(row, torch.cat([model(text[None]) for text in texts], dim=1), **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("cast", [Transformer.bfloat16, lambda model: model.to("cpu", torch.bfloat16)])
def test_rotary_angles_stay_in_float32_whatever_the_weights_are_cast_to(
    cast: Callable[[Transformer], Transformer], model: Transformer
) -> None:
    """bfloat16 has 8 significant bits: of an angle of 63 rad it would keep a quarter of one."""
    loaded = model_from_tensors(model.config, model.named_parameters(), torch.bfloat16)
    before = rotary_frequencies(model.config)
    assert torch.equal(cast(model).frequencies, before) and model.norm.weight.dtype == torch.bfloat16
    assert torch.equal(model.eval()(TOKENS), loaded.eval()(TOKENS))


def test_rotary_angles_go_where_the_weights_go(model: Transformer) -> None:
    assert model.to("meta").frequencies.is_meta


def test_keys_and_values_that_heads_share_are_not_copied_for_each(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []

    def attend(*tensors: Any, **settings: Any) -> Tensor:
        shapes.append(tuple(tensor.shape for tensor in tensors[:3]))
        return scaled_dot_product_attention(*tensors, **settings)

    scaled_dot_product_attention = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", attend)
    model(TOKENS, caches=model.new_caches(3, 20))
    model(TOKENS[:1], lengths=[20])
    assert shapes == 3 * [((3, 6, 20, 8), (3, 2, 20, 8), (3, 2, 20, 8))] + 3 * [
        ((1, 6, 20, 8), (1, 2, 20, 8), (1, 2, 20, 8))
    ]


@pytest.mark.parametrize("lengths", [[7, 1, 20], [3], [1, 1]])
def test_the_one_call_for_all_texts_on_cuda_is_a_call_for_each(lengths: list[int]) -> None:
    """In float32; here it computes on the CPU. Values and gradients."""
    here, on_cuda = (Mock(is_cuda=is_cuda, dtype=torch.float32, device="cpu") for is_cuda in (False, True))
    torch.manual_seed(0)
    tensors = [torch.randn(1, heads, sum(lengths), 8, requires_grad=True) for heads in (6, 2, 2)]
    results = []
    for like in (here, on_cuda):
        mixed = attention(None, lengths, like)(*tensors)
        results.append((mixed, torch.autograd.grad(mixed.square().sum(), tensors)))
    assert_close(*results, **TOLERANCE)


def test_output_positions_alone_come_out_and_reach_the_last_feed_forward(model: Transformer) -> None:
    """Values and gradients are those of choosing afterwards; what the last block can leave out, it does."""
    columns = torch.tensor([0, 11, 19])
    widths: list[int] = []
    for block in model.layers:
        block.mlp.register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[1]))
    results = []
    for hidden in (model(TOKENS)[:, columns], model(TOKENS, output_positions=columns)):
        gradients = torch.autograd.grad(hidden.square().sum(), [block.mlp.up_proj.weight for block in model.layers])
        results.append((hidden, gradients))
    assert_close(*results, **TOLERANCE)
    assert widths == [20, 20, 20, 20, 20, 3]


@pytest.mark.parametrize("tie", [True, False])
def test_tied_embeddings_are_one_tensor(tie: bool) -> None:
    model = Transformer(ModelConfig(**SHAPE, tie_embeddings=tie))
    assert (model.lm_head.weight is model.embed_tokens.weight) == tie


def test_initial_weights_have_the_spread_of_gpt_2() -> None:
    torch.manual_seed(0)
    for name, weight in Transformer(ModelConfig(2048)).named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
        else:
            is_residual = "o_proj" in name or "down_proj" in name
            assert weight.std().item() == pytest.approx(0.02 / 6**0.5 if is_residual else 0.02, rel=0.03), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: 0}, "whole numbers above 0") for name in SHAPE),
        ({"num_heads": 0, "head_dim": 8}, "whole numbers above 0"),
        ({"head_dim": True}, "whole numbers above 0"),
        ({"num_layers": 1025}, "1025 layers with heads of 8: at most 1024"),
        ({"head_dim": 1026}, "3 layers with heads of 1026: at most 1024"),
        ({"num_kv_heads": 4}, "6 heads of width 8 cannot share 4"),
        ({"head_dim": 9}, "6 heads of width 9 cannot share 2"),
        *(({name: value}, "above 0") for name in ("norm_eps", "rope_theta") for value in (0, float("inf"))),
        ({"norm_eps": float("nan")}, "above 0"),
        ({"eos_ids": ()}, "control tokens"),
        ({"eos_ids": (1, 97)}, "below vocab_size = 97"),
        ({"pad_id": -1}, "control tokens"),
        ({"family": "gpt2"}, "'gpt2'; those that can be used are llama, mistral, qwen2, qwen3"),
    ],
    ids=str,
)
def test_a_model_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SHAPE | changes)


def test_the_largest_and_smallest_that_can_be_are_taken() -> None:
    assert ModelConfig(**SHAPE | {"num_layers": 1024, "head_dim": 1024, "eos_ids": (0, 96), "pad_id": None}).eos_ids
