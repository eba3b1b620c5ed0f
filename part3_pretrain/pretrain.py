"""Pretrains the base model: python -m part3_pretrain.pretrain

Writes `checkpoints/pretrained.pt` and `outputs/pretraining_loss_curve.png`. About four minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from part3_pretrain import corpus
from part3_pretrain.checkpoint import save_checkpoint
from part3_pretrain.files import UserError, exit_status
from part3_pretrain.induction import start_with_induction_heads
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.tokenizer import train_tokenizer


@dataclass(frozen=True)
class PretrainConfig:
    seed: int = 0
    conversations: int = 24_000
    vocab_size: int = 1536
    tokens_per_batch: int = 3072
    copy_steps: int = 200
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.1


def pretrain(config: PretrainConfig, texts: list[str]):
    torch.manual_seed(config.seed)
    rng = Random(config.seed)
    tokenizer = train_tokenizer(texts[:5000], config.vocab_size)
    model = Transformer(ModelConfig(tokenizer.get_vocab_size()))
    start_with_induction_heads(model)
    rows = corpus.tokenize(texts, tokenizer, 256)
    data = list(corpus.batches(rows, config.tokens_per_batch, rng))
    digits = [tokenizer.token_to_id(str(d)) for d in range(10)]
    copies = [corpus.copy_batch(tokenizer.get_vocab_size(), digits, config.tokens_per_batch, rng) for _ in range(config.copy_steps)]
    total = len(copies) + len(data)
    decay = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(0.9, 0.95), fused=True)
    def factor(step):
        warm = min(1.0, (step + 1) / config.warmup_steps)
        return warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / total)))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    losses = []
    steps = copies + data
    rng.shuffle(steps)
    print("rows", len(rows), "tokens", sum(map(len, rows)), "steps", total, "vocab", tokenizer.get_vocab_size(), flush=True)
    t = time.time()
    for step, (inputs, targets) in enumerate(tqdm(steps, disable=None)):
        logits = model.lm_head(model(inputs))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 0:
            print(step, f"{sum(losses[-50:])/len(losses[-50:]):.3f}", f"{time.time()-t:.0f}s", flush=True)
    return model, tokenizer, losses


def main():
    import sys
    config = PretrainConfig(**eval(sys.argv[2])) if len(sys.argv) > 2 else PretrainConfig()
    rng = Random(config.seed)
    texts = [corpus.draw_conversation(rng) for _ in range(config.conversations)]
    model, tokenizer, losses = pretrain(config, texts)
    save_checkpoint(Path(sys.argv[1]), model, tokenizer, {"settings": asdict(config), "losses": losses})


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
