from __future__ import annotations

import copy
import json
from random import Random
from statistics import fmean

import pytest
import sacrebleu
import torch
from nltk import wordpunct_tokenize
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer

from part3_pretrain import retail
from part3_pretrain.model import Transformer
from part4_sft.dataset import Pair
from part4_sft.generation import Sampling
from part4_sft.metrics import (
    Replies,
    bleu,
    compare,
    compute_instruction_following_metrics,
    evaluate_sft_vs_pretrained,
    generate_replies,
    most_common_replies,
    nearest_replies,
    paired_bootstrap,
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
    smoothing = {"smooth_method": "floor", "smooth_value": 0.1, "use_effective_order": False}
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


def test_the_metrics_are_means_over_the_pairs() -> None:
    assert compute_instruction_following_metrics(TEXTS, [REFERENCE] * len(TEXTS)) == {
        "bleu": pytest.approx(fmean(bleu(text, REFERENCE) for text in TEXTS)),
        "rouge_l": pytest.approx(fmean(rouge_l(text, REFERENCE) for text in TEXTS)),
    }


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_cannot_be_compared_are_refused(predictions: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError):
        compute_instruction_following_metrics(predictions, references)


# ---------------------------------------------------------------------------------------------------- scores


def test_the_rubrics_rows_are_the_means_of_the_ratings(made: dict[str, list[Pair]]) -> None:
    ideal, low = made["sft_test"], made["sft_dataset"][500:700]
    pairs = [*ideal, *low]
    scores = score(Replies([pair.response for pair in pairs], [True, False] * 200), pairs)

    scenarios = [retail.recognise(pair.context) for pair in pairs]
    ratings = [retail.rate(scenario, pair.response) for scenario, pair in zip(scenarios, pairs)]
    with_order = [rating for rating, scenario in zip(ratings, scenarios) if scenario.order_number]
    with_two = [rating for rating, scenario in zip(ratings, scenarios) if len(scenario.intents) == 2]
    assert scores == {
        "bleu": pytest.approx(fmean(bleu(pair.response, pair.response) for pair in pairs)),
        "rouge_l": 1,
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
    assert set(score(Replies(["a", "b"], [True, True]), pairs)) == {"bleu", "rouge_l", "stops_by_itself"}


def test_scores_are_valid_json_even_where_no_context_has_an_order_number() -> None:
    pair = Pair("Customer says that the walnut bookshelf arrived broken.", "I am sorry.")
    json.dumps(score(Replies(["Sorry."], [True]), [pair]), allow_nan=False)


# ---------------------------------------------------------------------------------------------------- authors


def test_a_second_ideal_reply_is_faultless_and_in_other_words(made: dict[str, list[Pair]]) -> None:
    pairs = made["sft_test"] + made["sft_test_unseen_phrase"]
    replies = second_ideal_replies(pairs, seed=0)
    ratings = [retail.rate(retail.recognise(pair.context), text) for pair, text in zip(pairs, replies.texts)]
    assert {rating.score for rating in ratings} == {5.0}
    assert sum(text != pair.response for text, pair in zip(replies.texts, pairs)) > 0.9 * len(pairs)
    assert replies == second_ideal_replies(pairs, seed=0) != second_ideal_replies(pairs, seed=1)


def test_no_ideal_reply_to_a_context_that_is_not_of_the_retail_world() -> None:
    assert second_ideal_replies([Pair("What is the capital of France?", "Paris.")], seed=0) is None


def test_the_nearest_reply_is_that_of_the_same_context(made: dict[str, list[Pair]]) -> None:
    training = made["sft_dataset"][:200]
    asked = [Pair(pair.context.upper(), "?") for pair in reversed(training)]
    assert nearest_replies(training, asked).texts == [pair.response for pair in reversed(training)]
    rare = Pair("please help with the unicycle", "?")  # a rare word says more than common ones
    training = [Pair("please help me", "1"), Pair("please help", "2"), Pair("a unicycle", "3"), Pair("please", "4")]
    assert nearest_replies(training, [rare]).texts == ["3"]


def test_the_most_common_reply() -> None:
    training = [Pair("a", "rare"), Pair("b", "common"), Pair("c", "common")]
    assert most_common_replies(training, [Pair("d", "?")] * 2) == Replies(["common"] * 2, [True] * 2)


def test_a_context_longer_than_the_model_can_read_gets_a_reply(tiny_model: Transformer, tokenizer: Tokenizer) -> None:
    long = Pair("My walnut desk arrived broken. " * 200, "Sorry.")
    assert len(generate_replies(tiny_model, tokenizer, [long], Sampling(max_new_tokens=3), seed=0).texts) == 1


# ---------------------------------------------------------------------------------------------------- comparison


def test_the_bootstrap_finds_a_clear_gain_and_none_in_noise() -> None:
    rng = Random(0)
    before = [rng.gauss(0, 1) for _ in range(200)]
    better = [value + rng.gauss(0.5, 1) for value in before]
    noise = [value + rng.choice([-1, 1]) for value in before]

    found = paired_bootstrap(before, better, seed=0)
    low, high = found["ci95"]
    assert found["difference"] == pytest.approx(fmean(better) - fmean(before))
    assert 0 < low < found["difference"] < high
    assert found["p_value"] < 0.01

    found = paired_bootstrap(before, noise, seed=0)
    low, high = found["ci95"]
    assert low < 0 < high and found["p_value"] > 0.05
    assert paired_bootstrap(before, before, seed=0) == {"difference": 0, "ci95": [0, 0], "p_value": 1}


def test_the_bootstrap_is_seeded_and_agrees_with_a_naive_one() -> None:
    rng = Random(1)
    before = [rng.random() for _ in range(50)]
    after = [rng.random() for _ in range(50)]
    found = paired_bootstrap(before, after, seed=0)
    assert found == paired_bootstrap(before, after, seed=0) != paired_bootstrap(before, after, seed=1)

    gains = [b - a for a, b in zip(before, after)]
    means = sorted(fmean(rng.choices(gains, k=50)) for _ in range(5000))
    assert found["ci95"] == pytest.approx([means[125], means[4875]], abs=0.01)
    assert found["p_value"] == pytest.approx(2 * sum(mean <= 0 for mean in means) / 5000, abs=0.03)


def test_two_models_side_by_side(tiny_model: Transformer, tokenizer: Tokenizer, made: dict[str, list[Pair]]) -> None:
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.embed_tokens.weight.mul_(3)
    pairs, sampling = made["sft_test"][:5], Sampling(max_new_tokens=10)
    scores, entries = evaluate_sft_vs_pretrained(tiny_model, other, tokenizer, pairs, sampling, seed=4)

    assert set(scores) == {"pretrained", "sft", "ceiling"}
    assert scores["ceiling"]["rating"] == 5.0
    assert [entry["context"] for entry in entries] == [pair.context for pair in pairs]
    assert [entry["reference"] for entry in entries] == [pair.response for pair in pairs]
    for author, model in {"pretrained": tiny_model, "sft": other}.items():
        replies = generate_replies(model, tokenizer, pairs, sampling, seed=4)
        assert [entry[author] for entry in entries] == replies.texts
        assert scores[author] == pytest.approx(score(replies, pairs))
    assert [entry["pretrained"] for entry in entries] != [entry["sft"] for entry in entries]
    for entry in entries:
        scenario = retail.recognise(entry["context"])
        for author in ("pretrained", "sft", "reference", "second_reference"):
            assert entry[f"{author}_rating"] == retail.rate(scenario, entry[author]).score

    compared = compare(entries, seed=0)
    assert set(compared) == {"bleu", "rouge_l", "rating"}
    for measure, found in compared.items():
        difference = scores["sft"][measure] - scores["pretrained"][measure]
        assert found["difference"] == pytest.approx(difference, abs=1e-9)
