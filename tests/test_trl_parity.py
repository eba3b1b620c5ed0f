"""TRL judges the training loop: its `SFTTrainer` goes through the same losses and gradient norms, step by step.

Both start from the same weights, see the same tokenised pairs in the same order, and take their steps in float32 with
Adam at a constant learning rate. TRL comes with benchmarks/requirements.txt; where it is missing, this is skipped.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.corpus import IGNORE
from part3_pretrain.huggingface import write_folder
from part3_pretrain.model import ModelConfig, Transformer
from part4_sft.config import SFTConfig
from part4_sft.encoding import Example, shuffled_steps
from part4_sft.training import train

STEPS, VOCABULARY = 50, 2048
CONFIG = SFTConfig(epochs=1, batch_size=8, learning_rate=5e-5)


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
    return [Example(prompt + completion, [IGNORE] * len(prompt) + completion) for prompt, completion in pairs]


def losses_and_norms_of_trl(
    model: Transformer, examples: list[Example], tokenizer: Tokenizer, parts: int, folder: Path
) -> list[tuple[float, float]]:
    """What `SFTTrainer` logs of every step, where each is computed in so many parts."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig as TRLConfig
    from trl import SFTTrainer

    write_folder(folder / "model", model, tokenizer, {}, "")
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model"),
        TRLConfig(
            output_dir=str(folder),
            num_train_epochs=1,
            per_device_train_batch_size=CONFIG.batch_size // parts,
            gradient_accumulation_steps=parts,
            train_sampling_strategy="sequential",
            completion_only_loss=True,
            learning_rate=CONFIG.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=0.0,  # makes AdamW Adam
            max_grad_norm=0.0,  # clips nothing
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=Dataset.from_dict(
            {
                "input_ids": [example.ids for example in examples],
                "completion_mask": [[int(label != IGNORE) for label in example.labels] for example in examples],
            }
        ),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
    )
    trainer.train()
    return [(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 4])
def test_every_step_has_the_loss_and_the_gradient_norm_of_trl(
    parts: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else SFTTrainer reports that it is used
    model, examples = random_model(), random_examples()
    config = replace(CONFIG, gradient_accumulation_steps=parts)
    in_our_order = [example for step in shuffled_steps(examples, config.batch_size, 1, config.seed) for example in step]

    theirs = losses_and_norms_of_trl(model, in_our_order, tokenizer, parts, tmp_path)
    steps = train(model, examples, config, after_epoch=lambda epoch, loss: None)
    ours = [(step.loss, step.gradient_norm) for step in steps]

    assert len(ours) == STEPS
    assert ours[-1][0] < ours[0][0] - 0.5  # if nothing were learnt, any optimizer would pass
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-4, atol=0)
