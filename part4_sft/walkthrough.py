"""One pair followed from JSON to gradient to reply, with the real arrays: python -m part4_sft.walkthrough

Calls the functions that fine-tuning and evaluation call, and prints what comes out. docs/walkthrough.md explains it,
section by section.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from part3_pretrain.retail import rubric
from part3_pretrain.runtime.cli import PATH, exit_status, option, parse, same_as
from part4_sft.chat import in_words
from part4_sft.config import DEFAULT_CHECKPOINT, DEFAULT_TEMPLATE, SFTConfig
from part4_sft.dataset import HIGH_QUALITY_PAIRS, Pair, make_datasets
from part4_sft.terminal.screen import wrapped

if TYPE_CHECKING:  # --help should not wait for torch
    from part3_pretrain.model import Transformer
    from part4_sft.encoding import PairEncoder


@dataclass(frozen=True)
class WalkthroughConfig:
    """What can be chosen; `--help` explains each."""

    checkpoint: Path = option(DEFAULT_CHECKPOINT, "the pretrained model; sft_model.pt beside it replies too", **PATH)
    pair: int = option(
        14,
        "which of the training pairs",
        allowed=f"1 to {HIGH_QUALITY_PAIRS}",
        is_valid=lambda pair: 1 <= pair <= HIGH_QUALITY_PAIRS,
    )
    seed: int = same_as(SFTConfig, "seed")


def main() -> None:
    config = parse(
        WalkthroughConfig,
        prog="python -m part4_sft.walkthrough",
        description="Follows a training pair through the functions that fine-tuning is made of: tokens, labels, loss, "
        "gradient, a step of Adam; and then a reply to its context. Writes no file.",
        example="python -m part4_sft.walkthrough --pair 9",
    )
    from part4_sft import stages  # only now, since torch takes seconds to import

    settings = SFTConfig(seed=config.seed)
    model, encoder = load(config.checkpoint, settings)
    pairs = stages.chosen(make_datasets(config.seed)["sft_dataset"], settings)
    pair, next_pair = pairs[config.pair - 1], pairs[config.pair % len(pairs)]

    heading("1. The pair")
    keys = ("context", "response", "high_quality")
    paragraph(json.dumps({key: getattr(pair, key) for key in keys}, ensure_ascii=False))
    learn(model, encoder, [pair, next_pair], settings)
    heading("8. A reply before fine-tuning")
    answer(config.checkpoint, pair, settings)
    heading("9. A reply after fine-tuning")
    if (fine_tuned := config.checkpoint.parent / stages.MODEL_FILE).exists():
        answer(fine_tuned, pair, settings)
    else:
        paragraph(f"there is no {fine_tuned}; python -m part4_sft.sft makes checkpoints/{stages.MODEL_FILE}")


def load(path: Path, settings: SFTConfig) -> tuple[Transformer, PairEncoder]:
    """A model, and how it reads texts: by the template that it was fine-tuned with, if it was.

    Raises UserError where it cannot be read, or has no room for a reply.
    """
    from part3_pretrain.checkpoint import load_checkpoint
    from part4_sft.encoding import PairEncoder

    checkpoint = load_checkpoint(path)
    template = checkpoint.made_by.get("settings", {}).get("prompt_template", DEFAULT_TEMPLATE)
    return checkpoint.model, PairEncoder.of(checkpoint, template, settings.max_length, settings.max_new_tokens)


def learn(model: Transformer, encoder: PairEncoder, pairs: list[Pair], settings: SFTConfig) -> None:
    """Sections 2 to 7: an optimizer step with two pairs, of which the first is looked at closely."""
    from torch import nn

    from part3_pretrain.corpus import IGNORE_INDEX
    from part4_sft.encoding import Example, collate
    from part4_sft.training import make_optimizer, masked_loss

    heading("2. Tokens and labels")
    examples = encoder.examples(pairs)[:]
    ids, labels = examples[0].ids, examples[0].labels
    begin = labels.count(IGNORE_INDEX)
    paragraph(f"prompt, {begin} tokens: {tokens(encoder, ids[:begin])}")
    paragraph(f"response, {len(ids) - begin} tokens: {tokens(encoder, ids[begin:])}")
    paragraph(f"ids: {ids}")
    paragraph(f"labels: {labels}")

    heading("3. Two pairs in one row")
    inputs, targets, lengths = collate(examples)
    seam = lengths[0]  # where the second pair begins
    print(f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}, lengths {lengths}")
    print(f"place  {'input':24} target")
    for place in [0, 1, *range(begin - 2, begin + 1), *range(seam - 2, seam + 2)]:
        given, target = (f"{id:5} {tokens(encoder, [id])}" for id in (int(inputs[0, place]), int(targets[0, place])))
        print(f"{place:5}  {given:24} {target}".rstrip())

    heading("4. Hidden states and logits")
    hidden = model(inputs, lengths=lengths)
    logits = model.lm_head(hidden)
    fact("hidden states", tuple(hidden.shape))
    fact("logits", tuple(logits.shape))
    second, _, length = collate(examples[1:])
    by_itself = model(second, lengths=length)
    for name, states in {"in this row": hidden, "in a row that is one text": model(inputs)}.items():
        difference = (states[:, seam:] - by_itself).abs().max()
        fact(f"the second pair {name} and by itself: largest difference", f"{difference:.5f}")

    heading("5. The loss")
    learnt = targets[0] != IGNORE_INDEX
    log_p = logits[0, learnt].log_softmax(-1).gather(1, targets[0, learnt, None])[: len(ids) - begin, 0]
    print(f"{'token':20} label  probability  -log of it")
    for label, of_label in zip(ids[begin:], log_p):
        print(f"{tokens(encoder, [label]):20} {label:5}  {of_label.exp():11.4f}  {of_label.abs():10.4f}")
    fact("mean of the last column", f"{-log_p.mean():.4f}")
    rows = {"this pair": examples[:1], "the next pair": examples[1:], "both, the loss of the step": examples}
    for name, row in rows.items():
        summed = masked_loss(model, *collate(row))
        count = sum(label != IGNORE_INDEX for part in row for label in part.labels)
        loss = summed / count  # the last is that of the step
        fact(f"masked_loss / tokens of {name}: {summed:.4f} / {count}", f"{loss:.4f}")
    _, unmasked, _ = collate([Example(example.ids, example.ids) for example in examples])
    for name, wanted in {"": targets, ", were the contexts labels too": unmasked}.items():
        fact(f"nn.CrossEntropyLoss over the whole row{name}", f"{nn.CrossEntropyLoss()(logits[0], wanted[0]):.4f}")

    heading("6. The gradient")
    loss.backward()
    blocks = {f"layers.{number}": block for number, block in enumerate(model.layers)}
    parts = {"embed_tokens": model.embed_tokens, **blocks, "norm": model.norm, "lm_head": model.lm_head}
    for name, part in {**parts, "the whole model": model}.items():
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        gradient_norm = nn.utils.get_total_norm(gradients)
        fact(f"norm of the gradient of {name}", f"{gradient_norm:.4f}")

    heading("7. One step of Adam")
    old = [parameter.detach().clone() for parameter in model.parameters()]
    make_optimizer(list(model.parameters()), settings).step()
    changes = [(new - before).abs().max().item() for new, before in zip(model.parameters(), old)]
    fact(f"largest change of a weight, at a learning rate of {settings.learning_rate}", f"{max(changes):.1e}")
    fact("loss of the step before", f"{loss:.4f}")
    fact("loss of the step after", f"{masked_loss(model, inputs, targets, lengths) / learnt.sum():.4f}")


def answer(path: Path, pair: Pair, settings: SFTConfig) -> None:
    """Sections 8 and 9: a model's reply, drawn token by token as in the evaluation, and how the rubric rates it."""
    import torch

    from part4_sft.generation import generate, longest_prompt
    from part4_sft.stages import sampling

    model, encoder = load(path, settings)
    how = sampling(settings)
    prompt = encoder.prompt(pair.context, longest_prompt(model, how))
    (reply,) = generate(model, [prompt], how, seed=f"{settings.seed}/0")
    drawn = reply.ids + [encoder.eos_id] * reply.stopped

    with torch.inference_mode():  # once more, since `generate` tells no probabilities
        logits = model.lm_head(model(torch.tensor([prompt + drawn[:-1]]))[0, len(prompt) - 1 :])
        if model.config.pad_id is not None:
            logits[:, model.config.pad_id] = -torch.inf
        probabilities = (logits / how.temperature).softmax(-1)
    print(f"step  {'drawn':16} likeliest next tokens, with their probabilities at temperature {how.temperature}")
    for step in dict.fromkeys([*range(min(8, len(drawn))), len(drawn) - 1]):
        top = zip(*(values.tolist() for values in probabilities[step].topk(4)))
        likeliest = "  ".join(f"{tokens(encoder, [id])} {share:.3f}" for share, id in top if share >= 0.0005)
        print(f"{step + 1:4}  {tokens(encoder, [drawn[step]]):16} {likeliest}")
    (text,) = encoder.texts([reply.ids])
    scenario = rubric.recognise(pair.context)
    paragraph(f"reply, {len(drawn)} tokens: {text}")
    paragraph(in_words(rubric.rate(scenario, text) if scenario else None))


# ---------------------------------------------------------------------------------------------------- printing


def tokens(encoder: PairEncoder, ids: list[int]) -> str:
    """What each id stands for, a dot for every space in it; nothing for -100."""
    texts = (encoder.tokenizer.decode([id], skip_special_tokens=False) for id in ids if id >= 0)
    return " ".join(repr(text.replace(" ", "·"))[1:-1] for text in texts)


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def paragraph(text: str) -> None:
    print("\n  ".join(wrapped(text, 98)))


def fact(name: str, value: object) -> None:
    print(f"{name:82} {value}")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
