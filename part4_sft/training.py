"""The masked-loss loop: cross-entropy over response tokens only, Adam, a constant learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft.config import SFTConfig
from part4_sft.encoding import Example, collate, shuffled_steps
from part4_sft.extras.bfloat16_adam import BFloat16Adam

LOGITS_AT_ONCE = 2**25  # 128 MiB in float32
summed_cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum")


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw: nats per response token, the Euclidean norm of its gradient, response tokens."""

    loss: float
    gradient_norm: float
    tokens: int


def masked_loss(model: Transformer, inputs: Tensor, targets: Tensor, lengths: list[int]) -> Tensor:
    """Cross-entropy summed over the targets that are not -100; a scalar.

    Args:
        inputs: ids, (1, time).
        targets: the id that follows each input, or -100, (1, time).
        lengths: of the examples that stand one behind another in both.
    """
    # The context, more than a third of the tokens, needs neither logits nor most of the last block.
    is_response = (targets[0] != IGNORE_INDEX).nonzero()[:, 0]
    hidden, wanted = model(inputs, lengths=lengths, wanted=is_response), targets[0, is_response]

    def of(hidden: Tensor, wanted: Tensor) -> Tensor:
        return summed_cross_entropy(model.lm_head(hidden).float(), wanted)

    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(hidden) <= rows:
        return of(hidden, wanted)
    # With a large vocabulary the logits would be larger than the model: they are computed in chunks, and for the
    # gradient once more, so that those of one chunk alone are in memory.
    chunks = zip(hidden.split(rows), wanted.split(rows))
    return torch.stack([checkpoint(of, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def train(
    model: Transformer,
    examples: Sequence[Example],
    config: SFTConfig,
    after_epoch: Callable[[int, float], None],
    state: TrainingState | None = None,
    after_step: Callable[[int, Step], None] | None = None,
) -> list[Step]:
    """Fine-tunes the model in place: all of its parameters that require gradients.

    Of several processes, each computes its share of every step. A sharded model stays so; see `distributed.unsharded`.

    Args:
        examples: every one of these gives gradients; choosing them is up to the caller.
        after_epoch: called with the epoch's number, from 1, and its mean training loss per response token.
        state: where the training is kept, and goes on from if it holds one that was interrupted.
        after_step: called with the step's number, from 1, and what it saw.

    Returns:
        What every optimizer step saw.

    Raises:
        UserError: a loss or a gradient is not finite; model and state are those before that step.
    """
    device = model.embed_tokens.weight.device
    objective = distributed.data_parallel(model, masked_loss, config.shard, getattr(torch, config.dtype))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, config)
    history: list[tuple[float, float, int]] = []  # the values of each `Step`
    state = state or TrainingState()
    state.attach(model=model, optimizer=optimizer, history=history)
    steps_per_epoch = -(-len(examples) // config.batch_size)
    total = config.epochs * steps_per_epoch
    if history:
        log(f"resuming after step {len(history):,} of {total:,}")
    bar = tqdm(total=total, initial=len(history), desc="fine-tuning", unit="step", disable=None)
    with bar, state.signals_wait():
        while len(history) < total:
            model.train()  # whatever was done with the model after the last epoch
            epoch, done = divmod(len(history), steps_per_epoch)
            for places in shuffled_steps(len(examples), config.batch_size, epoch + 1, config.seed)[done:]:
                step = [examples[place] for place in places]
                # Divided by the tokens of the whole step, not of each micro-batch: else short replies would weigh more.
                step_tokens = sum(label != IGNORE_INDEX for example in step for label in example.labels[1:])
                step_loss = 0.0
                parts = min(config.gradient_accumulation_steps, -(-len(step) // distributed.world_size()))
                for part in range(parts):
                    own = distributed.shard(step)[part::parts]
                    # All processes compute equally often, since they exchange: one that has no pair counts it as 0.
                    inputs, targets, lengths = collate(own or step[:1])
                    distributed.set_requires_gradient_sync(objective, part == parts - 1)
                    loss = objective(inputs.to(device), targets.to(device), lengths) / step_tokens * bool(own)
                    (
                        loss * distributed.world_size()
                    ).backward()  # of what the processes compute, the engines take the mean
                    step_loss += loss.item()
                (step_loss,) = distributed.all_reduce_sum(step_loss)
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                gradient_norm = distributed.full_tensor(nn.utils.get_total_norm(gradients)).item()
                if not math.isfinite(step_loss + gradient_norm):
                    state.save()
                    pairs = ", ".join(str(place + 1) for place in places)
                    fault = f"the loss of step {len(history) + 1} is {step_loss}, its gradient {gradient_norm}"
                    raise UserError(f"{fault} (training pairs {pairs}); look at them, or lower --learning-rate")
                optimizer.step()
                optimizer.zero_grad()
                history.append((step_loss, gradient_norm, step_tokens))
                if after_step:
                    after_step(len(history), Step(*history[-1]))
                bar.set_postfix(epoch=epoch + 1, loss=f"{step_loss:.3f}")
                bar.update()
                if len(history) % steps_per_epoch:  # an epoch's last step is saved with its validation
                    state.step_done()
            of_epoch = history[-steps_per_epoch:]
            summed = sum(loss * tokens for loss, _, tokens in of_epoch)
            with distributed.unsharded(model):
                after_epoch(epoch + 1, summed / sum(tokens for _, _, tokens in of_epoch))
            state.save()
    return [Step(*values) for values in history]


def make_optimizer(parameters: list[nn.Parameter], config: SFTConfig) -> torch.optim.Optimizer:
    """Adam with a constant learning rate, for the number format that the weights are kept in."""
    if parameters[0].dtype == torch.bfloat16:
        return BFloat16Adam(parameters, config.learning_rate, getattr(torch, config.moments_dtype))
    return torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)


@torch.inference_mode()
def mean_loss(model: Transformer, examples: Sequence[Example], batch_size: int = 50) -> float:
    """Cross-entropy per response token over all examples, in nats; its exponential is the perplexity."""
    device = model.embed_tokens.weight.device
    summed = tokens = 0.0
    own = distributed.shard(examples)
    for start in range(0, len(own), batch_size):
        inputs, targets, lengths = collate(own[start : start + batch_size])
        summed += masked_loss(model, inputs.to(device), targets.to(device), lengths).item()
        tokens += int((targets != IGNORE_INDEX).sum())
    summed, tokens = distributed.all_reduce_sum(summed, tokens)
    return summed / tokens
