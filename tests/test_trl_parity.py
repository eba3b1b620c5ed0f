"""TRL judges the training loop: its `SFTTrainer` goes through the same losses and gradient norms, step by step.

Both start from the same weights, see the same tokenised pairs in the same order, and take their steps in float32 with
Adam. TRL comes with benchmarks/requirements.txt; where it is missing, this is skipped.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft.config import SFTConfig
from part4_sft.encoding import Example
from part4_sft.training import shuffled_batches, train

STEPS, VOCABULARY = 50, 2048
CONFIG = SFTConfig(epochs=1, batch_size=8, learning_rate=5e-5)
RECIPE = {"learning_rate": 2e-4, "warmup_steps": 7, "max_grad_norm": 4.5}


def random_model() -> Transformer:
    """Weights so large that attention is sharp and the logits differ."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(VOCABULARY))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(mean=1.0 if parameter.dim() == 1 else 0.0, std=0.1)
    return model


def random_examples() -> list[Example]:
    """Prompts and completions of all lengths up to 40. Low ids are far more frequent: that is what can be learnt."""
    rng = Random(0)

    def ids() -> list[int]:
        return [int(2 + (VOCABULARY - 2) * rng.random() ** 6) for _ in range(rng.randint(1, 40))]

    pairs = [(ids(), ids()) for _ in range(STEPS * CONFIG.batch_size)]
    return [Example(prompt + completion, [IGNORE_INDEX] * len(prompt) + completion) for prompt, completion in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "parts"), [({}, 1), ({}, 4), (RECIPE | {"schedule": "cosine"}, 1), (RECIPE | {"schedule": "linear"}, 4)]
)
def test_every_step_has_the_loss_the_gradient_norm_and_the_learning_rate_of_trl(
    recipe: dict[str, Any], parts: int, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("trl")
    from benchmarks import trl_side

    model, examples = random_model(), random_examples()
    config = replace(CONFIG, micro_batch_size=CONFIG.batch_size // parts, **recipe)
    places = shuffled_batches(len(examples), config.batch_size, 1, config.seed)
    in_our_order = [examples[place] for step in places for place in step]

    with trl_side.exported(model, tokenizer) as folder:
        _, logged, _ = trl_side.fine_tune(
            folder,
            in_our_order,
            batch_size=config.micro_batch_size,
            train_sampling_strategy="sequential",
            **trl_side.SAME_ARITHMETIC
            | {
                "gradient_accumulation_steps": parts,
                "learning_rate": config.learning_rate,
                "lr_scheduler_type": config.schedule,
                "warmup_steps": config.warmup_steps,
                "max_grad_norm": config.max_grad_norm,
            },
        )
    theirs = [(step["loss"], step["grad_norm"], step["learning_rate"]) for step in logged]
    history = train(model, examples, config, validate=lambda epoch, loss: {})
    ours = [(step.loss, step.gradient_norm, step.learning_rate) for step in history.steps]

    assert len(ours) == STEPS
    clipped = sum(step.gradient_norm > config.max_grad_norm for step in history.steps)
    assert not recipe or STEPS // 4 < clipped < STEPS  # both kinds of step
    assert ours[-1][0] < ours[0][0] - 0.5  # if nothing were learnt, any optimizer would pass
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=0)
