"""The masked-loss loop: cross-entropy over response tokens only, Adam, a constant learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from part3_pretrain.corpus import IGNORE
from part3_pretrain.model import Transformer
from part4_sft.config import SFTConfig
from part4_sft.dataset import Example, collate, shuffled_steps

summed_cross_entropy = nn.CrossEntropyLoss(ignore_index=IGNORE, reduction="sum")


def masked_loss(model: Transformer, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy summed over the targets that are not -100; a scalar.

    Args:
        inputs: ids, (batch, time).
        targets: the id that follows each input, or -100, (batch, time).
    """
    is_response = targets != IGNORE
    # Logits only where they are asked for: the context is more than half of the tokens.
    logits = model.lm_head(model(inputs)[is_response])
    return summed_cross_entropy(logits.float(), targets[is_response])


def train(
    model: Transformer,
    examples: list[Example],
    config: SFTConfig,
    pad_id: int,
    after_epoch: Callable[[int, float], None],
) -> list[float]:
    """Fine-tunes the model in place.

    Args:
        examples: every one of these gives gradients; choosing them is up to the caller.
        after_epoch: called with the epoch's number, from 1, and its mean training loss per response token.

    Returns:
        The loss of every optimizer step, in nats per response token.
    """
    device = model.embed_tokens.weight.device
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    low_precision = torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16")
    steps_per_epoch = -(-len(examples) // config.batch_size)
    losses: list[float] = []
    model.train()
    with tqdm(total=config.epochs * steps_per_epoch, desc="fine-tuning", unit="step", disable=None) as bar:
        for epoch in range(1, config.epochs + 1):
            summed, tokens = 0.0, 0
            for step in shuffled_steps(examples, config.batch_size, epoch, config.seed):
                # Divided by the tokens of the whole step, not of each micro-batch: else short replies would weigh more.
                step_tokens = sum(label != IGNORE for example in step for label in example.labels[1:])
                step_loss = 0.0
                micro_batch = -(-len(step) // config.gradient_accumulation_steps)
                for start in range(0, len(step), micro_batch):
                    inputs, targets = collate(step[start : start + micro_batch], pad_id)
                    with low_precision:
                        loss = masked_loss(model, inputs.to(device), targets.to(device)) / step_tokens
                    loss.backward()
                    step_loss += loss.item()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(step_loss)
                summed, tokens = summed + step_loss * step_tokens, tokens + step_tokens
                bar.set_postfix(epoch=epoch, loss=f"{step_loss:.3f}")
                bar.update()
            after_epoch(epoch, summed / tokens)
    return losses


@torch.inference_mode()
def mean_loss(model: Transformer, examples: list[Example], pad_id: int, batch_size: int = 50) -> float:
    """Cross-entropy per response token over all examples, in nats; its exponential is the perplexity."""
    device = model.embed_tokens.weight.device
    summed, tokens = 0.0, 0
    for start in range(0, len(examples), batch_size):
        inputs, targets = collate(examples[start : start + batch_size], pad_id)
        summed += masked_loss(model, inputs.to(device), targets.to(device)).item()
        tokens += int((targets != IGNORE).sum())
    return summed / tokens
