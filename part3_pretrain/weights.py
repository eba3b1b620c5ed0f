"""Build a model from named tensors, with one of them in memory at a time besides the model itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from part3_pretrain.model import ModelConfig, Transformer

FORMATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def model_from_tensors(
    config: ModelConfig, tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None
) -> Transformer:
    """Return a model whose weights are copies of the tensors, in the format `dtype`; None keeps that of the tensors.

    They have the names of `Transformer.named_parameters`; tied output embeddings may be given once more. Raise
    ValueError where one is missing, surplus, of another shape, in another format than FORMATS, or not finite.
    """
    with torch.device("meta"):  # no memory for weights that would be overwritten
        model = Transformer(config)
    missing = {name: parameter.shape for name, parameter in model.named_parameters()}
    tied_head = None
    for name, tensor in tensors:
        if config.tie_embeddings and name == "lm_head.weight":
            tied_head = tensor
            continue
        if name not in missing:
            raise ValueError(f"the tensor {name} is surplus: the config has no place for it")
        shape, expected = list(tensor.shape), list(missing.pop(name))
        if shape != expected:
            raise ValueError(f"the tensor {name} has the shape {shape}; by the config it must be {expected}")
        if tensor.dtype not in FORMATS:
            raise ValueError(f"the tensor {name} holds {tensor.dtype}; quantised weights are not supported")
        weight = tensor.to(dtype or tensor.dtype, copy=True)
        lowest, highest = weight.aminmax()  # unlike isfinite(), needs no memory beside the weight
        if not -math.inf < lowest <= highest < math.inf:
            raise ValueError(f"the tensor {name} holds NaN or infinite numbers")
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, nn.Parameter(weight))
    if missing:
        raise ValueError(f"the tensor {min(missing)} is missing")
    model.tie_embeddings()
    if tied_head is not None and not torch.equal(tied_head.to(model.lm_head.weight.dtype), model.lm_head.weight):
        raise ValueError("lm_head.weight differs from the embeddings, though the config ties them")
    return model
