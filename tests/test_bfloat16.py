from __future__ import annotations

import copy

import torch

from part3_pretrain.bfloat16 import bfloat16_products
from part3_pretrain.model import Transformer


def test_outputs_and_gradients_are_those_of_float32_to_bfloat16s_precision(tiny_model: Transformer) -> None:
    model = copy.deepcopy(tiny_model)
    tokens = torch.randint(model.config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(0))

    def logits_and_gradients() -> list[torch.Tensor]:
        model.zero_grad()
        logits = model.lm_head(model(tokens))
        logits.logsumexp(-1).sum().backward()
        return [logits.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    exact = logits_and_gradients()
    with bfloat16_products(model):
        rounded = logits_and_gradients()
    for one, other in zip(exact, rounded):
        assert other.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.03 * one.norm()
    for one, other in zip(exact, logits_and_gradients()):  # and back in float32 afterwards
        assert torch.equal(one, other)
