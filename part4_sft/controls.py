"""Controls: what could have shown that fine-tuning taught nothing, each scored like the models themselves.

Some push the pretrained model: had it the behaviour already, the first words of a reply, examples or another try would
bring it out. Others fine-tune it once more, in as many steps, on pairs that lack something: were that of no use,
nothing would be lost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import torch

from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part3_pretrain.retail import world
from part3_pretrain.retail.world import INTENTS
from part3_pretrain.runtime.log import log
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, draw_pairs, trainable
from part4_sft.encoding import Example, PairEncoder
from part4_sft.evaluation import Entry, generate_replies
from part4_sft.extras.lora import add_lora, merge_lora
from part4_sft.generation import Sampling, longest_prompt
from part4_sft.metrics import Replies, Scores, recognise_all, score
from part4_sft.training import mean_loss, train

FORBIDDEN_TOKENS = 5  # the likeliest first tokens
LONGEST_SHOWN = 180  # tokens of examples and context; with a reply, as long as the longest documents of pretraining
FEW_PAIRS = 10
LEFT_OUT_INTENTS = 6


def run_controls(
    pretrained: Transformer,
    sft: Transformer,
    encoder: PairEncoder,
    data: dict[str, list[Pair]],
    entries: list[Entry],
    config: SFTConfig,
) -> dict[str, Any]:
    """Run every control; the result is `controls` of `evaluation.json`.

    Args:
        data: the pairs of the run, which are of the retail world.
        entries: what both models replied to the test pairs, by `evaluate_sft_vs_pretrained`.
    """
    pairs, training = data["sft_test"], trainable(data["sft_dataset"], config.train_on)
    log("controls: the pretrained model is pushed, and fine-tuned in other ways ...")
    few = training[:FEW_PAIRS]
    others = {
        "shuffled_responses": with_shuffled_responses(training, config.seed),
        "ten_pairs": [few[index % len(few)] for index in range(len(training))],
    }
    return {
        **push(pretrained, encoder, pairs, config),
        f"best_of_{config.samples_per_context}": best_of_all_samples(entries, pairs),
        "few_shot": show_examples(pretrained, encoder, pairs, training, config),
        **{
            name: score_replies(fine_tune(pretrained, encoder, chosen, config), encoder, pairs, config)
            for name, chosen in others.items()
        },
        "intents_not_fine_tuned": leave_intents_out(pretrained, encoder, len(training), len(pairs), config),
        "likelihood": split_likelihood({"pretrained": pretrained, "sft": sft}, encoder, pairs),
    }


def score_replies(
    model: Transformer,
    encoder: PairEncoder,
    pairs: list[Pair],
    config: SFTConfig,
    beginnings: Sequence[list[int]] | None = None,
) -> Scores:
    """Score one reply to each context; `beginnings` are those of `generate_replies`."""
    replies = generate_replies(model, encoder, pairs, Sampling.of(config), config.seed, beginnings=beginnings)
    return score(replies, pairs, recognise_all(pairs))


# ---------------------------------------------------------------------------------------------------- pushed


def push(model: Transformer, encoder: PairEncoder, pairs: list[Pair], config: SFTConfig) -> dict[str, Scores]:
    """Let a model go on from what an ideal agent says first, or from a token that it would rarely begin with.

    What it is given counts as its own.
    """
    references = [[label for label in example.labels if label != IGNORE_INDEX] for example in encoder.encode_all(pairs)]
    pushes = {
        "pushed_1_token": [ids[:1] for ids in references],
        "pushed_4_tokens": [ids[:4] for ids in references],
        "pushed_sentence": [first_sentence(ids, encoder) for ids in references],
        "first_tokens_forbidden": draw_unlikely_tokens(model, encoder, pairs, config),
    }
    return {name: score_replies(model, encoder, pairs, config, beginnings) for name, beginnings in pushes.items()}


def first_sentence(ids: list[int], encoder: PairEncoder) -> list[int]:
    """Return the ids up to the first full stop; all of them but the last where there is none."""
    return next((ids[:end] for end in range(1, len(ids)) if encoder.decode([ids[:end]])[0].endswith(".")), ids[:-1])


@torch.inference_mode()
def draw_unlikely_tokens(
    model: Transformer, encoder: PairEncoder, pairs: list[Pair], config: SFTConfig
) -> list[list[int]]:
    """Draw the first token of a reply to each context, none of the five that are the likeliest over all contexts."""
    room, device = longest_prompt(model, Sampling.of(config)), model.embed_tokens.weight.device
    prompts = [torch.tensor([encoder.encode_prompt(pair.context, room, pair.turns)], device=device) for pair in pairs]
    logits = torch.cat([model.lm_head(model(prompt)[:, -1]).float().cpu() for prompt in prompts])  # (pairs, vocab_size)
    likeliest = logits.softmax(-1).mean(dim=0).topk(FORBIDDEN_TOKENS).indices.tolist()
    ends = [token for token in (model.config.pad_id, *model.config.eos_ids) if token is not None]
    logits[:, [*likeliest, *ends]] = -torch.inf
    probabilities = (logits / (config.temperature or 1.0)).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(config.seed)).tolist()


def best_of_all_samples(entries: list[Entry], pairs: list[Pair]) -> Scores:
    """Score the highest rated of the replies that the pretrained model wrote to each context."""
    best = [max(entry["samples"]["pretrained"], key=lambda sample: sample["rating"]) for entry in entries]
    replies = Replies([sample["text"] for sample in best], [sample["stops_by_itself"] for sample in best])
    return score(replies, pairs, recognise_all(pairs))


def show_examples(
    model: Transformer, encoder: PairEncoder, pairs: list[Pair], training: list[Pair], config: SFTConfig
) -> Scores:
    """Show a model as many ideal pairs before each context as fit (Brown et al. 2020); its reply is the first line."""
    room = min(LONGEST_SHOWN, encoder.max_length, longest_prompt(model, Sampling.of(config)))
    before, behind = encoder.template.split("{context}")
    rng, shown = Random(f"few shot/{config.seed}"), []
    for pair in pairs:
        context = pair.context
        for example in rng.sample(training, len(training)):
            longer = f"{example.context}{behind} {example.response}\n{before}{context}"
            if len(encoder.tokenizer.encode(encoder.template.replace("{context}", longer)).ids) > room:
                break
            context = longer
        shown.append(Pair(context, pair.response))
    replies = generate_replies(model, encoder, shown, Sampling.of(config), config.seed)
    first_lines = [text.partition("\n")[0] for text in replies.texts]
    return score(Replies(first_lines, replies.stopped), pairs, recognise_all(pairs))


# ---------------------------------------------------------------------------------------------------- fine-tuned


def fine_tune(model: Transformer, encoder: PairEncoder, pairs: list[Pair], config: SFTConfig) -> Transformer:
    """Return a copy of the model, fine-tuned on all of the pairs by the settings of the run; it is never sharded."""
    trained = copy.deepcopy(model)
    lora = add_lora(trained, config.lora_rank) if config.lora_rank else None
    train(trained, encoder.encode_all(pairs), replace(config, shard=False), lambda epoch, loss: {})
    if lora:
        merge_lora(trained, lora)
    return trained


def with_shuffled_responses(pairs: list[Pair], seed: int) -> list[Pair]:
    """Deal the responses to other contexts, none to its own: they can teach the style, and no answer."""
    order = Random(f"shuffled responses/{seed}").sample(range(len(pairs)), len(pairs))
    return [Pair(pairs[own].context, pairs[other].response) for own, other in zip(order, [*order[1:], *order[:1]])]


def leave_intents_out(
    pretrained: Transformer, encoder: PairEncoder, training_size: int, test_size: int, config: SFTConfig
) -> dict[str, Scores]:
    """Fine-tune on pairs without six of the intents, and test on these: their resolutions stand in policies alone."""
    rng, seen = Random(f"left out/{config.seed}"), set[int]()
    left_out = rng.sample(INTENTS, LEFT_OUT_INTENTS)
    others = [intent for intent in INTENTS if intent not in left_out]
    known = partial(world.draw_scenario, held_out_item=False, intents=others)
    new = partial(world.draw_scenario, held_out_item=True, intents=left_out)
    training = [*draw_pairs(training_size, known, world.ideal_reply, seen, rng)]
    test = [*draw_pairs(test_size, new, world.ideal_reply, seen, rng)]
    models = {"pretrained": pretrained, "sft": fine_tune(pretrained, encoder, training, config)}
    return {name: score_replies(model, encoder, test, config) for name, model in models.items()}


# ---------------------------------------------------------------------------------------------------- likelihood


def split_likelihood(
    models: dict[str, Transformer], encoder: PairEncoder, pairs: list[Pair]
) -> dict[str, dict[str, float]]:
    """Return how unlikely each model finds a reference, in nats: its first token, and all the rest."""
    examples = encoder.encode_all(pairs)
    first_tokens = [_with_first_label(example) for example in examples]
    tokens = sum(label != IGNORE_INDEX for example in examples for label in example.labels) / len(examples)
    nats: dict[str, dict[str, float]] = {"first_token": {}, "rest": {}}
    for name, model in models.items():
        nats["first_token"][name] = mean_loss(model, first_tokens)
        nats["rest"][name] = mean_loss(model, examples) * tokens - nats["first_token"][name]
    return nats


def _with_first_label(example: Example) -> Example:
    """Return the example with no label but that of the response's first token."""
    first = example.labels.count(IGNORE_INDEX)
    labels = [label if index == first else IGNORE_INDEX for index, label in enumerate(example.labels)]
    return Example(example.ids, labels)
