"""Adam for weights in bfloat16.

A bfloat16 number has 8 significant bits. So a step of 5e-5 is mostly lost when a weight of 0.02 is rounded to the
nearest number. Rounded up or down at random instead, in proportion to which is nearer, no step is lost on average
(Gupta et al. 2015; Zamirai et al. 2020), and no second copy of the weights in float32 is needed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from part3_pretrain.bfloat16 import make_noise, round_with

# Copies in float32 of so many weights stay in a processor's cache; a GPU has no time to wait for thousands of small
# operations, and half a gigabyte for fewer large ones.
WEIGHTS_PER_CHUNK = {"cpu": 2**16, "cuda": 2**24}

Piece = tuple[Tensor, Tensor, Tensor, Tensor]  # flat views of a weight, its gradient, and their mean and square


class BFloat16Adam(torch.optim.Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1) that computes in float32 and rounds what it stores stochastically.

    All parameters have the same number format.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, moments_dtype: torch.dtype) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})
        self.moments_dtype = moments_dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; return what the closure does, which may compute them."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            pieces: dict[int, list[Piece]] = defaultdict(list)  # by the number of the step, from 1
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    zeros = torch.zeros_like(parameter, dtype=self.moments_dtype)
                    state.update(step=0, mean=zeros, square=zeros.clone())
                state["step"] += 1
                tensors = (parameter, parameter.grad, state["mean"], state["square"])
                size = WEIGHTS_PER_CHUNK[parameter.device.type]
                pieces[state["step"]] += zip(*(tensor.view(-1).split(size) for tensor in tensors))
            for step in pieces:
                for chunk in _chunks(pieces[step]):
                    _update(chunk, step, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a `state_dict`, with the moments in their own number format instead of that of the weights.

        Its parameters have numbers, or names as `torch.distributed.checkpoint` gives them.
        """
        super().load_state_dict(state_dict)
        keys, parameters = (
            chain.from_iterable(group["params"] for group in groups)
            for groups in (state_dict["param_groups"], self.param_groups)
        )
        for key, parameter in zip(keys, parameters):
            if saved := state_dict["state"].get(key):
                self.state[parameter] |= {name: saved[name].to(parameter.device) for name in ("mean", "square")}


def _chunks(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """Put pieces together as long as a chunk has room, so that one operation updates many small weights."""
    chunk: list[Piece] = []
    size = 0
    for piece in pieces:
        size += piece[0].numel()
        if size > WEIGHTS_PER_CHUNK[piece[0].device.type]:
            yield chunk
            chunk, size = [], piece[0].numel()
        chunk.append(piece)
    yield chunk


def _update(chunk: list[Piece], step: int, group: dict[str, Any]) -> None:
    """Update weights and moments in place, with the settings of the parameter group."""
    lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
    weights, gradients, means, squares = zip(*chunk)
    weight, gradient, mean, square = (torch.cat(tensors).float() for tensors in (weights, gradients, means, squares))
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = (square / (1 - beta2**step)).sqrt_().add_(eps)
    weight.addcdiv_(mean, root, value=-lr / (1 - beta1**step))
    for stored, new in ((weights, weight), (means, mean), (squares, square)):
        if stored[0].dtype == torch.bfloat16:
            new = round_with(new, make_noise(*new.shape, device=new.device))
        torch._foreach_copy_(stored, new.split([piece.numel() for piece in stored]))
