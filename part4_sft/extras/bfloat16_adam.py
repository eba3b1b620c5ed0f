"""Adam for weights in bfloat16.

A bfloat16 number has 8 significant bits. So a step of 5e-5 is mostly lost when a weight of 0.02 is rounded to the
nearest number. Rounded up or down at random instead, in proportion to which is nearer, no step is lost on average
(Gupta et al. 2015; Zamirai et al. 2020), and no second copy of the weights in float32 is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

WEIGHTS_PER_CHUNK = 2**24  # their copies in float32 need some hundred megabytes


class BFloat16Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) that computes in float32 and rounds what it stores stochastically."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, moments_dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})
        self.moments_dtype = moments_dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    zeros = torch.zeros_like(parameter, dtype=self.moments_dtype)
                    state.update(step=0, mean=zeros, square=zeros.clone())
                state["step"] += 1
                tensors = (parameter, parameter.grad, state["mean"], state["square"])
                chunks = zip(*(tensor.view(-1).split(WEIGHTS_PER_CHUNK) for tensor in tensors))
                for weight, gradient, mean, square in chunks:
                    _update(weight, gradient, mean, square, state["step"], group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`, with the moments in their own number format instead of that of the weights."""
        super().load_state_dict(state_dict)
        for number, saved in state_dict["state"].items():
            parameter = self.param_groups[0]["params"][number]
            self.state[parameter] |= {name: saved[name].to(parameter.device) for name in ("mean", "square")}


def _update(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, group: dict[str, Any]) -> None:
    """Update weights and moments in place, with the settings of the parameter group; `step` counts from 1."""
    lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
    gradient = gradient.float()
    new_mean = mean.float().lerp(gradient, 1 - beta1)
    new_square = square.float().lerp(gradient.square(), 1 - beta2)
    unbiased_mean, unbiased_square = new_mean / (1 - beta1**step), new_square / (1 - beta2**step)
    new_weight = weight.float() - lr * unbiased_mean / (unbiased_square.sqrt() + eps)
    for stored, new in ((weight, new_weight), (mean, new_mean), (square, new_square)):
        stored.copy_(round_stochastically(new) if stored.dtype == torch.bfloat16 else new)


def round_stochastically(x: Tensor) -> Tensor:
    """Round float32 numbers to one of their two neighbours in bfloat16, so that the expected value is the number."""
    spacing = 2**16  # a bfloat16 is the upper half of a float32's 32 bits
    noise = torch.randint(spacing, x.shape, dtype=torch.int32, device=x.device)
    return (x.view(torch.int32) + noise).bitwise_and(-spacing).view(torch.float32).bfloat16()
