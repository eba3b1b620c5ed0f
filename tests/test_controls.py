"""The controls: what is pushed, shuffled, left out, and how the gain in likelihood is split."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from part3_pretrain.model import Transformer
from part3_pretrain.retail.rubric import recognise
from part3_pretrain.retail.world import INTENTS
from part4_sft import controls
from part4_sft.config import SFTConfig
from part4_sft.controls import run_controls
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.evaluation import evaluate_sft_vs_pretrained
from part4_sft.generation import Sampling
from part4_sft.metrics import Replies, Scores
from tests.conftest import weights

CONFIG = SFTConfig(epochs=1, max_new_tokens=12, samples_per_context=2)
TEST_PAIRS = 6


@pytest.fixture
def test_pairs(made: dict[str, list[Pair]]) -> list[Pair]:
    return made["sft_test"][:TEST_PAIRS]


def test_every_control_has_the_measures_of_a_model_and_changes_none(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]], test_pairs: list[Pair]
) -> None:
    before = weights(tiny_model)
    sampling = Sampling.of(CONFIG)
    test = evaluate_sft_vs_pretrained(tiny_model, tiny_model, encoder, test_pairs, sampling, samples=2)
    data = {"sft_dataset": made["sft_dataset"][:12], "sft_test": test_pairs}
    result = run_controls(tiny_model, tiny_model, encoder, data, test.entries, CONFIG)
    assert torch.equal(weights(tiny_model), before)
    likelihood, left_out = result.pop("likelihood"), result.pop("intents_not_fine_tuned")
    pushes = ["pushed_1_token", "pushed_4_tokens", "pushed_sentence", "first_tokens_forbidden"]
    assert [*result] == [*pushes, "best_of_2", "few_shot", "shuffled_responses", "ten_pairs"]
    for scores in [*result.values(), *left_out.values()]:
        assert {*scores} >= {*test.scores["sft"]} - {"perplexity", "right_order_number", "both_problems_resolved"}
    assert likelihood["first_token"]["pretrained"] == likelihood["first_token"]["sft"]
    ratings = [max(sample["rating"] for sample in entry["samples"]["pretrained"]) for entry in test.entries]
    assert result["best_of_2"]["rating"] == pytest.approx(sum(ratings) / TEST_PAIRS)


def test_what_is_given_is_the_reference_up_to_a_token_or_the_first_full_stop(
    encoder: PairEncoder, tiny_model: Transformer, test_pairs: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[str]] = []

    def keep(model: Transformer, encoder: PairEncoder, pairs: Any, config: Any, beginnings: list[list[int]]) -> Scores:
        given.append(encoder.decode(beginnings))
        return {}

    monkeypatch.setattr(controls, "score_replies", keep)
    controls.push(tiny_model, encoder, test_pairs, CONFIG)
    one, four, sentence, _ = given
    for index, pair in enumerate(test_pairs):
        assert pair.response.startswith(one[index]) and len(one[index]) < len(four[index])
        assert pair.response.startswith(four[index])
        assert sentence[index] == pair.response.partition(".")[0] + "."


def test_a_forbidden_token_is_none_of_the_five_likeliest(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    """At a low temperature the model would begin each reply with one of them."""
    pairs, cold = made["sft_test"][:60], replace(CONFIG, temperature=0.01)
    logits = []
    for pair in pairs:
        with torch.no_grad():
            logits.append(
                tiny_model.lm_head(tiny_model(torch.tensor([encoder.encode_prompt(pair.context, 500)])))[0, -1]
            )
    likeliest = torch.stack(logits).softmax(-1).mean(dim=0).argsort(descending=True)[:5].tolist()
    drawn = {token for (token,) in controls.draw_unlikely_tokens(tiny_model, encoder, pairs, cold)}
    assert not drawn & {*likeliest, 0, 1}


def test_shuffled_responses_are_the_same_ones_and_none_is_where_it_was(made: dict[str, list[Pair]]) -> None:
    pairs = made["sft_dataset"][:500]
    shuffled = controls.with_shuffled_responses(pairs, seed=0)
    own = {pair.context: pair.response for pair in pairs}
    assert {pair.context for pair in shuffled} == {*own}
    assert Counter(pair.response for pair in shuffled) == Counter(own.values())
    times = Counter(own.values())  # short replies occur several times
    assert not [pair for pair in shuffled if own[pair.context] == pair.response and times[pair.response] == 1]
    assert (
        shuffled == controls.with_shuffled_responses(pairs, seed=0) != controls.with_shuffled_responses(pairs, seed=1)
    )


def test_a_fine_tuning_of_the_controls_has_the_rank_of_the_run(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    config = replace(CONFIG, lora_rank=1, learning_rate=1e-2)
    tuned = controls.fine_tune(tiny_model, encoder, made["sft_dataset"][:2], config)
    assert torch.equal(tuned.embed_tokens.weight, tiny_model.embed_tokens.weight)
    before, after = dict(tiny_model.named_parameters()), dict(tuned.named_parameters())
    assert before.keys() == after.keys()
    change = after["layers.0.mlp.up_proj.weight"] - before["layers.0.mlp.up_proj.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-3) == 1


def test_six_intents_are_left_out_and_only_they_are_tested(
    tiny_model: Transformer, encoder: PairEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Pair]] = []

    def keep_training(model: Transformer, encoder: PairEncoder, pairs: list[Pair], config: SFTConfig) -> Transformer:
        seen.append(pairs)
        return model

    def keep_test(model: Transformer, encoder: PairEncoder, pairs: list[Pair], config: SFTConfig) -> Scores:
        seen.append(pairs)
        return {}

    monkeypatch.setattr(controls, "fine_tune", keep_training)
    monkeypatch.setattr(controls, "score_replies", keep_test)
    drawn = set()
    for seed in (0, 1):
        seen.clear()
        controls.leave_intents_out(tiny_model, encoder, 500, 200, replace(CONFIG, seed=seed))
        training, test, same = (
            {intent.name for pair in pairs for intent in recognise(pair.context).intents} for pairs in seen
        )
        assert test == same and len(test) == 6 and len(training) == len(INTENTS) - 6 and not test & training
        assert [len(pairs) for pairs in seen] == [500, 200, 200]
        drawn.add(frozenset(test))
    assert len(drawn) == 2


def test_the_first_token_and_the_rest_make_up_the_likelihood_of_a_reference(
    tiny_model: Transformer, encoder: PairEncoder, test_pairs: list[Pair]
) -> None:
    first = rest = 0.0
    for pair in test_pairs:
        example = encoder.encode(pair)
        with torch.no_grad():
            logits = tiny_model.lm_head(tiny_model(torch.tensor([example.ids])))[0].double().log_softmax(-1)
        start = example.labels.count(-100)
        nats = [-logits[place - 1, example.ids[place]].item() for place in range(start, len(example.ids))]
        first, rest = first + nats[0] / TEST_PAIRS, rest + sum(nats[1:]) / TEST_PAIRS
    split = controls.split_likelihood({"sft": tiny_model}, encoder, test_pairs)
    assert math.isclose(split["first_token"]["sft"], first, rel_tol=1e-5)
    assert math.isclose(split["rest"]["sft"], rest, rel_tol=1e-5)


def test_examples_fill_what_pretraining_knows_before_the_context_and_a_reply_is_its_first_line(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[str] = []
    texts = ["One.\nCustomer: Two.", "Three."]

    def reply(model: Transformer, encoder: PairEncoder, pairs: list[Pair], *arguments: Any) -> Replies:
        prompts.extend(encoder.template.replace("{context}", pair.context) for pair in pairs)
        return Replies(texts, [True, True])

    scored: list[str] = []
    monkeypatch.setattr(controls, "generate_replies", reply)
    monkeypatch.setattr(controls, "score", lambda replies, pairs, scenarios: scored.extend(replies.texts))
    training, pairs = [Pair(f"Question {number}?", "It is so.") for number in range(60)], made["sft_test"][:2]
    controls.show_examples(tiny_model, encoder, pairs, training, CONFIG)
    for prompt, pair in zip(prompts, pairs):
        *shown, last, empty = prompt.split("Customer: ")[1:] + [""]
        assert last == f"{pair.context}\nAgent:" and empty == "" and len(shown) > 2
        for text in shown:
            assert text in {f"{each.context}\nAgent: {each.response}\n" for each in training}
        assert 150 < len(encoder.tokenizer.encode(prompt).ids) <= 180
    assert scored == ["One.", "Three."]
