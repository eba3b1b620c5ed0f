"""Adam for weights in bfloat16.

A bfloat16 number has 8 significant bits, so a step of 5e-5 is mostly lost when a weight of 0.02 is rounded to the
nearest one. Rounded up or down by chance instead, in proportion to what is nearer, no step is lost on average
(Gupta et al. 2015; Zamirai et al. 2020), and no second copy of the weights in float32 is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

AT_ONCE = 2**24  # weights; the copies of so many in float32 need some hundred megabytes


class BFloat16Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) that computes in float32 and rounds what it stores stochastically.

    Args:
        moments_dtype: number format of the two moments, float32 or bfloat16.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        moments_dtype: torch.dtype,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self.moments_dtype = moments_dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = 0
                    state["mean"] = torch.zeros_like(parameter, dtype=self.moments_dtype)
                    state["square"] = torch.zeros_like(parameter, dtype=self.moments_dtype)
                state["step"] += 1
                tensors = (parameter, parameter.grad, state["mean"], state["square"])
                for weight, gradient, mean, square in zip(*(tensor.view(-1).split(AT_ONCE) for tensor in tensors)):
                    _update(weight, gradient, mean, square, state["step"], group["lr"], group["betas"], group["eps"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` gave, the moments in their own number format and not that of the weights."""
        super().load_state_dict(state_dict)
        for number, saved in state_dict["state"].items():
            parameter = self.param_groups[0]["params"][number]
            self.state[parameter] |= {name: saved[name].to(parameter.device) for name in ("mean", "square")}


def _update(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    gradient = gradient.float()
    new_mean = mean.float().lerp(gradient, 1 - betas[0])
    new_square = square.float().lerp(gradient.square(), 1 - betas[1])
    unbiased_mean, unbiased_square = new_mean / (1 - betas[0] ** step), new_square / (1 - betas[1] ** step)
    new_weight = weight.float() - lr * unbiased_mean / (unbiased_square.sqrt() + eps)
    for stored, new in ((weight, new_weight), (mean, new_mean), (square, new_square)):
        stored.copy_(rounded_by_chance(new) if stored.dtype == torch.bfloat16 else new)


def rounded_by_chance(x: Tensor) -> Tensor:
    """Float32 numbers as one of their two neighbours in bfloat16, so that the expected value is the number itself."""
    lost_bits = 2**16  # of a float32, those that bfloat16 has no room for
    noise = torch.randint(lost_bits, x.shape, dtype=torch.int32, device=x.device)
    return (x.view(torch.int32) + noise).bitwise_and(-lost_bits).view(torch.float32).bfloat16()
