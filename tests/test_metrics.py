"""Scores of texts, judged by sacrebleu, rouge-score and the rubric itself."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

import pytest
import sacrebleu
from nltk import wordpunct_tokenize
from rouge_score.rouge_scorer import RougeScorer

from part3_pretrain.retail import rubric
from part3_pretrain.retail.invention import invented
from part4_sft import metrics
from part4_sft.dataset import Pair
from part4_sft.extras.fact_check import FactChecker
from part4_sft.metrics import (
    Replies,
    bleu,
    compute_instruction_following_metrics,
    distinct_2,
    recognise_all,
    rouge_l,
    score,
)

REFERENCE = "I am sorry about the damage to your walnut desk (order 48213). A free replacement leaves today."
TEXTS = [
    "I am sorry about the damage to your walnut desk (order 48213). A free replacement leaves tomorrow.",
    "Sorry about the damage. A free replacement leaves our warehouse.",  # shorter than the reference
    "I am sorry about the damage to your walnut desk. " * 3,  # longer, and repeats itself
    "The desk is damaged, sorry today.",  # no two words in a row are right
    "I AM SORRY ABOUT THE DAMAGE!",
]


def spaced(text: str) -> str:
    return " ".join(wordpunct_tokenize(text))


@pytest.mark.parametrize("reply", TEXTS)
def test_bleu_is_that_of_sacrebleu_and_rouge_l_that_of_rouge_score(reply: str) -> None:
    smoothing: dict[str, Any] = {"smooth_method": "floor", "smooth_value": 0.1, "use_effective_order": False}
    judge = sacrebleu.sentence_bleu(spaced(reply), [spaced(REFERENCE)], tokenize="none", **smoothing)
    assert bleu(reply, REFERENCE) == pytest.approx(judge.score / 100, abs=1e-6)
    other_judge = RougeScorer(["rougeL"]).score(target=REFERENCE, prediction=reply)["rougeL"]
    assert rouge_l(reply, REFERENCE) == pytest.approx(other_judge.fmeasure, abs=1e-9) and 0 < other_judge.fmeasure < 1


@pytest.mark.parametrize("count", [5, 1])
def test_corpus_bleu_is_that_of_sacrebleu(count: int) -> None:
    replies, references = [spaced(text) for text in TEXTS], [spaced(REFERENCE)] * 5
    judge = sacrebleu.corpus_bleu(replies[:count], [references[:count]], tokenize="none", smooth_method="none")
    scores = compute_instruction_following_metrics(TEXTS[:count], [REFERENCE] * count)
    assert scores["corpus_bleu"] == pytest.approx(judge.score / 100, abs=1e-6)


def test_the_ends_of_the_scales() -> None:
    assert bleu(REFERENCE, REFERENCE) == pytest.approx(1) and rouge_l(REFERENCE, REFERENCE) == 1
    for nothing_right in ("", "Please wait"):
        scores = compute_instruction_following_metrics([nothing_right], [REFERENCE])
        assert scores["bleu"] == scores["rouge_l"] == 0 and scores["corpus_bleu"] == pytest.approx(0)
    assert distinct_2(["a b c", "a b d"]) == pytest.approx(3 / 4)  # (a b) twice, (b c), (b d)
    assert distinct_2(["two words"]) == 1 and distinct_2(["one", ""]) == 0


def test_the_metrics_of_a_list_are_means(capsys: pytest.CaptureFixture[str]) -> None:
    scores = compute_instruction_following_metrics(TEXTS, [REFERENCE] * len(TEXTS))
    assert scores["bleu"] == pytest.approx(fmean(bleu(text, REFERENCE) for text in TEXTS))
    assert scores["rouge_l"] == pytest.approx(fmean(rouge_l(text, REFERENCE) for text in TEXTS))
    words = [len(wordpunct_tokenize(text)) for text in (*TEXTS, REFERENCE)]
    assert scores["length_ratio"] == pytest.approx(sum(words[:-1]) / (5 * words[-1]))
    assert compute_instruction_following_metrics(["a"], [""])["length_ratio"] == 1


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_lists_that_cannot_be_compared_are_refused(predictions: list[str], references: list[str]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        compute_instruction_following_metrics(predictions, references)


def test_the_rubrics_rows_are_the_means_of_the_ratings(made: dict[str, list[Pair]]) -> None:
    pairs = [*made["sft_test"], *made["sft_dataset"][500:700]]
    scenarios = recognise_all(pairs)
    scores = score(Replies([pair.response for pair in pairs], [True, False] * 200), pairs, scenarios)
    assert not [pair for pair in pairs[:200] if invented(pair.context, pair.response)] and scores["invented"] > 0

    ratings = [rubric.rate(scenario, pair.response) for scenario, pair in zip(scenarios, pairs)]
    with_order = [rating for rating, scenario in zip(ratings, scenarios) if scenario.order_number]
    with_two = [rating for rating, scenario in zip(ratings, scenarios) if len(scenario.intents) == 2]
    assert scores == {
        **compute_instruction_following_metrics([pair.response for pair in pairs], [pair.response for pair in pairs]),
        "stops_by_itself": 0.5,
        "invented": pytest.approx(fmean(bool(invented(pair.context, pair.response)) for pair in pairs)),
        "rating": pytest.approx(fmean(rating.score for rating in ratings)),
        "rated_4_or_more": 0.5,
        "right_item": pytest.approx(fmean(rating.item for rating in ratings)),
        "wrong_item": pytest.approx(fmean(rating.wrong_item for rating in ratings)),
        "right_resolution": pytest.approx(fmean(rating.right_resolution for rating in ratings)),
        "right_order_number": pytest.approx(fmean(rating.order_number for rating in with_order)),
        "both_problems_resolved": pytest.approx(fmean(rating.right_resolution for rating in with_two)),
    }


def test_a_reply_rated_exactly_4_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [Pair("Customer says that the walnut bookshelf arrived broken.", "I am sorry.")]
    scenarios = [rubric.recognise(pairs[0].context)]
    for rating, share in ((4.0, 1.0), (3.99, 0.0)):
        monkeypatch.setattr(rubric.Rating, "score", rating)
        assert score(Replies(["Sorry."], [True]), pairs, scenarios)["rated_4_or_more"] == share


def test_where_the_rubric_cannot_tell_there_is_no_row(made: dict[str, list[Pair]]) -> None:
    pairs = [made["sft_test"][0], Pair("What is the capital of France?", "Paris.")]
    assert recognise_all(pairs) is None
    scores = score(Replies(["a", "b"], [True, True]), pairs, None)
    assert set(scores) == {"bleu", "corpus_bleu", "rouge_l", "length_ratio", "distinct_2", "stops_by_itself"}
    pairs = [Pair("Customer says that the walnut bookshelf arrived broken.", "I am sorry.")]
    assert recognise_all(pairs) is None  # a customer of ours may be another shop's as well, but not this response
    scores = score(Replies(["Sorry."], [True]), pairs, [rubric.recognise(pairs[0].context)])
    assert not scores.keys() & {"right_order_number", "both_problems_resolved"}
    json.dumps(scores, allow_nan=False)


@pytest.mark.parametrize(
    "text", ["Ваш заказ уже в пути.", "Größe für die Größten", "我们会退还您的订单。", "商品を返品したい", "สินค้าเสียหาย"]
)
def test_texts_of_any_script_are_words(text: str) -> None:
    scores = compute_instruction_following_metrics([text], [text])
    assert scores["bleu"] == scores["rouge_l"] == pytest.approx(1.0)
    half = compute_instruction_following_metrics([text[: len(text) // 2]], [text])
    assert 0 < half["rouge_l"] < 1


def test_pairs_of_other_data_are_not_all_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(rubric, "recognise", lambda context: read.append(context))
    assert metrics.recognise_all([Pair("one", "a"), Pair("two", "b")]) is None and read == ["one"]


def test_facts_are_scored_where_a_checker_knows_the_training_responses() -> None:
    pairs = [Pair("Where is order 48213?", "It left.")] * 4
    replies = Replies(["It left.", "Order 48213 left.", "Order 48312 left.", "Order 48312 left."], [True] * 4)
    scores = score(replies, pairs, None, FactChecker([]))
    assert (scores["repeats_fact"], scores["invents_fact"]) == (0.25, 0.5)
    assert not score(replies, pairs, None).keys() & {"repeats_fact", "invents_fact"}
