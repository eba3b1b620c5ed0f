"""Part 4 on one page: data, checkpoint, fine-tuning, evaluation, files."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint
from part3_pretrain.config import PretrainConfig
from part3_pretrain.model import Transformer
from part3_pretrain.run import run as pretrain
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError, deciding_options
from part3_pretrain.runtime.device import choose_device, weights_dtype
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState, digest_of_weights
from part3_pretrain.weights import model_from_tensors
from part4_sft import report
from part4_sft.config import BEST_FILE, STATE_FILE, SFTConfig, needs_pretraining
from part4_sft.controls import run_controls
from part4_sft.evaluation import evaluate, validate
from part4_sft.extras.conversations import choose_template, make_encoder, with_template
from part4_sft.extras.extent import LARGEST_MODEL, choose_pairs, settle_extent
from part4_sft.extras.save_as import check_model
from part4_sft.fine_tuning import Trained, train_as_configured
from part4_sft.outputs import check_inputs_kept, check_outputs, save
from part4_sft.preparation import Data, EncodedData, encode_data, prepare_data


def run(config: SFTConfig) -> dict[str, Any]:
    """Do the whole of Part 4 and return what was written to `evaluation.json`.

    Raises:
        UserError: a file or a folder cannot be used, or the training diverges; nothing half-written is left behind.
    """
    timing: dict[str, float] = {}  # seconds by stage
    device = choose_device(config.device, config.dtype)
    check_outputs(config)
    torch.manual_seed(config.seed)

    with timed("data", timing):
        data = prepare_data(config)
        check_inputs_kept(config, data)
    with timed("pretraining", timing):
        if needs_pretraining(config):
            rest = "fine-tuning, evaluation and controls take about half of its time by default"
            log(f"{config.model} is missing, so Part 3 runs first and makes it; {rest}")
            files = None, config.model, config.out_dir
            pretrain(PretrainConfig(*files, device=config.device, seed=config.seed, resume=config.resume))
        checkpoint = load_start(config)
    check_model(config, checkpoint)
    model = checkpoint.model.to(device)
    config = settle_extent(config, count_parameters(model))
    answered = choose_pairs(data, config.evaluate)
    template = choose_template(checkpoint, config.chat_template, config.prompt_template)
    config = with_template(config, template)
    encoder = make_encoder(checkpoint, template, config.max_length, config.max_new_tokens, config.train_on_turns)

    with timed("tokenising", timing):
        examples = encode_data(config, data, encoder)
    others = f"{len(examples.validation)} others are for validation and {len(data['sft_test'])} for the test"
    log(f"{len(examples.training):,} of {examples.dataset_size:,} pairs train; {others}")

    digest = digest_of_weights(model)
    decides = deciding_options(config) | examples.digests | describe_start(checkpoint, digest)
    with TrainingState(config.checkpoint_dir / STATE_FILE, decides, config.save_every, config.resume) as state:
        validation = answered["sft_validation"], examples.validation
        validate_epoch = partial(validate, model, encoder, *validation, config, before_batch=state.look_for_signal)
        with timed("fine_tuning", timing):
            timed_validation = timed("validation", timing)(validate_epoch)
            tuned = train_as_configured(model, examples.training, config, timed_validation, state)
        timing["fine_tuning"] = round(timing["fine_tuning"] - timing.get("validation", 0.0), 2)
        with distributed.unsharded(model):
            with timed("evaluation", timing):
                pretrained = load_pretrained(config, model, digest)
                scores, entries = evaluate(pretrained, model, encoder, answered, config)
            # Of the retail world, small, and with all training pairs in memory.
            small = config.evaluate == "full" and count_parameters(model) <= LARGEST_MODEL
            if "ceiling" in scores and small and not config.stream:
                with timed("controls", timing):
                    scores["controls"] = run_controls(pretrained, model, encoder, data, entries["test"], config)
            evaluation = describe_run(config, model, data, examples, timing) | scores | describe_training(tuned)
            evaluation["examples"] = entries.get("test", [])[:8]
            trained = replace(checkpoint, model=whole(model))
            if distributed.rank() == 0:
                written = save(trained, digest, evaluation, entries, data, config, tuned.adapter)
                report.print_summary(evaluation, written)
    (config.checkpoint_dir / BEST_FILE).unlink(missing_ok=True)  # of this run, or of one that was not resumed
    return evaluation


def describe_start(checkpoint: Checkpoint, digest: str) -> dict[str, str]:
    """Return what decides a training besides options and pairs, by names for messages; `digest` is of the weights."""
    return {
        "the digest of the weights to begin with": digest,
        "the shape of the model": json.dumps(asdict(checkpoint.model.config)),
        "the digest of the tokenizer": sha256(checkpoint.tokenizer.to_str().encode()).hexdigest(),
    }


def load_start(config: SFTConfig) -> Checkpoint:
    """Return what the training starts from, in the number format of its weights."""
    if os.path.exists(config.model) and config.model.suffix != ".pt":  # a folder or a GGUF file, mostly large
        log(f"reading {config.model} ...")
    return load_checkpoint(config.model, stored_dtype(config))


def load_pretrained(config: SFTConfig, model: Transformer, digest: str) -> Transformer:
    """Read again what the fine-tuned model was made from, and put it on the same device.

    It is read now that gradients and moments have gone, rather than kept in memory beside them. Raises UserError where
    it is not what the digest is of.
    """
    pretrained = load_checkpoint(config.model, stored_dtype(config)).model
    if digest_of_weights(pretrained) != digest:
        cure = "put back what it was; the same command with --resume goes on"
        raise UserError(f"{config.model} has been changed since the training began", cure)
    pretrained.config = model.config  # whose chat template may have another token end a reply
    return pretrained.to(model.embed_tokens.weight.device, weights_dtype(config.dtype))


def stored_dtype(config: SFTConfig) -> torch.dtype:
    """Return the number format of the weights between steps; FSDP2 keeps float32, and casts what it gathers."""
    return torch.float32 if config.shard else weights_dtype(config.dtype)


def whole(model: Transformer) -> Transformer:
    """Return a copy of a sharded model with all weights as they were trained, in CPU memory; any other as it is.

    All ranks call it, rank 0 gets the copy. Unsharded weights are not those: they are cast to what blocks compute in.
    """
    if not distributed.is_sharded(model):
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    tensors: dict[str, Any] = get_model_state_dict(model, options=options)
    return model_from_tensors(model.config, tensors.items(), dtype=None) if distributed.rank() == 0 else model


def describe_run(
    config: SFTConfig, model: Transformer, data: Data, examples: EncodedData, timing: dict[str, float]
) -> dict[str, Any]:
    """Return the part of `evaluation.json` that tells what was run, on what, and how long it took."""
    return {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(model.embed_tokens.weight.device),
            "processor": platform.machine(),
            "processes": distributed.world_size(),
            "threads": torch.get_num_threads(),
            "parameters": count_parameters(model),
        },
        "timing_seconds": timing,
        "dataset": {name: len(pairs) for name, pairs in data.items()}
        | {"sft_dataset": examples.dataset_size, "trained_on": len(examples.training)},
    }


def describe_training(tuned: Trained) -> dict[str, Any]:
    """Return the part of `evaluation.json` that tells how the fine-tuning went, by epoch and by step."""
    measures = ("loss", "gradient_norm", "learning_rate")
    steps = {name: [getattr(step, name) for step in tuned.history.steps] for name in measures}
    epochs = {"best_epoch": tuned.best_epoch, "kept_epoch": tuned.kept_epoch}
    return {"by_epoch": tuned.history.by_epoch, "steps": steps} | epochs


def count_parameters(model: Transformer) -> int:
    """Return how many numbers the model has learnt, those that two layers share once."""
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def timed(stage: str, timing: dict[str, float]) -> Iterator[None]:
    """Add the seconds that the block, or each call of a decorated function, takes to its stage."""
    start = time.perf_counter()
    yield
    timing[stage] = round(timing.get(stage, 0.0) + time.perf_counter() - start, 2)
