from __future__ import annotations

import copy
import json
import math
from statistics import fmean, stdev
from typing import Any

import pytest
import sacrebleu
import torch
from nltk import wordpunct_tokenize
from rouge_score.rouge_scorer import RougeScorer

from part3_pretrain.model import Transformer
from part3_pretrain.retail import rubric, world
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling
from part4_sft.metrics import (
    Replies,
    bleu,
    compute_instruction_following_metrics,
    distinct_2,
    evaluate_sft_vs_pretrained,
    generate_replies,
    recognise,
    rouge_l,
    score,
    second_ideal_replies,
)

REFERENCE = "I am sorry about the damage to your walnut desk (order 48213). A free replacement leaves today."
TEXTS = [
    "I am sorry about the damage to your walnut desk (order 48213). A free replacement leaves tomorrow.",
    "Sorry about the damage. A free replacement leaves our warehouse.",  # shorter than the reference
    "I am sorry about the damage to your walnut desk. " * 3,  # longer, and repeats itself
    "The desk is damaged, sorry today.",  # no two words in a row are right
    "I AM SORRY ABOUT THE DAMAGE!",
]

# ---------------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("reply", TEXTS)
def test_bleu_equals_that_of_sacrebleu(reply: str) -> None:
    hypothesis, reference = (" ".join(wordpunct_tokenize(text)) for text in (reply, REFERENCE))
    smoothing: dict[str, Any] = {"smooth_method": "floor", "smooth_value": 0.1, "use_effective_order": False}
    judge = sacrebleu.sentence_bleu(hypothesis, [reference], tokenize="none", **smoothing)
    assert bleu(reply, REFERENCE) == pytest.approx(judge.score / 100, abs=1e-6)


@pytest.mark.parametrize("reply", TEXTS)
def test_rouge_l_equals_the_f1_of_rouge_score(reply: str) -> None:
    judge = RougeScorer(["rougeL"]).score(target=REFERENCE, prediction=reply)["rougeL"]
    assert 0 < judge.fmeasure < 1
    assert rouge_l(reply, REFERENCE) == pytest.approx(judge.fmeasure, abs=1e-9)


def test_the_ends_of_both_scales() -> None:
    assert bleu(REFERENCE, REFERENCE) == pytest.approx(1) and rouge_l(REFERENCE, REFERENCE) == 1
    for nothing_right in ("", "Please wait"):
        assert bleu(nothing_right, REFERENCE) == 0 and rouge_l(nothing_right, REFERENCE) == 0


def test_the_metrics_of_a_list_of_replies() -> None:
    found = compute_instruction_following_metrics(TEXTS, [REFERENCE] * len(TEXTS))
    assert found["bleu"] == pytest.approx(fmean(bleu(text, REFERENCE) for text in TEXTS))
    assert found["rouge_l"] == pytest.approx(fmean(rouge_l(text, REFERENCE) for text in TEXTS))
    words = [len(wordpunct_tokenize(text)) for text in (*TEXTS, REFERENCE)]
    assert found["length_ratio"] == pytest.approx(sum(words[:-1]) / (5 * words[-1]))


@pytest.mark.parametrize("count", [5, 1])
def test_corpus_bleu_equals_that_of_sacrebleu(count: int) -> None:
    said, wanted = ([" ".join(wordpunct_tokenize(text)) for text in texts] for texts in (TEXTS, [REFERENCE] * 5))
    judge = sacrebleu.corpus_bleu(said[:count], [wanted[:count]], tokenize="none", smooth_method="none")
    found = compute_instruction_following_metrics(TEXTS[:count], [REFERENCE] * count)
    assert found["corpus_bleu"] == pytest.approx(judge.score / 100, abs=1e-6)


def test_distinct_2_counts_pairs_of_words() -> None:
    assert distinct_2(["a b c", "a b d"]) == pytest.approx(3 / 4)  # (a b) twice, (b c), (b d)
    assert distinct_2(["one", ""]) == 0


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_cannot_be_compared_are_refused(predictions: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError):
        compute_instruction_following_metrics(predictions, references)


# ---------------------------------------------------------------------------------------------------- scores


def test_the_rubrics_rows_are_the_means_of_the_ratings(made: dict[str, list[Pair]]) -> None:
    ideal, low = made["sft_test"], made["sft_dataset"][500:700]
    pairs = [*ideal, *low]
    scenarios = recognise(pairs)
    scores = score(Replies([pair.response for pair in pairs], [True, False] * 200), pairs, scenarios)

    ratings = [rubric.rate(scenario, pair.response) for scenario, pair in zip(scenarios, pairs)]
    with_order = [rating for rating, scenario in zip(ratings, scenarios) if scenario.order_number]
    with_two = [rating for rating, scenario in zip(ratings, scenarios) if len(scenario.intents) == 2]
    assert scores == {
        "bleu": pytest.approx(fmean(bleu(pair.response, pair.response) for pair in pairs)),
        "corpus_bleu": pytest.approx(1),
        "rouge_l": 1,
        "length_ratio": 1,
        "distinct_2": pytest.approx(distinct_2([pair.response for pair in pairs])),
        "stops_by_itself": 0.5,
        "rating": pytest.approx(fmean(rating.score for rating in ratings)),
        "rated_4_or_more": 0.5,
        "right_item": pytest.approx(fmean(rating.item for rating in ratings)),
        "wrong_item": pytest.approx(fmean(rating.wrong_item for rating in ratings)),
        "right_resolution": pytest.approx(fmean(rating.right_resolution for rating in ratings)),
        "right_order_number": pytest.approx(fmean(rating.order_number for rating in with_order)),
        "both_problems_resolved": pytest.approx(fmean(rating.right_resolution for rating in with_two)),
    }


def test_other_contexts_are_scored_without_the_rubric(made: dict[str, list[Pair]]) -> None:
    pairs = [made["sft_test"][0], Pair("What is the capital of France?", "Paris.")]
    assert recognise(pairs) is None
    scores = score(Replies(["a", "b"], [True, True]), pairs, None)
    assert set(scores) == {"bleu", "corpus_bleu", "rouge_l", "length_ratio", "distinct_2", "stops_by_itself"}


def test_scores_are_valid_json_even_where_no_context_has_an_order_number() -> None:
    pairs = [Pair("Customer says that the walnut bookshelf arrived broken.", "I am sorry.")]
    json.dumps(score(Replies(["Sorry."], [True]), pairs, recognise(pairs)), allow_nan=False)


# ---------------------------------------------------------------------------------------------------- authors


def test_a_second_ideal_reply_is_faultless_and_in_other_words(made: dict[str, list[Pair]]) -> None:
    pairs = made["sft_test"] + made["sft_test_unseen_phrase"]
    scenarios = recognise(pairs)
    replies = second_ideal_replies(scenarios, seed=0)
    ratings = [rubric.rate(scenario, text) for scenario, text in zip(scenarios, replies.texts)]
    assert {rating.score for rating in ratings} == {5.0}
    assert sum(text != pair.response for text, pair in zip(replies.texts, pairs)) > 0.9 * len(pairs)
    assert replies == second_ideal_replies(scenarios, seed=0) != second_ideal_replies(scenarios, seed=1)


def test_a_context_longer_than_the_model_can_read_gets_a_reply(tiny_model: Transformer, encoder: PairEncoder) -> None:
    long = Pair("My walnut desk arrived broken. " * 200, "Sorry.")
    assert len(generate_replies(tiny_model, encoder, [long], Sampling(max_new_tokens=3), seed=0).texts) == 1


# ---------------------------------------------------------------------------------------------------- two models


def test_two_models_side_by_side(tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]) -> None:
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.embed_tokens.weight.mul_(3)
    pairs, sampling, scenarios = made["sft_test"][:5], Sampling(max_new_tokens=10), recognise(made["sft_test"][:5])
    found = evaluate_sft_vs_pretrained(tiny_model, other, encoder, pairs, sampling, seed=4, samples=3)

    assert set(found.scores) == {"pretrained", "sft", "ceiling"}
    assert found.scores["ceiling"]["rating"] == 5.0
    assert [entry["context"] for entry in found.entries] == [pair.context for pair in pairs]
    assert [entry["reference"] for entry in found.entries] == [pair.response for pair in pairs]
    for author, model in {"pretrained": tiny_model, "sft": other}.items():
        samples = [[entry["samples"][author][number] for entry in found.entries] for number in range(3)]
        assert [entry[author] for entry in found.entries] == [sample["text"] for sample in samples[0]]
        assert samples[0] != samples[1] != samples[2]
        assert samples[2] == [
            {"text": text, "stops_by_itself": stopped, "rating": rating.score, "faults": rating.faults}
            for text, stopped, rating in rated(generate_replies(model, encoder, pairs, sampling, "4/2"), scenarios)
        ]
        texts = [[sample["text"] for sample in replies] for replies in samples]
        ratings = [fmean(sample["rating"] for sample in replies) for replies in samples]
        references = [pair.response for pair in pairs]
        for measure, value in compute_instruction_following_metrics(texts[0], references).items():
            others = [compute_instruction_following_metrics(text, references)[measure] for text in texts[1:]]
            assert found.scores[author][measure] == pytest.approx(fmean([value, *others]))
            assert found.spread[author][measure] == pytest.approx(stdev([value, *others]))
        assert found.scores[author]["rating"] == pytest.approx(fmean(ratings))
    assert [entry["pretrained"] for entry in found.entries] != [entry["sft"] for entry in found.entries]
    for entry, scenario in zip(found.entries, scenarios):
        for author in ("pretrained", "sft", "reference", "second_reference"):
            assert entry[f"{author}_rating"] == rubric.rate(scenario, entry[author]).score


def rated(replies: Replies, scenarios: list[world.Scenario]) -> list[tuple[str, bool, rubric.Rating]]:
    ratings = [rubric.rate(scenario, text) for scenario, text in zip(scenarios, replies.texts)]
    return list(zip(replies.texts, replies.stopped, ratings))


def test_the_perplexity_is_that_of_the_references(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    pairs = made["sft_test"][:3]
    found = evaluate_sft_vs_pretrained(tiny_model, tiny_model, encoder, pairs, Sampling(max_new_tokens=1))
    total, tokens = 0.0, 0
    for pair in pairs:
        tokenizer = encoder.tokenizer
        context = tokenizer.encode(f"Customer: {pair.context}\nAgent:").ids
        response = [*tokenizer.encode(f" {pair.response}").ids, tokenizer.token_to_id("<EOS>")]
        with torch.no_grad():
            logits = tiny_model.lm_head(tiny_model(torch.tensor([context + response])))[0].double()
        for place, token in enumerate(response, start=len(context)):
            total -= logits[place - 1].log_softmax(-1)[token].item()
        tokens += len(response)
    assert found.scores["sft"]["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert "perplexity" not in found.scores["ceiling"]


def test_without_the_retail_world_there_is_neither_rubric_nor_ceiling(
    tiny_model: Transformer, encoder: PairEncoder
) -> None:
    pairs = [Pair("What is the capital of France?", "Paris.")]
    found = evaluate_sft_vs_pretrained(tiny_model, tiny_model, encoder, pairs, Sampling(max_new_tokens=2))
    assert set(found.scores) == {"pretrained", "sft"} and "rating" not in found.scores["sft"]
    assert set(found.entries[0]) == {"context", "reference", "pretrained", "sft", "samples"}
