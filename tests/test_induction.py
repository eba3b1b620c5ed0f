from __future__ import annotations

from typing import Any

import pytest
import torch

from part3_pretrain.induction import start_with_induction_heads
from part3_pretrain.model import ModelConfig, Transformer


@torch.no_grad()
def share_of_repeats_predicted(model: Transformer) -> float:
    """Return how much of the second occurrence of a random pattern of 12 tokens is predicted from the first."""
    patterns = torch.randint(2, model.config.vocab_size, (64, 12), generator=torch.Generator().manual_seed(0))
    predicted = model.lm_head(model(patterns.repeat(1, 2)[:, :-1])).argmax(-1)
    return (predicted[:, 12:] == patterns[:, 1:]).float().mean().item()  # its first token cannot be foreseen


def test_a_fresh_model_copies_a_repeated_pattern() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=500, num_layers=2))
    assert share_of_repeats_predicted(model) < 0.1
    start_with_induction_heads(model)
    assert share_of_repeats_predicted(model) > 0.65


@pytest.mark.parametrize("shape", [{"num_layers": 1}, {"num_kv_heads": 2}])
def test_a_shape_without_room_for_the_circuit_is_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="induction heads need two layers and as many key-value heads as heads"):
        start_with_induction_heads(Transformer(ModelConfig(vocab_size=300, **shape)))
