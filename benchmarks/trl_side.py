"""The other side: the same fine-tuning and generation by TRL and transformers, from the same weights."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from benchmarks.side_by_side import Measured
from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import Transformer
from part4_sft.encoding import Example
from part4_sft.generation import Sampling

huggingface_hub.constants.HF_HUB_OFFLINE = True  # else SFTTrainer reports that it is used
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
disable_progress_bars()

# The same arithmetic as `part4_sft`: Adam at a constant rate, no clipping, float32, every activation kept.
SAME_ARITHMETIC: dict[str, Any] = {
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,  # makes AdamW Adam
    "max_grad_norm": 0.0,  # clips nothing
    "bf16": False,
    "gradient_checkpointing": False,
}
PAD_ID = 0


class Clock(TrainerCallback):
    """Takes the time from the begin of the first step to the end of the last."""

    def on_step_begin(self, *arguments: Any, **keywords: Any) -> None:
        self.start = getattr(self, "start", time.perf_counter())

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        self.end = time.perf_counter()


@contextmanager
def exported(model: Transformer, tokenizer: Tokenizer) -> Iterator[Path]:
    """Write the model to a temporary folder that transformers can read."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_folder(folder, Checkpoint(model, tokenizer, {}))
        yield folder


def fine_tune(
    folder: Path, examples: Sequence[Example] | Dataset, steps: int = -1, batch_size: int = 8, **settings: Any
) -> tuple[Measured, list[dict[str, float]], Any]:
    """Fine-tune by `SFTTrainer`.

    Args:
        folder: the model to start from, as `exported` writes it.
        examples: or a data set as TRL takes it.
        steps: how many; by default an epoch.
        settings: of TRL's `SFTConfig`; all others are as they come, but for the device, logs and files.

    Returns:
        Seconds, real tokens (padding is not counted) and every step's loss; every step's log; the model.
    """
    clock = Clock()
    options: dict[str, Any] = {
        "num_train_epochs": 1,
        "max_steps": steps,
        "learning_rate": 5e-5,
        "completion_only_loss": True,
        "use_cpu": not torch.cuda.is_available(),
        **settings,
    }
    if not isinstance(examples, Dataset):
        ids, labels = [example.ids for example in examples], [example.labels for example in examples]
        masks = [[int(label != IGNORE_INDEX) for label in of_one] for of_one in labels]
        examples = Dataset.from_dict({"input_ids": ids, "completion_mask": masks})
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        TRLConfig(
            output_dir=str(folder.parent / "trl"),
            per_device_train_batch_size=batch_size,
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            **options,
        ),
        train_dataset=examples,
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[clock],
    )
    with redirect_stdout(StringIO()):  # each step's log
        trainer.train()
    steps_log = [entry for entry in trainer.state.log_history if "loss" in entry]
    measured = Measured(clock.end - clock.start, steps_log[-1]["num_tokens"], [entry["loss"] for entry in steps_log])
    return measured, steps_log, trainer.model


def generate(model: Any, prompts: list[list[int]], sampling: Sampling, batch_size: int) -> list[list[int]]:
    """Return the ids that follow each prompt, without <EOS>, by transformers' `generate`; like lengths go together."""
    settings: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        settings = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k}
    eos_ids = model.generation_config.eos_token_id
    if not isinstance(eos_ids, list):
        eos_ids = [eos_ids]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    replies: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        longest = max(len(prompts[index]) for index in batch)
        padding = [longest - len(prompts[index]) for index in batch]
        written = model.generate(
            input_ids=torch.tensor([[PAD_ID] * pads + prompts[index] for index, pads in zip(batch, padding)]),
            attention_mask=torch.tensor([[0] * pads + [1] * (longest - pads) for pads in padding]),
            pad_token_id=PAD_ID,
            max_new_tokens=sampling.max_new_tokens,
            **settings,
        )
        for index, row in zip(batch, written[:, longest:].tolist()):
            length = next((position for position, token in enumerate(row) if token in eos_ids), len(row))
            replies[index] = row[:length]
    return [replies[index] for index in range(len(prompts))]
