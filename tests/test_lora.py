"""LoRA by peft: few parameters learn, and what comes out is a model like any other."""

from __future__ import annotations

import copy

import pytest
import torch

from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.extras.lora import add_lora
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
    lora.merge_and_unload()
    assert mean_loss(model, examples) == pytest.approx(after, abs=1e-4)
    assert dict(model.named_parameters()).keys() == dict(tiny_model.named_parameters()).keys()
    for name, weight in model.named_parameters():
        change = torch.atleast_2d(weight - tiny_model.get_parameter(name))
        assert torch.linalg.matrix_rank(change, atol=1e-5) == (2 if "_proj" in name else 0), name
