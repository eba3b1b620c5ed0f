"""Initial weights from which looking back and copying is already possible.

To name the customer's own item a model must copy it, and the circuit for that is an induction head (Elhage et al.
2021; Olsson et al. 2022): a previous-token head, which tells each token what the token before it was, and a head in
the next layer that attends to an earlier place where the token before was the present one, and copies what stands
there. Gradient descent can find the circuit, but did not in 0.8 million tokens of pure copying: no part is of use
until all are there. So the first two layers start as this circuit, in the spirit of mimetic initialisation (Trockman
and Kolter 2023), and training refines it or gives it up. The circuit treats all tokens alike.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from part3_pretrain.model import Transformer, rotary_factors, rotate

EMBEDDING_STD = 0.05
CONSTANT = 0.25  # the first number of every embedding, so that attention can depend on position alone
QUERY_KEY_SCALE = 2.0
PREVIOUS_TOKEN_SCALE, COPY_SCALE = 0.7, 6.0  # size of what the two layers write, relative to an embedding


@torch.no_grad()
def start_with_induction_heads(model: Transformer) -> None:
    """Overwrite the embeddings and the attention of the first two layers, all heads alike.

    Raises ValueError where the model has fewer than two layers or shares key-value heads.
    """
    config = model.config
    if config.num_layers < 2 or config.num_kv_heads != config.num_heads:
        raise ValueError("induction heads need two layers and as many key-value heads as heads")
    width = config.hidden_size
    embedding = nn.init.normal_(model.embed_tokens.weight, std=EMBEDDING_STD)
    embedding[:, 0] = CONSTANT
    size = embedding.square().mean().sqrt()

    first, second = (model.layers[index].self_attn for index in (0, 1))
    # Layer 1: the query is the key turned back by one position, so every token looks at the one before it ...
    key = QUERY_KEY_SCALE * model.frequencies.repeat(2)
    query = rotate(key, *rotary_factors(-model.frequencies, key.dtype))
    first.k_proj.weight.zero_()[:, 0] = key.repeat(config.num_heads)
    first.q_proj.weight.zero_()[:, 0] = query.repeat(config.num_heads)
    # ... and writes it in directions of its own (`aside`), so that it is not mistaken for the token itself.
    aside = nn.init.orthogonal_(torch.empty(width, width))
    value = _projection(width)
    first.v_proj.weight.copy_(value)
    first.o_proj.weight.copy_(PREVIOUS_TOKEN_SCALE * size * aside @ value.T)

    # Layer 2: the query is the token itself, the key is the token before (`aside`), and the value is copied as it is.
    match = _projection(width)
    second.q_proj.weight.copy_(QUERY_KEY_SCALE * match)
    second.k_proj.weight.copy_(QUERY_KEY_SCALE * match @ aside.T)
    value = _projection(width)
    second.v_proj.weight.copy_(value)
    second.o_proj.weight.copy_(COPY_SCALE * size * value.T)


def _projection(width: int) -> Tensor:
    """Return a random orthogonal matrix, (out, width), that ignores the constant of the embeddings."""
    weight = nn.init.orthogonal_(torch.empty(width, width))
    weight[:, 0] = 0.0
    return weight
