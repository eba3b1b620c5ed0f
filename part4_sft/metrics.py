"""How good are replies? BLEU, ROUGE-L and the retail rubric, for texts from anywhere and for two models side by side.

Texts are scored by the same lines whoever wrote them: a model, an ideal agent (the ceiling) or a look-up
(`baselines.py`). So all columns of the report can be compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from statistics import fmean, stdev
from typing import Any

from nltk import bigrams, ngrams, wordpunct_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from tqdm import tqdm

from part3_pretrain.model import Transformer
from part3_pretrain.retail import rubric, world
from part3_pretrain.runtime import distributed
from part4_sft.dataset import Pair
from part4_sft.encoding import Examples, PairEncoder
from part4_sft.generation import Sampling, generate, longest_prompt
from part4_sft.training import mean_loss

Scores = dict[str, float]
Entry = dict[str, Any]  # one context and the replies to it, as in `replies.json`
REMEMBERED = 2**16  # scores: those of the tables are asked for once more by the bootstrap
_smoothing = SmoothingFunction().method1
_rouge = RougeScorer(["rougeL"])


# ---------------------------------------------------------------------------------------------------- texts


@lru_cache(REMEMBERED)
def bleu(reply: str, reference: str) -> float:
    """Sentence BLEU (Papineni et al. 2002), 0 to 1, of words and punctuation marks, by NLTK's smoothing method 1."""
    return sentence_bleu([wordpunct_tokenize(reference)], wordpunct_tokenize(reply), smoothing_function=_smoothing)


@lru_cache(REMEMBERED)
def rouge_l(reply: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), 0 to 1."""
    return _rouge.score(reference, reply)["rougeL"].fmeasure


def corpus_bleu(replies: list[str], references: list[str]) -> float:
    """BLEU as first defined (Papineni et al. 2002), 0 to 1: n-grams of all replies counted together, unsmoothed."""
    said, wanted = ([wordpunct_tokenize(text) for text in texts] for texts in (replies, references))
    log_precision = 0.0
    for n in range(1, 5):
        counts = [Counter(ngrams(words, n)) for words in said]
        right = sum((count & Counter(ngrams(words, n))).total() for count, words in zip(counts, wanted))
        if right == 0:
            return 0.0
        log_precision += math.log(right / sum(count.total() for count in counts)) / 4
    brevity = min(0.0, 1 - sum(map(len, wanted)) / sum(map(len, said)))
    return math.exp(brevity + log_precision)


def distinct_2(replies: list[str]) -> float:
    """Different pairs of neighbouring words among all such pairs (Li et al. 2016): near 0 if all replies are alike."""
    pairs = [pair for reply in replies for pair in bigrams(wordpunct_tokenize(reply))]
    return len(set(pairs)) / max(1, len(pairs))


def compute_instruction_following_metrics(predictions: list[str], references: list[str]) -> Scores:
    """Compares replies with one reference each.

    Returns:
        `bleu` and `rouge_l`, means over the replies; `corpus_bleu`; `length_ratio`, words of the replies per word of
        the references; and `distinct_2`.

    Raises:
        ValueError: the lists are empty or of different lengths.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references cannot be compared")
    words_said, words_wanted = (
        sum(len(wordpunct_tokenize(text)) for text in texts) for texts in (predictions, references)
    )
    return {
        "bleu": fmean(bleu(*pair) for pair in zip(predictions, references)),
        "corpus_bleu": corpus_bleu(predictions, references),
        "rouge_l": fmean(rouge_l(*pair) for pair in zip(predictions, references)),
        "length_ratio": words_said / max(1, words_wanted),
        "distinct_2": distinct_2(predictions),
    }


@dataclass(frozen=True)
class Replies:
    """One author's replies to a list of test pairs, and whether each came to its end by itself."""

    texts: list[str]
    stopped: list[bool]


def recognise(pairs: list[Pair]) -> list[world.Scenario] | None:
    """What each customer wants; None where a context is not of the retail world, so that no rubric can be applied."""
    scenarios = [scenario for pair in pairs if (scenario := rubric.recognise(pair.context))]
    return scenarios if len(scenarios) == len(pairs) else None


def score(replies: Replies, pairs: list[Pair], scenarios: list[world.Scenario] | None) -> Scores:
    """All measures of one author on one test set; those of the rubric where the scenarios are known."""
    scores = compute_instruction_following_metrics(replies.texts, [pair.response for pair in pairs])
    scores["stops_by_itself"] = fmean(replies.stopped)
    if scenarios is None:
        return scores
    ratings = [rubric.rate(scenario, text) for scenario, text in zip(scenarios, replies.texts)]
    with_order = [rating for rating, scenario in zip(ratings, scenarios) if scenario.order_number]
    with_two = [rating for rating, scenario in zip(ratings, scenarios) if len(scenario.intents) == 2]
    scores |= {
        "rating": fmean(rating.score for rating in ratings),
        "rated_4_or_more": fmean(rating.score >= rubric.HIGH_QUALITY for rating in ratings),
        "right_item": fmean(rating.item for rating in ratings),
        "wrong_item": fmean(rating.wrong_item for rating in ratings),
        "right_resolution": fmean(rating.right_resolution for rating in ratings),
    }
    if with_order:
        scores["right_order_number"] = fmean(rating.order_number for rating in with_order)
    if with_two:
        scores["both_problems_resolved"] = fmean(rating.right_resolution for rating in with_two)
    return scores


# ---------------------------------------------------------------------------------------------------- authors


def generate_replies(
    model: Transformer,
    encoder: PairEncoder,
    pairs: list[Pair],
    sampling: Sampling,
    seed: int | str,
    progress: Callable[[int], object] = lambda count: None,
) -> Replies:
    """The model's own replies to the contexts of the pairs; a context that is too long loses its beginning.

    Of several processes, each writes its share of the replies and then gets all. `progress` is that of `generate`.
    """
    model.eval()
    room = longest_prompt(model, sampling)
    prompts = [encoder.prompt(pair.context, room) for pair in distributed.shard(pairs)]
    generated = distributed.all_gather(generate(model, prompts, sampling, seed=seed, progress=progress))
    return Replies(encoder.texts([reply.ids for reply in generated]), [reply.stopped for reply in generated])


def second_ideal_replies(scenarios: list[world.Scenario], seed: int) -> Replies:
    """What another ideal agent writes to the same customers.

    Two ideal agents share no words but those that matter, so their agreement is the ceiling for any model's BLEU.
    """
    rng = Random(f"second reference/{seed}")
    return Replies([world.ideal_reply(scenario, rng) for scenario in scenarios], [True] * len(scenarios))


# ---------------------------------------------------------------------------------------------------- two models


@dataclass(frozen=True)
class SideBySide:
    """What the authors scored on one test set, how much that varies from sample to sample, and what they wrote.

    `entries` has one entry a context, from which every score but the perplexity can be computed again.
    """

    scores: dict[str, Scores]
    spread: dict[str, Scores]
    entries: list[Entry]


def evaluate_sft_vs_pretrained(
    pretrained: Transformer,
    sft: Transformer,
    encoder: PairEncoder,
    pairs: list[Pair],
    sampling: Sampling,
    seed: int = 0,
    *,
    samples: int = 1,
    scenarios: list[world.Scenario] | None = None,
    name: str = "test",
) -> SideBySide:
    """Lets both models answer the same contexts, with the same random numbers, and scores them alike.

    Args:
        pairs: test pairs with ideal responses; neither model has seen them.
        samples: replies that each model writes to each context; its scores are means over the samples, their spread
            is the standard deviation from sample to sample.
        scenarios: what the customers want; by default it is read from the contexts, if they are of the retail world.
        name: what the progress bars call the set.
    """
    scenarios = scenarios or recognise(pairs)
    authors: dict[str, list[Replies]] = {}
    for author, model in {"pretrained": pretrained, "sft": sft}.items():
        total = samples * len(distributed.shard(pairs))
        with tqdm(total=total, desc=f"{name}: {author}", unit="reply", disable=None) as bar:
            authors[author] = [
                generate_replies(model, encoder, pairs, sampling, f"{seed}/{sample}", bar.update)
                for sample in range(samples)
            ]
    if scenarios:
        authors["ceiling"] = [second_ideal_replies(scenarios, seed)]

    scores, spread = {}, {}
    for author, samples_of_author in authors.items():
        scored = [score(replies, pairs, scenarios) for replies in samples_of_author]
        scores[author] = {measure: fmean(one[measure] for one in scored) for measure in scored[0]}
        if len(scored) > 1:
            spread[author] = {measure: stdev(one[measure] for one in scored) for measure in scored[0]}
    examples = Examples(map(encoder.example, pairs))
    for author, model in {"pretrained": pretrained, "sft": sft}.items():
        scores[author]["perplexity"] = math.exp(mean_loss(model, examples))
    entries = [
        _entry(
            pair,
            scenarios[index] if scenarios else None,
            {
                author: [(replies.texts[index], replies.stopped[index]) for replies in authors[author]]
                for author in authors
            },
        )
        for index, pair in enumerate(pairs)
    ]
    return SideBySide(scores, spread, entries)


def _entry(pair: Pair, scenario: world.Scenario | None, written: dict[str, list[tuple[str, bool]]]) -> Entry:
    """One context of `replies.json`: the first sample of each author, and all of them under "samples"."""
    samples = {
        author: [{"text": text, "stops_by_itself": stopped, **_rubric(scenario, text)} for text, stopped in texts]
        for author, texts in written.items()
    }
    entry: Entry = {"context": pair.context, "reference": pair.response}
    for author, (first, *_) in samples.items():
        key = "second_reference" if author == "ceiling" else author
        entry[key] = first["text"]
        if scenario:
            entry[f"{key}_rating"] = first["rating"]
    if scenario:
        entry["reference_rating"] = rubric.rate(scenario, pair.response).score
        entry["categories"] = sorted({intent.category for intent in scenario.intents})
    return entry | {"samples": samples}


def _rubric(scenario: world.Scenario | None, text: str) -> dict[str, object]:
    if scenario is None:
        return {}
    rating = rubric.rate(scenario, text)
    return {"rating": rating.score, "faults": rating.faults}
