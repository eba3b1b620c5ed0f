"""Muon and AdamW in one optimizer, beside torch's own two."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from part3_pretrain.model import Transformer
from part3_pretrain.muon import Muon, orthogonalise

BETAS, WEIGHT_DECAY = (0.9, 0.99), 0.1


def gradients_for(model: nn.Module, *others: nn.Module) -> None:
    """Give the models the same random gradients."""
    for parameters in zip(*(one.parameters() for one in (model, *others)), strict=True):
        gradient = torch.randn_like(parameters[0])
        for parameter in parameters:
            parameter.grad = gradient.clone()


def test_matrices_of_blocks_are_updated_as_by_torchs_muon_and_all_else_as_by_its_adamw(tiny_model: Transformer) -> None:
    torch.manual_seed(0)
    model, expected = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    ours = Muon(model, BETAS, WEIGHT_DECAY, torch.bfloat16)
    blocks = {name: parameter for name, parameter in expected.named_parameters() if parameter.dim() == 2}
    embedding = blocks.pop("embed_tokens.weight")
    norms = [parameter for parameter in expected.parameters() if parameter.dim() == 1]
    muon = torch.optim.Muon(blocks.values(), weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": [embedding], "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
    theirs = [muon, torch.optim.AdamW(groups, betas=BETAS)]
    for lr in (1e-2, 2e-2, 5e-3):
        gradients_for(model, expected)
        for optimizer in (ours, *theirs):
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
    before = dict(tiny_model.named_parameters())
    for (name, one), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert (one - other).norm() < (0.02 if name in blocks else 1e-5) * (other - before[name]).norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_close_to_one_and_their_vectors_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 20, 50)
    found = orthogonalise(matrices.to(dtype)).float()
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    in_their_basis = left.mT @ found @ right.mT
    values = in_their_basis.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6 and values.max() < 1.3
    assert (in_their_basis - torch.diag_embed(values)).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-4)
    assert torch.equal(orthogonalise(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_a_parameter_without_a_gradient_stays_and_a_restored_optimizer_goes_on_to_the_same_bits(
    tiny_model: Transformer,
) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(tiny_model)
    optimizer = Muon(model, BETAS, WEIGHT_DECAY, torch.float32)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = 0.01
    gradients_for(model)
    model.norm.weight.grad = model.layers[0].mlp.up_proj.weight.grad = None
    optimizer.step()
    before = dict(tiny_model.named_parameters())
    stay = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert {"norm.weight", "layers.0.mlp.up_proj.weight"} <= set(stay)
    assert all("norm" in name for name in set(stay) - {"layers.0.mlp.up_proj.weight"})  # whose learning rate is 0

    resumed = copy.deepcopy(model)
    other = Muon(resumed, BETAS, WEIGHT_DECAY, torch.float32)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    gradients_for(model, resumed)
    for one in (optimizer, other):
        one.step()
    for one_parameter, other_parameter in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one_parameter, other_parameter)
