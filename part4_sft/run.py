"""Part 4 on one page: data, checkpoint, fine-tuning, evaluation, files."""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.config import PretrainConfig
from part3_pretrain.run import run as pretrain
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.files import check_writable
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft import report, stages
from part4_sft.config import SFTConfig, needs_pretraining
from part4_sft.encoding import PairEncoder
from part4_sft.stages import timed


def run(config: SFTConfig) -> dict[str, Any]:
    """Does the whole of Part 4 and returns what it wrote to `evaluation.json`.

    Raises:
        UserError: an option, a file or a folder cannot be used; nothing half-written is left behind.
    """
    timing: dict[str, float] = {}
    device = stages.choose_device(config.device)
    stages.check_options(config)
    stages.tell_if_slow(config.dtype, device)
    check_writable(config.out_dir, config.checkpoint_dir)
    stages.check_files(config)
    torch.manual_seed(config.seed)

    with timed("data", timing):
        data = stages.prepare_data(config)
    with timed("pretraining", timing):
        if needs_pretraining(config):
            log(f"{config.model} is missing, so Part 3 runs first and makes it")
            part3 = PretrainConfig(
                checkpoint=config.model, out_dir=config.out_dir, seed=config.seed, resume=config.resume
            )
            pretrain(part3)
        # FSDP2 keeps float32 and casts to --dtype what it gathers.
        checkpoint = load_checkpoint(config.model, getattr(torch, "float32" if config.shard else config.dtype))
    model = checkpoint.model.to(device)
    encoder = PairEncoder.of(checkpoint, config.prompt_template, config.max_length, config.max_new_tokens)

    with timed("tokenising", timing):
        training, validation = stages.tokenised(config, data, encoder)
    counts = f"{len(validation)} others are for validation and {len(data['sft_test'])} for the test"
    log(f"{len(training.examples):,} of {training.pairs:,} pairs train; {counts}")
    decides = stages.decided_by(config, training, data, model)
    with TrainingState(config.checkpoint_dir / stages.STATE_FILE, decides, config.save_every, config.resume) as state:
        steps, by_epoch = stages.fine_tune(model, encoder, training.examples, validation, data, config, timing, state)
        with distributed.unsharded(model):
            with timed("evaluation", timing):
                # Read again, now that gradients and moments have gone, rather than kept in memory beside them.
                pretrained = load_checkpoint(config.model, getattr(torch, config.dtype)).model.to(device)
                evaluation, entries = stages.evaluate(pretrained, model, encoder, data, config)

            evaluation = {
                "config": {
                    name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()
                },
                "environment": {
                    "python": platform.python_version(),
                    "torch": torch.__version__,
                    "device": str(device),
                    "processor": platform.machine(),
                    "processes": distributed.world_size(),
                    "threads": torch.get_num_threads(),
                    "parameters": sum(parameter.numel() for parameter in model.parameters()),
                },
                "timing_seconds": timing,
                "dataset": {name: len(pairs) for name, pairs in data.items()}
                | {"sft_dataset": training.pairs, "trained_on": len(training.examples)},
                **evaluation,
                "by_epoch": by_epoch,
                "steps": {
                    "loss": [step.loss for step in steps],
                    "gradient_norm": [step.gradient_norm for step in steps],
                },
                "examples": entries["test"][:8],
            }
            if distributed.rank() == 0:
                written = stages.save(checkpoint, steps, evaluation, entries, data, config)
                report.print_summary(evaluation, written)
    return evaluation
