"""Pretraining on one page: corpus, tokenizer, model, the loop, and what is written."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor
from tqdm import tqdm

from part3_pretrain import corpus
from part3_pretrain.bfloat16 import bfloat16_products, multiplies_bfloat16
from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.config import LONGEST_ROW, PretrainConfig
from part3_pretrain.induction import start_with_induction_heads
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, cannot_read, check_not_folder
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState, settings
from part3_pretrain.tokenizer import train_tokenizer

TOKENIZER_TEXTS = 10_000  # texts that the vocabulary is learnt from
COPY_SHARE = 0.06  # share of steps on repeated random tokens, see `corpus.copy_batch`
ADAM_BETAS, WEIGHT_DECAY, LARGEST_GRADIENT = (0.9, 0.95), 0.1, 1.0
DECIDE_NOTHING = {"checkpoint", "out_dir", "corpus", "save_every", "resume"}  # settings; the corpus itself decides


def run(config: PretrainConfig) -> None:
    """Reads or makes the corpus, trains the model and writes checkpoint and loss curve.

    Raises:
        UserError: a text file cannot be read or holds too little, a file cannot be written, or what --resume finds
            is of another run.
    """

    picture, state_file = config.out_dir / "pretraining_loss_curve.png", config.checkpoint.with_suffix(".state.pt")
    check_not_folder(config.checkpoint, picture, state_file)
    texts = read_corpus(config)
    made_by = {name: value for name, value in asdict(config).items() if name not in DECIDE_NOTHING}
    made_by["corpus"] = [path.name for path in config.corpus] if config.corpus else "synthetic retail conversations"
    decides = settings(config, but=DECIDE_NOTHING)
    decides["the digest of the corpus"] = sha256("\0".join(texts).encode()).hexdigest()
    with TrainingState(state_file, decides, config.save_every, config.resume) as state:
        model, tokenizer, losses = pretrain(texts, config, state)
        with distributed.unsharded(model):
            if distributed.rank() == 0:
                save_checkpoint(config.checkpoint, Checkpoint(model, tokenizer, made_by))
                save_loss_curve(picture, losses)
    log(f"pretraining ended at a loss of {recent(losses):.3f} nats per token")
    log(f"written: {config.checkpoint}, {picture}")


def read_corpus(config: PretrainConfig) -> list[str]:
    """The documents to learn from. Raises UserError where a file cannot be read or holds nothing."""
    if config.corpus is None:
        rng = Random(config.seed)
        return [corpus.draw_conversation(rng) for _ in range(config.conversations)]
    texts = []
    for path in config.corpus:
        try:
            texts.append(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise cannot_read(path, error) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
        if not texts[-1].strip():
            raise UserError(f"{path} holds no text; leave it out")
    return texts


def pretrain(
    texts: list[str], config: PretrainConfig, state: TrainingState | None = None
) -> tuple[Transformer, Tokenizer, list[float]]:
    """Learns a vocabulary, then to predict the next token.

    Args:
        state: where the training is kept, and goes on from if it holds one that was interrupted.

    Returns:
        The model, its tokenizer, and the loss of every step on text, in nats per token.

    Raises:
        UserError: a gradient is not finite; the state is that before the step.
    """
    torch.manual_seed(config.seed)
    rng = Random(f"order/{config.seed}")
    tokenizer = train_tokenizer(texts[:TOKENIZER_TEXTS], config.vocab_size)
    model = Transformer(ModelConfig(vocab_size=tokenizer.get_vocab_size()))
    start_with_induction_heads(model)

    rows = corpus.tokenize(texts, tokenizer, LONGEST_ROW)
    steps = [(batch, True) for batch in corpus.batches(rows, config.tokens_per_batch, rng)]
    digits = [tokenizer.get_vocab()[digit] for digit in "0123456789"]
    for _ in range(round(COPY_SHARE * len(steps))):
        steps.append((corpus.copy_batch(tokenizer.get_vocab_size(), digits, config.tokens_per_batch, rng), False))
    rng.shuffle(steps)

    objective = distributed.data_parallel(model, next_token_loss, config.shard, torch.float32)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": gains, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=ADAM_BETAS,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config.warmup_steps, len(steps))
    )
    low_precision = config.dtype == "bfloat16" or (config.dtype == "auto" and multiplies_bfloat16())
    losses: list[float] = []
    state = state or TrainingState()
    state.attach(model=model, optimizer=optimizer, schedule=schedule, losses=losses)
    done = schedule.last_epoch  # steps, in this class's words
    if done:
        log(f"resuming after step {done:,} of {len(steps):,}")
    model.train()
    bar = tqdm(total=len(steps), initial=done, desc="pretraining", unit="step", disable=None)
    with bar, state.signals_wait(), bfloat16_products(model) if low_precision else nullcontext():
        for (inputs, targets), is_text in steps[done:]:
            tokens = int((targets != corpus.IGNORE_INDEX).sum())
            own_inputs, own_targets = distributed.shard(inputs), distributed.shard(targets)
            if not len(own_inputs):  # all processes compute equally often, since they exchange their gradients
                own_inputs, own_targets = inputs[:1], torch.full_like(targets[:1], corpus.IGNORE_INDEX)
            own_loss = objective(own_inputs, own_targets) / tokens
            (own_loss * distributed.world_size()).backward()  # of what the processes compute, the engines take the mean
            (loss,) = distributed.all_reduce_sum(own_loss.item())
            norm = distributed.full_tensor(torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT))
            if not norm.isfinite():
                state.save()
                fault = f"the loss of step {schedule.last_epoch + 1} is {loss}, its gradient {norm.item()}"
                raise UserError(f"{fault}; lower --learning-rate")
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if is_text:
                losses.append(loss)
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
            bar.update()
            if schedule.last_epoch % max(1, len(steps) // 10) == 0:
                log(f"pretraining: step {schedule.last_epoch:,} of {len(steps):,}, loss {recent(losses):.3f}")
            state.step_done()
    return model, tokenizer, losses


def recent(losses: list[float]) -> float:
    """The mean of the last 20."""
    return sum(losses[-20:]) / max(1, len(losses[-20:]))


def next_token_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the targets, (batch, time), that are not to be ignored."""
    logits = model.lm_head(model(inputs))
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=corpus.IGNORE_INDEX, reduction="sum")


def learning_rate_factor(step: int, warmup_steps: int, total_steps: int) -> float:
    """Rises linearly to 1, then falls along half a cosine (Loshchilov and Hutter 2017) to 0."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))


def save_loss_curve(path: Path, losses: list[float]) -> None:
    """Draws the loss of every step and its mean over 20 steps."""
    import matplotlib  # takes as long to import as a dozen steps, and is needed after the last of them

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, color="#0072B2", alpha=0.3, linewidth=0.8, label="each step")
    means = [sum(losses[max(0, end - 20) : end]) / min(20, end) for end in range(1, len(losses) + 1)]
    axes.plot(range(1, len(losses) + 1), means, color="#0072B2", linewidth=2, label="mean of 20 steps")
    axes.set(
        title="Pretraining", xlabel="optimizer step on text", ylabel="cross-entropy (nats per token)", ylim=(0, None)
    )
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
