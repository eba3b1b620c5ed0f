"""TRL judges the training loop: its `SFTTrainer` goes through the same losses and gradient norms, step by step.

Both start from the same weights, see the same tokenised pairs in the same order, and take their steps in float32 with
Adam. TRL comes with benchmarks/requirements.txt; where it is missing, this is skipped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, Turns
from part4_sft.encoding import Example
from part4_sft.extras.conversations import choose_template, make_encoder
from part4_sft.training import History, shuffled_batches, train
from tests.chat_templates import FAMILIES, GENERATION

STEPS, VOCABULARY = 50, 2048
CONFIG = SFTConfig(epochs=1, batch_size=8, learning_rate=5e-5)
RECIPE = {"learning_rate": 2e-4, "warmup_steps": 7, "max_grad_norm": 4.5}


def random_model(vocabulary: int = VOCABULARY) -> Transformer:
    """Weights so large that attention is sharp and the logits differ."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocabulary))
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
    history = assert_same_steps(model, examples, config, logged, learnt=0.5)
    clipped = sum(step.gradient_norm > config.max_grad_norm for step in history.steps)
    assert not recipe or STEPS // 4 < clipped < STEPS  # both kinds of step


def assert_same_steps(
    model: Transformer, examples: list[Example], config: SFTConfig, logged: list[dict[str, float]], learnt: float
) -> History:
    theirs = [(step["loss"], step["grad_norm"], step["learning_rate"]) for step in logged]
    history = train(model, examples, config, validate=lambda epoch, loss: {})
    ours = [(step.loss, step.gradient_norm, step.learning_rate) for step in history.steps]
    assert len(ours) == len(theirs)
    assert ours[-1][0] < ours[0][0] - learnt  # if nothing were learnt, any optimizer would pass
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=0)
    return history


@pytest.mark.slow
def test_every_step_on_conversations_is_that_of_trl_with_the_loss_on_all_turns_of_the_assistant(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """TRL's chat template tells by `{% generation %}` what the assistant wrote; ours is the same without that."""
    pytest.importorskip("trl")
    from datasets import Dataset

    from benchmarks import trl_side

    family, rng = FAMILIES["chatml"], Random(0)
    own = family.tokenizer(tokenizer)
    words = [word for word in map(own.id_to_token, range(260, 600)) if word.isascii()]
    conversations: list[Turns] = []
    for number in range(STEPS * CONFIG.batch_size):
        turns = [("system", "Be kind.")] * (number % 3 == 0)
        for role in ("user", "assistant") * rng.randint(1, 3):
            turns.append((role, " ".join(rng.choice(words) for _ in range(rng.randint(1, 12)))))
        conversations.append(tuple(turns))
    model = random_model(own.get_vocab_size())
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<PAD>"}
    settings |= replace(family, source=GENERATION).settings["tokenizer_config.json"]
    write_folder(tmp_path / "model", Checkpoint(model, own, {}, {"tokenizer_config.json": settings}))
    places = [place for step in shuffled_batches(len(conversations), 8, 1, CONFIG.seed) for place in step]
    messages = [[{"role": role, "content": content} for role, content in conversations[place]] for place in places]
    _, logged, _ = trl_side.fine_tune(
        tmp_path / "model",
        Dataset.from_dict({"messages": messages}),
        assistant_only_loss=True,
        completion_only_loss=False,
        train_sampling_strategy="sequential",
        **trl_side.SAME_ARITHMETIC,
    )

    checkpoint = Checkpoint(model, own, {}, family.settings)
    encoder = make_encoder(checkpoint, choose_template(checkpoint, None, None), 512, 20)
    pairs = [Pair("", turns[-1][1], turns=turns[:-1]) for turns in conversations]
    assert_same_steps(model, encoder.encode_all(pairs), CONFIG, logged, learnt=0.2)
