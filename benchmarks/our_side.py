"""Our side of every benchmark: the checkpoint, the 500 pairs of a default run, and fine-tuning without validation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.dataset import HIGH_QUALITY_PAIRS, Pair, make_datasets
from part4_sft.encoding import Example, PairEncoder
from part4_sft.training import History, shuffled_batches, train

CONFIG = SFTConfig(epochs=1, batch_size=8)  # larger than the default, as trainers are usually compared
LONGEST_PROMPT = 300  # tokens


def load_model(path: Path = DEFAULT_CHECKPOINT) -> tuple[Transformer, PairEncoder]:
    """Return the model of a checkpoint and an encoder for it."""
    checkpoint = load_checkpoint(path)
    return checkpoint.model, PairEncoder(checkpoint.tokenizer, checkpoint.model.config.eos_ids[0])


def encode_good_pairs(encoder: PairEncoder) -> list[Example]:
    """Return the 500 pairs that a default run trains on."""
    return encoder.encode_all(make_datasets(0)["sft_dataset"][:HIGH_QUALITY_PAIRS])


def encode_prompts(encoder: PairEncoder, pairs: list[Pair]) -> list[list[int]]:
    return [encoder.encode_prompt(pair.context, LONGEST_PROMPT) for pair in pairs]


def in_our_order(examples: list[Example]) -> list[Example]:
    """Return the examples as `train` shuffles them for the first epoch, for a trainer that does not shuffle."""
    batches = shuffled_batches(len(examples), CONFIG.batch_size, 1, CONFIG.seed)
    return [examples[index] for batch in batches for index in batch]


def fine_tune(model: Transformer, examples: Sequence[Example], config: SFTConfig = CONFIG) -> History:
    """Train the model in place, without validation."""
    return train(model, examples, config, validate=lambda epoch, train_loss: {})


def count_tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.ids) for example in examples)


def count_parameters(model: Transformer) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: Transformer, examples: Sequence[Example]) -> int:
    """Return the floating-point operations of an epoch's products with weights, forward and backward.

    6 a weight and token (Kaplan et al. 2020). Context tokens skip the end of the last block and `lm_head`.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    last = model.layers[-1]
    of_responses = [last.self_attn.o_proj, last.mlp.gate_proj, last.mlp.up_proj, last.mlp.down_proj, model.lm_head]
    weights, skipped = (sum(layer.weight.numel() for layer in layers) for layers in (linear, of_responses))
    tokens = sum(len(example.ids) - 1 for example in examples)
    response_tokens = sum(label != IGNORE_INDEX for example in examples for label in example.labels[1:])
    return 6 * ((weights - skipped) * tokens + skipped * response_tokens)
