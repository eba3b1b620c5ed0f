"""The training with all that options ask for around its loop: LoRA, the best epoch, TensorBoard, the expected time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.expected_time import TrainingTime
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft import report
from part4_sft.config import BEST_FILE, SFTConfig
from part4_sft.encoding import Example
from part4_sft.extras.best_epoch import BestEpoch, find_best
from part4_sft.extras.lora import add_lora, learnt_matrices, merge_lora
from part4_sft.extras.tensorboard import TensorBoard
from part4_sft.training import History, Step, Validate, train


@dataclass(frozen=True)
class Trained:
    """What came of a training, besides the weights."""

    history: History
    best_epoch: int  # the one with the lowest validation loss
    kept_epoch: int  # the one whose weights the model has
    adapter: dict[str, Tensor]  # what LoRA has learnt, by the names of peft's files


def train_as_configured(
    model: Transformer, examples: Sequence[Example], config: SFTConfig, validate: Validate, state: TrainingState
) -> Trained:
    """Train the model in place; `validate` and `state` are those of `train`."""
    steps = config.epochs * math.ceil(len(examples) / config.batch_size)
    if config.warmup_steps >= steps:
        raise UserError(f"--warmup-steps {config.warmup_steps} leave none of the {steps} steps", "choose fewer")
    watchers: list[Any] = [TrainingTime("fine-tuning", steps, config.epochs)]
    if config.tensorboard and distributed.rank() == 0:
        watchers.append(TensorBoard(config.tensorboard))
    lora = add_lora(model, config.lora_rank) if config.lora_rank else None
    keeper = BestEpoch(model, config.checkpoint_dir / BEST_FILE) if config.keep == "best" else None
    model.gradient_checkpointing = config.gradient_checkpointing

    def validate_and_tell(epoch: int, train_loss: float | None) -> dict[str, Any]:
        entry = validate(epoch, train_loss)
        log(report.describe_epoch(entry))
        for watcher in watchers:
            watcher.epoch(entry)
        return entry

    def on_step(number: int, step: Step) -> None:
        for watcher in watchers:
            watcher.step(number, step)

    on_epoch = keeper.save if keeper else lambda by_epoch: None
    history = train(model, examples, config, validate_and_tell, state, on_step, on_epoch)
    best = find_best(history.by_epoch)
    kept = best if keeper else config.epochs
    if keeper and kept < config.epochs:
        log(f"the model is that of epoch {kept} again, after which the validation loss was lowest")
        keeper.restore()
    adapter: dict[str, Tensor] = {}
    if lora:
        adapter = learnt_matrices(model)
        merge_lora(model, lora)
        log("LoRA is merged into the weights, and what will be saved is validated")
        history.by_epoch[kept] = validate_and_tell(kept, history.by_epoch[kept]["train_loss"])
    return Trained(history, best, kept, adapter)
