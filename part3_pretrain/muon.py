"""Muon: a step moves a weight matrix equally far in all directions that its gradient has shown.

Of the momentum of a matrix's gradient, Muon (Jordan et al. 2024) makes the nearest matrix whose singular values are
all about 1. Directions that are rare in the gradient are learnt as fast as frequent ones, so fewer texts are enough.
Embeddings and the gains of norms are left to AdamW.

`torch.optim.Muon` computes the same, but one matrix after another and always in bfloat16, which a processor without
instructions for it multiplies ten times as slowly as float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from part3_pretrain.runtime import distributed

MOMENTUM = 0.95
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # Jordan's coefficients: singular values come to 0.7 to 1.2 in few steps
NEWTON_SCHULZ_STEPS = 5
UPDATE_SIZE = 0.2  # the root mean square of an update, about that of AdamW (Liu et al. 2025, equation 4)


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of a model's blocks, and AdamW (Loshchilov and Hutter 2019) for all else.

    Args:
        model: its parameters are updated; the weight decay leaves the gains of the norms alone.
        betas, weight_decay: those of AdamW; the weight decay is also Muon's.
        dtype: the number format of Muon's products.
    """

    def __init__(self, model: nn.Module, betas: tuple[float, float], weight_decay: float, dtype: torch.dtype) -> None:
        parameters = list(model.named_parameters())
        matrices = [parameter for name, parameter in parameters if parameter.dim() > 1 and "layers." in name]
        embeddings = [parameter for name, parameter in parameters if parameter.dim() > 1 and "layers." not in name]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "orthogonalises": True},
            {"params": embeddings, "orthogonalises": False},
            {"params": [parameter for _, parameter in parameters if parameter.dim() == 1], "orthogonalises": False},
        ]
        groups[-1]["weight_decay"] = 0.0
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": 1e-8, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return what the closure does, which may compute them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            learnt = [(parameter, parameter.grad) for parameter in group["params"] if parameter.grad is not None]
            for parameter, _ in learnt:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["orthogonalises"]:
                self._step_orthogonally(learnt, group["lr"])
            else:
                for parameter, gradient in learnt:
                    self._step_of_adam(parameter, gradient, group)
        return loss

    def _step_orthogonally(self, learnt: list[tuple[Tensor, Tensor]], lr: float) -> None:
        alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)  # matrices and updates, both wide
        for matrix, gradient in learnt:
            state = self.state[matrix]
            if not state:
                state["momentum"] = torch.zeros_like(matrix)
            momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
            update = distributed.full_tensor(gradient.lerp(momentum, MOMENTUM))  # Nesterov's
            pair = (matrix, update) if matrix.shape[0] <= matrix.shape[1] else (matrix.T, update.T)
            alike[pair[0].shape].append(pair)
        for shape, pairs in alike.items():
            updates = orthogonalise(torch.stack([update for _, update in pairs]).to(self.dtype)).float()
            for (matrix, _), update in zip(pairs, updates):
                matrix.add_(distributed.shard_like(update, matrix), alpha=-lr * UPDATE_SIZE * max(shape) ** 0.5)

    def _step_of_adam(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        state["mean"].lerp_(gradient, 1 - beta1)
        state["square"].lerp_(gradient.square(), 1 - beta2)
        root = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        parameter.addcdiv_(state["mean"], root, value=-group["lr"] / (1 - beta1 ** state["step"]))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return matrices with the same singular vectors, and singular values of about 1, by Newton and Schulz's iteration.

    Args:
        matrices: (count, rows, columns), not more rows than columns.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # no singular value is above 1
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x
