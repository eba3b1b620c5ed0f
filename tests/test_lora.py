"""LoRA by peft: few parameters learn, and what comes out is a model like any other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.extras.lora import add_lora, merge_lora
from part4_sft.training import mean_loss, train


def test_only_the_small_matrices_learn_and_they_are_merged_in_the_end(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    torch.manual_seed(0)
    model, examples = copy.deepcopy(tiny_model), encoder.encode_all(made["sft_dataset"][:8])
    before = mean_loss(model, examples)
    lora = add_lora(model, rank=2)
    assert mean_loss(model, examples) == before  # nothing has been learnt yet
    train(model, examples, SFTConfig(epochs=20, learning_rate=1e-2), validate=lambda epoch, loss: {})
    after = mean_loss(model.eval(), examples)
    assert after < before - 0.05
    merge_lora(model, lora)
    assert mean_loss(model, examples) == pytest.approx(after, abs=1e-4)
    assert dict(model.named_parameters()).keys() == dict(tiny_model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        change = torch.atleast_2d(weight - tiny_model.get_parameter(name))
        assert torch.linalg.matrix_rank(change, atol=1e-5) == (2 if "_proj" in name else 0), name


def test_what_is_learnt_on_bfloat16_weights_survives_the_merge(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    """Two steps change weights by far less than the distance between two neighbours in bfloat16."""
    torch.manual_seed(0)
    start, model = copy.deepcopy(tiny_model).bfloat16(), copy.deepcopy(tiny_model).bfloat16()
    lora = add_lora(model, rank=2)
    examples = encoder.encode_all(made["sft_dataset"][:8])
    train(model, examples, SFTConfig(epochs=2, batch_size=8), validate=lambda epoch, loss: {})
    modules: dict[str, Any] = dict(model.named_modules())
    learnt = {}
    for name in [name for name in modules if hasattr(modules[name], "lora_A")]:
        matrices = (getattr(modules[name], matrix)["default"].weight.float() for matrix in ("lora_B", "lora_A"))
        learnt[name] = modules[name].scaling["default"] * next(matrices) @ next(matrices)
    merge_lora(model, lora)
    for name, weight in model.named_parameters():
        change = learnt.get(name.removesuffix(".weight"), torch.zeros_like(weight))
        torch.testing.assert_close(weight, start.get_parameter(name).float() + change, rtol=0, atol=1e-8)
        assert weight.dtype == torch.float32 and bool(change.any()) == ("_proj" in name)
