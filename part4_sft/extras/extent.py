"""How many replies evaluate a model (`--evaluate`): what a small one writes in minutes takes a large one hours."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.training import mean_loss

LARGEST_MODEL = 20_000_000  # parameters; a larger one takes hours for all replies, and for the controls
SAMPLES = {"none": 1, "quick": 1, "full": 16}  # replies to each test context
QUICK = {"sft_validation": 20, "sft_test": 40}  # contexts, at most; of fewer in the test there is no verdict


def settle_extent(config: SFTConfig, parameters: int) -> SFTConfig:
    """Return the options with --evaluate and --samples-per-context as a model of this size has them by default."""
    evaluate = config.evaluate or ("full" if parameters <= LARGEST_MODEL else "quick")
    return replace(config, evaluate=evaluate, samples_per_context=config.samples_per_context or SAMPLES[evaluate])


def choose_pairs(data: dict[str, list[Pair]], evaluate: str | None) -> dict[str, list[Pair]]:
    """Return the sets of pairs that are answered: with "quick" only two, of which some pairs, spread evenly.

    With "none" that of validation is empty, and that of the test is whole, for the perplexity.
    """
    if evaluate == "none":
        return data | {"sft_validation": []}
    if evaluate == "quick":
        return {"sft_dataset": data["sft_dataset"]} | {name: spread(data[name], most) for name, most in QUICK.items()}
    return data


def spread(pairs: list[Pair], most: int) -> list[Pair]:
    """Return at most so many of the pairs, at even distances, since files are often in some order."""
    count = min(most, len(pairs))
    return [pairs[index * len(pairs) // count] for index in range(count)]


def perplexities(models: dict[str, Transformer], encoder: PairEncoder, pairs: list[Pair]) -> dict[str, Any]:
    """Return the scores of each author that need no replies."""
    examples = encoder.encode_all(pairs)
    return {author: {"perplexity": math.exp(mean_loss(model, examples))} for author, model in models.items()}
