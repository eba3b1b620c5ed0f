"""One training pair from JSON to gradient to reply: the sections that docs/walkthrough.md quotes and explains."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part4_sft.config import MODEL_FILE, SFTConfig
from part4_sft.dataset import Pair, make_datasets, trainable
from part4_sft.encoding import Example, PairEncoder
from part4_sft.extras.conversations import choose_template, make_encoder
from part4_sft.generation import Sampling, generate, longest_prompt
from part4_sft.terminal.conversation import rating_in_words
from part4_sft.terminal.screen import wrapped
from part4_sft.training import collate, make_optimizer, masked_loss


def follow(path: Path, number: int, seed: int) -> None:
    """Print what becomes of the training pair with this number, from 1, in a step together with the next pair.

    `path` is the pretrained checkpoint; `sft_model.pt` beside it replies too, if it is there. Raises UserError where
    one cannot be read, or has no room for a reply.
    """
    settings = SFTConfig(seed=seed)
    model, encoder = load(path, settings)
    pairs = trainable(make_datasets(seed)["sft_dataset"], settings.train_on)
    pair, next_pair = pairs[number - 1], pairs[number % len(pairs)]
    examples = encoder.encode_all([pair, next_pair])

    heading("1. The pair")
    keys = ("context", "response", "high_quality")
    paragraph(json.dumps({key: getattr(pair, key) for key in keys}, ensure_ascii=False))

    heading("2. Tokens and labels")
    ids, labels = examples[0].ids, examples[0].labels
    answer = labels.count(IGNORE_INDEX)
    paragraph(f"prompt, {answer} tokens: {in_tokens(encoder, ids[:answer])}")
    paragraph(f"response, {len(ids) - answer} tokens: {in_tokens(encoder, ids[answer:])}")
    paragraph(f"ids: {ids}")
    paragraph(f"labels: {labels}")

    heading("3. Two pairs in one row")
    inputs, targets, lengths = collate(examples)
    print(f"inputs {tuple(inputs.shape)}, targets {tuple(targets.shape)}, lengths {lengths}")
    print(f"place  {'input':24} target")
    for place in [0, 1, *range(answer - 2, answer + 1), *range(lengths[0] - 2, lengths[0] + 2)]:
        given, target = (f"{row[0, place]:5} {in_tokens(encoder, [int(row[0, place])])}" for row in (inputs, targets))
        print(f"{place:5}  {given:24} {target}".rstrip())

    loss = show_loss(model, encoder, examples)
    show_step(model, examples, loss, settings)
    heading("8. A reply before fine-tuning")
    show_reply(path, pair, settings)
    heading("9. A reply after fine-tuning")
    sft_path = path.parent / MODEL_FILE
    if sft_path.exists():
        show_reply(sft_path, pair, settings)
    else:
        paragraph(f"there is no {sft_path}; python -m part4_sft.sft makes checkpoints/{MODEL_FILE}")


def load(path: Path, settings: SFTConfig) -> tuple[Transformer, PairEncoder]:
    """Read a model, and how it reads texts: by the template that it was fine-tuned with, if it was."""
    checkpoint = load_checkpoint(path)
    made_with = checkpoint.made_by.get("settings", {})
    template = choose_template(checkpoint, made_with.get("chat_template"), made_with.get("prompt_template"))
    return checkpoint.model, make_encoder(checkpoint, template, settings.max_length, settings.max_new_tokens)


def show_loss(model: Transformer, encoder: PairEncoder, examples: list[Example]) -> Tensor:
    """Show that no pair sees the other, and the loss: by hand, by `masked_loss` and by torch's module. Return it."""
    heading("4. Hidden states and logits")
    inputs, targets, lengths = collate(examples)
    hidden = model(inputs, lengths=lengths)
    logits = model.lm_head(hidden)
    fact("hidden states", tuple(hidden.shape))
    fact("logits", tuple(logits.shape))
    second, _, length = collate(examples[1:])
    by_itself = model(second, lengths=length)
    for name, states in {"in this row": hidden, "in a row that is one text": model(inputs)}.items():
        difference = (states[:, lengths[0] :] - by_itself).abs().max()
        fact(f"the second pair {name} and by itself: largest difference", f"{difference:.5f}")

    heading("5. The loss")
    response = [label for label in examples[0].labels if label != IGNORE_INDEX]
    is_response = targets[0] != IGNORE_INDEX
    log_p = logits[0, is_response].log_softmax(-1).gather(1, targets[0, is_response, None])[: len(response), 0]
    print(f"{'token':20} label  probability  -log of it")
    for id, log_p_of_id in zip(response, log_p):
        print(f"{in_tokens(encoder, [id]):20} {id:5}  {log_p_of_id.exp():11.4f}  {log_p_of_id.abs():10.4f}")
    fact("mean of the last column", f"{-log_p.mean():.4f}")
    rows = {"this pair": examples[:1], "the next pair": examples[1:], "both, the loss of the step": examples}
    for name, row in rows.items():
        summed = masked_loss(model, *collate(row))
        count = sum(label != IGNORE_INDEX for example in row for label in example.labels)
        fact(f"masked_loss / tokens of {name}: {summed:.4f} / {count}", f"{summed / count:.4f}")
    _, unmasked, _ = collate([Example(example.ids, example.ids) for example in examples])
    for name, row_targets in {"": targets, ", were the contexts labels too": unmasked}.items():
        whole = nn.CrossEntropyLoss()(logits[0], row_targets[0])
        fact(f"nn.CrossEntropyLoss over the whole row{name}", f"{whole:.4f}")
    return summed / count


def show_step(model: Transformer, examples: list[Example], loss: Tensor, settings: SFTConfig) -> None:
    """Show how large the gradient is in each part of the model, how far a step moves weights, and the loss then."""
    heading("6. The gradient")
    loss.backward()
    blocks = {f"layers.{number}": block for number, block in enumerate(model.layers)}
    parts = {"embed_tokens": model.embed_tokens, **blocks, "norm": model.norm, "lm_head": model.lm_head}
    for name, part in {**parts, "the whole model": model}.items():
        gradients = [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        fact(f"norm of the gradient of {name}", f"{nn.utils.get_total_norm(gradients):.4f}")

    heading("7. One step of Adam")
    before = [parameter.detach().clone() for parameter in model.parameters()]
    make_optimizer(model, settings).step()
    change = max((new - old).abs().max().item() for new, old in zip(model.parameters(), before))
    inputs, targets, lengths = collate(examples)
    loss_after = masked_loss(model, inputs, targets, lengths) / (targets != IGNORE_INDEX).sum()
    fact(f"largest change of a weight, at a learning rate of {settings.learning_rate}", f"{change:.1e}")
    fact("loss of the step before", f"{loss:.4f}")
    fact("loss of the step after", f"{loss_after:.4f}")


@torch.inference_mode()
def show_reply(path: Path, pair: Pair, settings: SFTConfig) -> None:
    """Show a model's reply, drawn token by token as in the evaluation, and how the rubric rates it."""
    model, encoder = load(path, settings)
    sampling = Sampling.of(settings)
    prompt = encoder.encode_prompt(pair.context, longest_prompt(model, sampling))
    (reply,) = generate(model, [prompt], sampling, seed=f"{settings.seed}/0")
    drawn = [*reply.ids, encoder.eos_id] if reply.stopped else reply.ids

    # The model reads its own reply once more, since `generate` tells no probabilities.
    logits = model.lm_head(model(torch.tensor([prompt + drawn[:-1]]))[0, len(prompt) - 1 :])
    if model.config.pad_id is not None:
        logits[:, model.config.pad_id] = -torch.inf
    probabilities = (logits / sampling.temperature).softmax(-1)
    print(f"step  {'drawn':16} likeliest next tokens, with their probabilities at temperature {sampling.temperature}")
    for step in dict.fromkeys([*range(min(8, len(drawn))), len(drawn) - 1]):
        top = zip(*(values.tolist() for values in probabilities[step].topk(4)))
        shown = [f"{in_tokens(encoder, [id])} {share:.3f}" for share, id in top if share >= 0.0005]  # less is "0.000"
        print(f"{step + 1:4}  {in_tokens(encoder, [drawn[step]]):16} {'  '.join(shown)}")
    (text,) = encoder.decode([reply.ids])
    paragraph(f"reply, {len(drawn)} tokens: {text}")
    paragraph(rating_in_words(pair.context, text))


def in_tokens(encoder: PairEncoder, ids: list[int]) -> str:
    """Return the text of each id, with a dot for every space in it; nothing for -100."""
    texts = (encoder.tokenizer.decode([id], skip_special_tokens=False) for id in ids if id != IGNORE_INDEX)
    return " ".join(repr(text.replace(" ", "·"))[1:-1] for text in texts)


def heading(text: str) -> None:
    print(f"\n{text}\n{'-' * len(text)}")


def paragraph(text: str) -> None:
    print("\n  ".join(wrapped(text, 98)))


def fact(name: str, value: object) -> None:
    print(f"{name:82} {value}")
