"""Pretraining on one page: corpus, tokenizer, model, the loop, and what is written."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from part3_pretrain import corpus
from part3_pretrain.bfloat16 import bfloat16_products, multiplies_bfloat16
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.config import LONGEST_ROW, PretrainConfig
from part3_pretrain.induction import start_with_induction_heads
from part3_pretrain.loss_curve import save_loss_curve
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.muon import Muon
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError, deciding_options, flag
from part3_pretrain.runtime.device import choose_device
from part3_pretrain.runtime.expected_time import TrainingTime
from part3_pretrain.runtime.files import cannot_read, check_kept, check_not_folder
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState, digest_of_weights
from part3_pretrain.tokenizer import train_tokenizer

DOCUMENT_END = "<|endoftext|>"  # as other people's files of texts have it
TOKENIZER_TEXTS = 10_000  # texts that the vocabulary is learnt from
COPY_SHARE = 0.06  # batches of repeated random tokens for each batch of text, see `corpus.copy_batch`
LOGITS = 128  # a multiple of it is computed, since a CPU compiles its products anew for every size
MUON_BETAS = (0.9, 0.999)  # of the AdamW beside it: a shorter memory follows the noise of batches as small as ours
ADAM_BETAS, WEIGHT_DECAY, MAX_GRADIENT_NORM = (0.9, 0.95), 0.1, 1.0

Batch = tuple[Tensor, Tensor, bool]  # inputs and targets, (batch, time), and whether they are text or tokens to copy


def run(config: PretrainConfig) -> None:
    """Read or make the corpus, train the model, and write the checkpoint and the loss curve.

    Raises UserError where a file or the device cannot be used, the training diverges, or what --resume finds is of
    another run.
    """
    device = choose_device(config.device)
    check_not_folder(config.checkpoint)
    picture, state_path = config.out_dir / "pretraining_loss_curve.png", state_file(config.checkpoint)
    check_not_folder(picture, state_path)
    given = [*(config.corpus or []), *([config.model] if config.model else [])]
    check_kept(given, config.checkpoint, picture, state_path)
    if config.model and config.vocab_size != PretrainConfig.vocab_size:
        raise UserError("--vocab-size is of a new model, and --model has its vocabulary", "leave one of them out")
    texts = read_corpus(config)
    log(f"{len(texts):,} documents to read" + f", {config.epochs} times" * (config.epochs > 1))
    start = load_checkpoint(config.model) if config.model else None
    decides = deciding_options(config)
    made_by = {name: value for name, value in vars(config).items() if flag(name) in decides}
    made_by["corpus"] = [path.name for path in config.corpus] if config.corpus else "synthetic retail documents"
    decides["the digest of the corpus"] = sha256("\0".join(texts).encode()).hexdigest()
    if start:
        made_by["from"] = str(config.model)
        decides["the digest of the weights to begin with"] = digest_of_weights(start.model)
    with TrainingState(state_path, decides, config.save_every, config.resume) as state:
        trained, losses = pretrain(texts, config, state, device, start)
        with distributed.unsharded(trained.model):
            if distributed.rank() == 0:
                save_checkpoint(config.checkpoint, replace(trained, made_by=made_by))
                save_loss_curve(picture, losses)
    log(f"pretraining ended at {recent_mean(losses):.3f} nats per token, the mean loss of its last 20 steps")
    log(f"written: {config.checkpoint}, {picture}")


def state_file(checkpoint: Path) -> Path:
    """Return where an interrupted training of this checkpoint is kept."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".pt") + ".state.pt")


def read_corpus(config: PretrainConfig) -> list[str]:
    """Return the documents to learn from. Raises UserError where a file cannot be read or holds nothing."""
    if not config.corpus:
        rng = Random(config.seed)
        return [corpus.draw_document(rng) for _ in range(config.conversations)]
    texts = []
    for path in config.corpus:
        try:
            found = [text for text in path.read_text(encoding="utf-8").split(DOCUMENT_END) if text.strip()]
        except OSError as error:
            raise cannot_read(path, error) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error
        if not found:
            raise UserError(f"{path} holds no text", "leave it out")
        texts += found
    return texts


def pretrain(
    texts: list[str],
    config: PretrainConfig,
    state: TrainingState | None = None,
    device: torch.device | str = "cpu",
    start: Checkpoint | None = None,
) -> tuple[Checkpoint, list[float]]:
    """Learn to predict the next token, with the model and the tokenizer of `start`, or with new ones.

    Returns the model on `device` with its tokenizer, and what `train` returns; goes on from a state that was
    interrupted.
    """
    torch.manual_seed(config.seed)
    checkpoint = start or new_model(texts, config)
    checkpoint.model.to(device)  # now that its first weights are drawn, which a GPU would draw otherwise
    losses = train(checkpoint.model, make_batches(texts, checkpoint, config), config, state or TrainingState())
    return checkpoint, losses


def new_model(texts: list[str], config: PretrainConfig) -> Checkpoint:
    """Learn a vocabulary from the texts, and draw the weights of a model that can copy."""
    tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], config.vocab_size)
    model = Transformer(ModelConfig(vocab_size=tokenizer.get_vocab_size()))
    start_with_induction_heads(model)
    return Checkpoint(model, tokenizer, {})


def make_batches(texts: list[str], checkpoint: Checkpoint, config: PretrainConfig) -> list[Batch]:
    """Return the batches of all steps in their order: every text once an epoch, and some to copy for a new model."""
    rng = Random(f"order/{config.seed}")
    tokenizer, shape = checkpoint.tokenizer, checkpoint.model.config
    rows = corpus.tokenize(texts, tokenizer, shape.eos_ids[0], min(LONGEST_ROW, shape.max_positions))
    batches: list[Batch] = []
    for inputs, targets in chain(*(corpus.batches(rows, config.tokens_per_batch, rng) for _ in range(config.epochs))):
        if not (config.corpus or config.model):
            targets = corpus.ignore_messages(inputs, targets, tokenizer)
        batches.append((inputs, targets, True))
    if config.model:
        return batches
    digits = [tokenizer.get_vocab()[digit] for digit in "0123456789"]
    for _ in range(round(COPY_SHARE * len(batches))):
        tensors = corpus.copy_batch(tokenizer.get_vocab_size(), digits, config.tokens_per_batch, rng)
        batches.append((*tensors, False))
    rng.shuffle(batches)
    return batches


def train(model: Transformer, batches: list[Batch], config: PretrainConfig, state: TrainingState) -> list[float]:
    """Train the model in place, and return the loss of every step on text, in nats per token.

    Raises UserError where a gradient is not finite; the state is that before the step.
    """
    loss_module = distributed.data_parallel(model, next_token_loss, config.shard, torch.float32)
    dtype = dtype_of_products(model, config)
    optimizer = make_optimizer(model, config, dtype)
    saved = state.restore(model, optimizer)
    steps_done, losses = saved.get("steps_done", 0), saved.get("losses", [])
    if steps_done:
        log(f"resuming after step {steps_done:,} of {len(batches):,}")
    model.train()
    warmup_steps = min(config.warmup_steps, math.ceil(len(batches) / 10))
    bar = tqdm(total=len(batches), initial=steps_done, desc="pretraining", unit="step", disable=None)
    clock = TrainingTime("pretraining", len(batches))
    with bar, state.signals_wait(), bfloat16_products(model) if dtype == torch.bfloat16 else nullcontext():
        for step, (inputs, targets, is_text) in enumerate(batches[steps_done:], start=steps_done + 1):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, warmup_steps, len(batches))
            try:
                loss = training_step(loss_module, optimizer, inputs, targets)
            except FloatingPointError as error:
                state.save(model, optimizer, {"steps_done": step - 1, "losses": losses})
                loss, norm = error.args
                cause = f"the loss of step {step} is {loss}, its gradient {norm}"
                raise UserError(cause, "lower --learning-rate") from error
            if is_text:
                losses.append(loss)
                bar.set_postfix(loss=f"{loss:.3f}")
            bar.update()
            clock.step(step, None)
            if step % max(1, len(batches) // 10) == 0:
                log(f"pretraining: step {step:,} of {len(batches):,}, loss {recent_mean(losses):.3f}")
            if state.is_due():
                state.save(model, optimizer, {"steps_done": step, "losses": losses})
    return losses


def training_step(module: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor) -> float:
    """Update the weights once, by the gradient of the mean loss over all targets of a batch, and return that loss.

    Raises:
        FloatingPointError: the norm of the gradient is not finite; the weights are as before. Its arguments are the
            loss and that norm.
    """
    tokens = int((targets != corpus.IGNORE_INDEX).sum())
    device = next(module.parameters()).device
    own_inputs, own_targets = distributed.shard(inputs), distributed.shard(targets)
    if len(own_inputs) == 0:  # all ranks compute equally often, since they exchange their gradients
        own_inputs, own_targets = inputs[:1], torch.full_like(targets[:1], corpus.IGNORE_INDEX)
    own_loss = module(own_inputs.to(device, non_blocking=True), own_targets) / tokens
    (own_loss * distributed.world_size()).backward()  # DDP and FSDP take the mean over ranks, we want the sum
    gradient_norm = distributed.full_tensor(nn.utils.clip_grad_norm_(module.parameters(), MAX_GRADIENT_NORM))
    own, norm = torch.stack([own_loss.detach(), gradient_norm]).tolist()  # the only wait for a GPU in a step
    (loss,) = distributed.all_reduce_sum(own)
    if not math.isfinite(norm):
        raise FloatingPointError(loss, norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def next_token_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy summed over the targets, (batch, time), that are not to be ignored.

    Only these have logits, and a few others up to a multiple of `LOGITS`. The targets are on the CPU, which need not
    wait for a GPU to count them.
    """
    is_ignored = targets.flatten() == corpus.IGNORE_INDEX
    known = len(is_ignored) - int(is_ignored.sum())
    places = is_ignored.int().argsort(stable=True)[: math.ceil(known / LOGITS) * LOGITS]
    own_targets = targets.flatten()[places].to(inputs.device, non_blocking=True)
    logits = model.lm_head(model(inputs).flatten(0, 1)[places.to(inputs.device, non_blocking=True)])
    return F.cross_entropy(logits, own_targets, ignore_index=corpus.IGNORE_INDEX, reduction="sum")


def dtype_of_products(model: Transformer, config: PretrainConfig) -> torch.dtype:
    """Return the number format in which matrices are multiplied."""
    on_cpu = model.embed_tokens.weight.device.type == "cpu"
    is_bfloat16 = config.dtype == "bfloat16" or (config.dtype == "auto" and on_cpu and multiplies_bfloat16())
    return torch.bfloat16 if is_bfloat16 else torch.float32


def make_optimizer(model: nn.Module, config: PretrainConfig, dtype: torch.dtype) -> torch.optim.Optimizer:
    """Return Muon for a new model, with its products in `dtype`, and AdamW for one that AdamW has trained before.

    Such a model gains little from Muon (Liu et al. 2025).
    """
    if config.model:
        return make_adamw(model, ADAM_BETAS)
    return Muon(model, MUON_BETAS, WEIGHT_DECAY, dtype)


def make_adamw(model: nn.Module, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Return AdamW whose weight decay leaves the gains of the norms alone."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=betas, fused=True)


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor of a step, from 1 on: it rises to 1, then falls to 0 along half a cosine (SGDR, 2017)."""
    if step <= warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - 1 - warmup_steps) / max(1, total_steps - warmup_steps)))


def recent_mean(losses: list[float]) -> float:
    """Return the mean of the last 20."""
    return sum(losses[-20:]) / max(1, len(losses[-20:]))
