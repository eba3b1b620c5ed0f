"""Fine-tuning with a masked loss: one training step, and the loop around it.

The loss of an optimizer step is the cross-entropy over its response tokens alone, <EOS> included:

    loss = sum over response tokens of -log p(token | all tokens before it) / number of response tokens of the step
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from part3_pretrain.bfloat16 import bfloat16_products, multiplies_bfloat16
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.device import free_memory, weights_dtype
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft.config import SFTConfig
from part4_sft.dataset import list_others
from part4_sft.encoding import Example
from part4_sft.extras.bfloat16_adam import BFloat16Adam
from part4_sft.extras.schedule import set_learning_rate
from part4_sft.extras.streaming import LONGEST_LIST, ComputedBatches

LARGE_LAYER = 192  # inputs, and outputs; below, casts cost more than products in bfloat16 gain (0.6 to 1.2x; above, 2x)
LOGITS_PER_CHUNK = 2**25  # on a CPU; 128 MiB in float32
BYTES_PER_LOGIT = 16  # at most, of all that the loss and its gradient make of one
cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORE_INDEX, reduction="sum")

Validate = Callable[[int, float | None], dict[str, Any]]  # epoch and its training loss to an entry of `by_epoch`


@dataclass(frozen=True)
class Step:
    """What one optimizer step saw: nats per response token, the Euclidean norm of its gradient, response tokens.

    The norm is that before a longer gradient is scaled down.
    """

    loss: float
    gradient_norm: float
    tokens: int
    learning_rate: float


@dataclass
class History:
    """What a training has seen so far: every step, and an entry of `evaluation.json` for every epoch from 0."""

    steps: list[Step] = field(default_factory=list)
    by_epoch: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def from_values(cls, values: dict[str, Any]) -> History:
        """Rebuild a history from its `values`; an empty one from `{}`."""
        return cls([Step(*step) for step in values.get("steps", [])], list(values.get("by_epoch", [])))

    def values(self) -> dict[str, Any]:
        """Return the history in plain values, for a file."""
        return {"steps": [list(astuple(step)) for step in self.steps], "by_epoch": self.by_epoch}


# ---------------------------------------------------------------------------------------------------- one step


def collate(examples: Sequence[Example]) -> tuple[Tensor, Tensor, list[int]]:
    """Put examples one behind another into one row, without padding.

    Returns:
        Inputs (1, time), targets (1, time) and the length of each example in them. A target is the token that follows
        the input, or -100. Of no examples, one input whose target is -100.
    """
    inputs = [token for example in examples for token in example.ids[:-1]]
    targets = [label for example in examples for label in example.labels[1:]]
    lengths = [len(example.ids) - 1 for example in examples]
    if not examples:
        inputs, targets, lengths = [0], [IGNORE_INDEX], [1]
    return torch.tensor([inputs]), torch.tensor([targets]), lengths


def masked_loss(model: Transformer, inputs: Tensor, targets: Tensor, lengths: list[int]) -> Tensor:
    """Return the cross-entropy summed over the targets that are not -100, a scalar in nats.

    Args:
        inputs: ids, (1, time); they and the targets are on the CPU, which need not wait for a GPU to read them.
        targets: the id that follows each input, or -100, (1, time).
        lengths: of the examples that stand one behind another in both.
    """
    # More than a third of the tokens are context: they need neither logits nor most of the last block.
    places, device = (targets[0] != IGNORE_INDEX).nonzero()[:, 0], model.embed_tokens.weight.device
    inputs, targets, response_positions = (
        each.to(device, non_blocking=True) for each in (inputs, targets[0, places], places)
    )
    hidden = model(inputs, lengths=lengths, output_positions=response_positions)[0]  # (response tokens, hidden_size)

    def chunk_loss(hidden: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(model.lm_head(hidden).float(), targets)

    free = free_memory(hidden.device)
    logits = LOGITS_PER_CHUNK if free is None else free // 2 // BYTES_PER_LOGIT  # has not run on a GPU
    rows = max(1, logits // model.config.vocab_size)
    if len(hidden) <= rows:
        return chunk_loss(hidden, targets)
    # With a large vocabulary the logits would be larger than the model. So they are computed in chunks, and once more
    # for the gradient: only one chunk is in memory at a time.
    chunks = zip(hidden.split(rows), targets.split(rows))
    return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def training_step(
    loss_module: nn.Module,
    optimizer: torch.optim.Optimizer,
    examples: Sequence[Example],
    micro_batch_size: int = 0,
    max_grad_norm: float = 0.0,
) -> Step:
    """Update the weights once, by the gradient of the mean loss over all response tokens of the examples.

    Each rank computes its shard of the examples, in one micro-batch or several.

    Args:
        loss_module: `masked_loss` as a module, from `distributed.data_parallel`.
        micro_batch_size: the most examples that a rank computes at once; 0: all of its shard.
        max_grad_norm: what a longer gradient is scaled down to; 0: none is.

    Raises:
        FloatingPointError: the loss or the gradient is not finite; the weights are as before.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # Divided by the tokens of the whole step, not of each micro-batch: else short responses would weigh more.
    tokens = sum(label != IGNORE_INDEX for example in examples for label in example.labels[1:])
    own_loss = torch.zeros((), dtype=torch.float64, device=parameters[0].device)
    batches = micro_batches(examples, micro_batch_size)
    for number, batch in enumerate(batches, start=1):
        distributed.set_requires_gradient_sync(loss_module, number == len(batches))
        batch_loss = loss_module(*collate(batch)) / tokens
        (batch_loss * distributed.world_size()).backward()  # DDP and FSDP take the mean over ranks, we want the sum
        own_loss += batch_loss.detach()
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients, dtype=torch.float32))  # bfloat16 has two or three digits
    norm = torch.linalg.vector_norm(norms)
    if max_grad_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_grad_norm, norm)
    # The only wait for a GPU in a step.
    own, gradient_norm = torch.stack([own_loss, distributed.full_tensor(norm).double()]).tolist()
    (loss,) = distributed.all_reduce_sum(own)
    if not math.isfinite(loss + gradient_norm):
        raise FloatingPointError(f"{loss}, its gradient {gradient_norm}")
    optimizer.step()
    optimizer.zero_grad()
    return Step(loss, gradient_norm, tokens, optimizer.param_groups[0]["lr"])


def micro_batches(examples: Sequence[Example], size: int) -> list[list[Example]]:
    """Split the examples of a step into this rank's micro-batches, of at most `size`, and equally many on all ranks.

    Ranks exchange gradients, so all must compute equally often. Where examples are too few, a micro-batch is empty.
    """
    per_rank = math.ceil(len(examples) / distributed.world_size())
    count = math.ceil(per_rank / (size or per_rank))
    return [list(distributed.shard(examples)[first::count]) for first in range(count)]


# ---------------------------------------------------------------------------------------------------- the loop


def train(
    model: Transformer,
    examples: Sequence[Example],
    config: SFTConfig,
    validate: Validate,
    state: TrainingState | None = None,
    on_step: Callable[[int, Step], None] = lambda number, step: None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda by_epoch: None,
) -> History:
    """Fine-tune all parameters that require gradients, in place; a sharded model stays sharded.

    Args:
        examples: every one of these gives gradients; choosing them is up to the caller.
        validate: called before the first epoch and after each, with its number and mean loss per response token.
        state: where the training is kept, and goes on from if it holds one that was interrupted.
        on_step: called with the step's number, from 1, and what it saw.
        on_epoch: called after each epoch but epoch 0, before its state is saved, with all entries of `by_epoch` so far.

    Raises:
        UserError: a loss or a gradient is not finite; model and state are those before that step.
    """
    state = state or TrainingState()
    trained: Any = torch.compile(model) if config.compile else model
    loss_module = distributed.data_parallel(trained, masked_loss, config.shard, weights_dtype(config.dtype))
    optimizer, take_step = make_optimizer(model, config), choose_step(model, config)
    history = History.from_values(state.restore(model, optimizer))
    total = config.epochs * math.ceil(len(examples) / config.batch_size)
    if history.steps:
        log(f"resuming after step {len(history.steps):,} of {total:,}")
    bar = tqdm(total=total, initial=len(history.steps), desc="fine-tuning", unit="step", disable=None)
    with bar, state.signals_wait(lambda: state.save(model, optimizer, history.values())):
        if not history.by_epoch:
            with distributed.unsharded(model):
                history.by_epoch.append(validate(0, None))
        for epoch in range(len(history.by_epoch), config.epochs + 1):
            model.train()  # validation leaves it in evaluation mode
            shuffled = ComputedBatches if config.stream and len(examples) > LONGEST_LIST else shuffled_batches
            batches = shuffled(len(examples), config.batch_size, epoch, config.seed)
            steps_before = (epoch - 1) * len(batches)
            for number in range(len(history.steps) - steps_before, len(batches)):  # of a resumed epoch, what is left
                batch = batches[number]
                pairs = [examples[index] for index in batch]
                set_learning_rate(optimizer, config, len(history.steps), total)
                try:
                    step = take_step(loss_module, optimizer, pairs, config.micro_batch_size, config.max_grad_norm)
                except FloatingPointError as error:
                    state.save(model, optimizer, history.values())
                    places = [pair.place or f"pair {index + 1}" for index, pair in zip(batch, pairs)]
                    raise diverged(len(history.steps) + 1, error, places) from error
                history.steps.append(step)
                on_step(len(history.steps), step)
                bar.set_postfix(epoch=epoch, loss=f"{step.loss:.3f}")
                bar.update()
                if state.is_due() and number < len(batches) - 1:  # the last is saved with its validation
                    state.save(model, optimizer, history.values())
            with distributed.unsharded(model):
                history.by_epoch.append(validate(epoch, mean_loss_of(history.steps[steps_before:])))
            on_epoch(history.by_epoch)
            state.save(model, optimizer, history.values())
    return history


def choose_step(model: Transformer, config: SFTConfig) -> Callable[..., Step]:
    """Return `training_step`; with --dtype auto one in which large layers multiply in bfloat16, where that is fast.

    With torch.compile and sharded weights, and on a GPU, all is computed as the weights are stored.
    """
    is_plain = model.embed_tokens.weight.device.type == "cpu" and not (config.compile or config.shard)
    if config.dtype == "auto" and is_plain and multiplies_bfloat16():
        return bfloat16_products(model, LARGE_LAYER, dithered=True)(training_step)
    return training_step


def diverged(step: int, error: FloatingPointError, places: Sequence[str]) -> UserError:
    """Return what to tell of a step whose loss or gradient is not finite, with the places of its pairs."""
    first, *others = places
    shown = ", ".join([first, list_others(others)] if others else [first])
    cause = f"the loss of step {step} is {error} (trained on {shown})"
    return UserError(cause, "look at them, or lower --learning-rate")


def shuffled_batches(count: int, batch_size: int, epoch: int, seed: int) -> list[list[int]]:
    """Return the indices of the examples in each optimizer step of an epoch: every one once, by seed and epoch."""
    order = list(range(count))
    Random(f"{seed}/{epoch}").shuffle(order)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def make_optimizer(model: nn.Module, config: SFTConfig) -> torch.optim.Optimizer:
    """Return Adam (Kingma and Ba 2015) for the number format of the weights; `train` sets its learning rate."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if parameters[0].dtype == torch.bfloat16:
        return BFloat16Adam(parameters, config.learning_rate, getattr(torch, config.moments_dtype))
    return torch.optim.Adam(parameters, lr=config.learning_rate, fused=True)


# ---------------------------------------------------------------------------------------------------- mean losses


def mean_loss_of(steps: Sequence[Step]) -> float:
    """Return the loss per response token over several steps."""
    return sum(step.loss * step.tokens for step in steps) / sum(step.tokens for step in steps)


@torch.inference_mode()
def mean_loss(
    model: Transformer,
    examples: Sequence[Example],
    batch_size: int = 50,
    before_batch: Callable[[], None] = lambda: None,
) -> float:
    """Return the cross-entropy per response token over all examples, in nats; its exponential is the perplexity.

    All ranks call `before_batch` equally often.
    """
    loss = tokens = 0.0
    own = distributed.shard(examples)
    for start in range(0, math.ceil(len(examples) / distributed.world_size()), batch_size):
        before_batch()
        inputs, targets, lengths = collate(own[start : start + batch_size])
        loss += masked_loss(model, inputs, targets, lengths).item()
        tokens += int((targets != IGNORE_INDEX).sum())
    loss, tokens = distributed.all_reduce_sum(loss, tokens)
    return loss / tokens
