"""Supervised fine-tuning from beginning to end: python -m part4_sft.sft

Makes the data or reads the user's, takes the pretrained checkpoint (and pretrains it first where it is missing) or a
Hugging Face model, fine-tunes on the high-quality pairs, lets both models answer contexts they have never seen, and
writes what came out.
"""

from __future__ import annotations

import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

from part3_pretrain.command_line import exit_status
from part3_pretrain.files import check_writable, locked
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig, parse_arguments


def main() -> None:
    config = parse_arguments()
    folders = [config.out_dir, config.checkpoint_dir]
    if needs_pretraining(config):
        folders.append(config.model.parent)
    with locked(*folders):
        from part3_pretrain.parallel import joined  # only now, since torch takes seconds to import

        with joined(config.shard):
            run(config)


def needs_pretraining(config: SFTConfig) -> bool:
    return config.model == DEFAULT_CHECKPOINT and not config.model.exists()


def run(config: SFTConfig) -> dict[str, Any]:
    """Does the whole of Part 4 and returns what it wrote to `evaluation.json`.

    Raises:
        UserError: an option, a file or a folder cannot be used; nothing half-written is left behind.
    """
    # Only now, since neither --help nor a mistyped option should wait for it.
    import torch

    from part3_pretrain import parallel
    from part3_pretrain.checkpoint import load_checkpoint
    from part3_pretrain.progress import say
    from part3_pretrain.resuming import TrainingState
    from part4_sft import report, stages
    from part4_sft.encoding import PairEncoder
    from part4_sft.stages import timed

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
            from part3_pretrain.config import PretrainConfig
            from part3_pretrain.pretrain import run_pretraining

            say(f"{config.model} is missing, so Part 3 runs first and makes it")
            part3 = PretrainConfig(
                checkpoint=config.model, out_dir=config.out_dir, seed=config.seed, resume=config.resume
            )
            run_pretraining(part3)
        # FSDP2 keeps float32 and casts to --dtype what it gathers.
        checkpoint = load_checkpoint(config.model, getattr(torch, "float32" if config.shard else config.dtype))
    model = checkpoint.model.to(device)
    encoder = PairEncoder.of(checkpoint, config.prompt_template, config.max_length, config.max_new_tokens)

    with timed("tokenising", timing):
        training, validation = stages.tokenised(config, data, encoder)
    counts = f"{len(validation)} others are for validation and {len(data['sft_test'])} for the test"
    say(f"{len(training.examples):,} of {training.pairs:,} pairs train; {counts}")
    decides = stages.decided_by(config, training, data, model)
    with TrainingState(config.checkpoint_dir / stages.STATE_FILE, decides, config.save_every, config.resume) as state:
        steps, by_epoch = stages.fine_tune(model, encoder, training.examples, validation, data, config, timing, state)
        with parallel.whole(model):
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
                    "processes": parallel.count(),
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
            if parallel.rank() == 0:
                written = stages.save(checkpoint, steps, evaluation, entries, data, config)
                report.print_summary(evaluation, written)
    return evaluation


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
