"""Scores of texts: BLEU, ROUGE-L, facts repeated and invented, and the retail rubric.

Texts are scored by the same lines whoever wrote them: a model, an ideal agent or a look-up. So all columns of the
report can be compared.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean

from nltk import bigrams, wordpunct_tokenize
from nltk.translate import bleu_score
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from part3_pretrain.retail import rubric
from part3_pretrain.retail.invention import invented
from part3_pretrain.retail.world import Scenario
from part4_sft.dataset import Pair
from part4_sft.extras.fact_check import FactChecker

Scores = dict[str, float]
HEADLINE_MEASURES = ("bleu", "rouge_l", "rated_4_or_more")  # what `by_epoch` and a terminal show
CACHE_SIZE = 2**16  # the bootstrap asks for the scores of the tables once more
UNSPACED = re.compile("([\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")  # Thai, Lao, kana, Han: no blanks
LEAST_GOOD = 0.02  # of the responses of pairs of the retail world; of all 5,000 it is a tenth
_smoothing = bleu_score.SmoothingFunction().method1


def words_of(text: str) -> list[str]:
    """Split a text into words and marks; of a script without blanks, each character is a word."""
    return list(wordpunct_tokenize(UNSPACED.sub(r" \1 ", text)))


class _RougeTokenizer(Tokenizer):  # type: ignore[misc]
    """Words in lower case. The library's own drops all letters but a to z; in English both are the same."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", UNSPACED.sub(r" \1 ", text.lower()))


_rouge = RougeScorer(["rougeL"], tokenizer=_RougeTokenizer())


@lru_cache(CACHE_SIZE)
def bleu(reply: str, reference: str) -> float:
    """Return the sentence BLEU of words (Papineni et al. 2002), 0 to 1, by NLTK's smoothing method 1."""
    words = words_of(reply)
    return bleu_score.sentence_bleu([words_of(reference)], words, smoothing_function=_smoothing)


@lru_cache(CACHE_SIZE)
def rouge_l(reply: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin 2004), 0 to 1."""
    return _rouge.score(reference, reply)["rougeL"].fmeasure


def corpus_bleu(replies: list[str], references: list[str]) -> float:
    """Return BLEU as first defined (Papineni et al. 2002), 0 to 1: n-grams of all replies counted together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of texts without a common n-gram, whose BLEU is 0
        return bleu_score.corpus_bleu([[words_of(reference)] for reference in references], list(map(words_of, replies)))


def distinct_2(replies: list[str]) -> float:
    """Return the share of different word bigrams among all (Li et al. 2016): near 0 if all replies are alike."""
    pairs = [pair for reply in replies for pair in bigrams(words_of(reply))]
    return len(set(pairs)) / max(1, len(pairs))


def compute_instruction_following_metrics(predictions: list[str], references: list[str]) -> Scores:
    """Compare replies with one reference each.

    Returns:
        `bleu` and `rouge_l`, means over the replies; `corpus_bleu`; `length_ratio`, words of the replies per word of
        the references; and `distinct_2`.

    Raises:
        ValueError: the lists are empty or of different lengths.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references cannot be compared")
    predicted_words = sum(len(words_of(text)) for text in predictions)
    reference_words = sum(len(words_of(text)) for text in references)
    return {
        "bleu": fmean(map(bleu, predictions, references)),
        "corpus_bleu": corpus_bleu(predictions, references),
        "rouge_l": fmean(map(rouge_l, predictions, references)),
        "length_ratio": predicted_words / max(1, reference_words),
        "distinct_2": distinct_2(predictions),
    }


@dataclass(frozen=True)
class Replies:
    """One author's replies to a list of test pairs, and whether each stopped by itself."""

    texts: list[str]
    stopped: list[bool]


def recognise_all(pairs: list[Pair]) -> list[Scenario] | None:
    """Return what each customer wants; None where the pairs are not of the retail world, so that no rubric applies.

    Customers of any shop ask what ours are asked, so it is the responses that tell: hardly one of another shop's is
    rated high by our policies.
    """
    scenarios = []
    for pair in pairs:
        scenario = rubric.recognise(pair.context)
        if not scenario:  # nor need the others be read: of a large file of other data, that would take minutes
            return None
        scenarios.append(scenario)
    good = sum(rubric.rate(scenario, pair.response).is_high_quality for scenario, pair in zip(scenarios, pairs))
    return scenarios if good >= LEAST_GOOD * len(pairs) else None


def score(
    replies: Replies, pairs: list[Pair], scenarios: list[Scenario] | None, checker: FactChecker | None = None
) -> Scores:
    """Return all measures of one author on one test set.

    Those of the rubric where the scenarios are known, and those of facts where a checker knows the training responses.
    """
    scores = compute_instruction_following_metrics(replies.texts, [pair.response for pair in pairs])
    scores["stops_by_itself"] = fmean(replies.stopped)
    if checker:
        scores |= checker.scores([pair.context for pair in pairs], replies.texts)
    if scenarios is None:
        return scores
    scores["invented"] = fmean(bool(invented(pair.context, text)) for pair, text in zip(pairs, replies.texts))
    return scores | rubric_scores(replies.texts, scenarios)


def rubric_scores(texts: list[str], scenarios: list[Scenario]) -> Scores:
    """Return the mean rating of replies and the share of them that meets each criterion."""
    ratings = list(map(rubric.rate, scenarios, texts))
    scores = {
        "rating": fmean(rating.score for rating in ratings),
        "rated_4_or_more": fmean(rating.is_high_quality for rating in ratings),
        "right_item": fmean(rating.item for rating in ratings),
        "wrong_item": fmean(rating.wrong_item for rating in ratings),
        "right_resolution": fmean(rating.right_resolution for rating in ratings),
    }
    if with_order := [rating for rating, scenario in zip(ratings, scenarios) if scenario.order_number]:
        scores["right_order_number"] = fmean(rating.order_number for rating in with_order)
    if with_two := [rating for rating, scenario in zip(ratings, scenarios) if len(scenario.intents) == 2]:
        scores["both_problems_resolved"] = fmean(rating.right_resolution for rating in with_two)
    return scores
