"""How good are replies? BLEU, ROUGE-L and the retail rubric, for texts from anywhere and for two models side by side.

Everything below `Replies` scores texts, whoever wrote them: a model, an ideal agent (the ceiling) or a look-up (the
baselines). So all rows of the report are computed by the same lines.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from random import Random
from statistics import fmean

import torch
from nltk import wordpunct_tokenize
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer

from part3_pretrain import retail
from part3_pretrain.model import Transformer
from part3_pretrain.tokenizer import EOS, PAD
from part4_sft.dataset import Pair, encode_context
from part4_sft.generation import Sampling, generate

Scores = dict[str, float]
_smoothing = SmoothingFunction().method1
_rouge = RougeScorer(["rougeL"])


# ---------------------------------------------------------------------------------------------------- texts


def bleu(reply: str, reference: str) -> float:
    """Sentence BLEU (Papineni et al. 2002), 0 to 1, of words and punctuation marks, by NLTK's smoothing method 1."""
    return sentence_bleu([wordpunct_tokenize(reference)], wordpunct_tokenize(reply), smoothing_function=_smoothing)


def rouge_l(reply: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), 0 to 1."""
    return _rouge.score(reference, reply)["rougeL"].fmeasure


def compute_instruction_following_metrics(predictions: list[str], references: list[str]) -> Scores:
    """Mean sentence BLEU and mean ROUGE-L F1 of replies against one reference each.

    Returns:
        `{"bleu": ..., "rouge_l": ...}`, both 0 to 1.

    Raises:
        ValueError: the lists are empty or of different lengths.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references cannot be compared")
    pairs = list(zip(predictions, references))
    return {"bleu": fmean(bleu(*pair) for pair in pairs), "rouge_l": fmean(rouge_l(*pair) for pair in pairs)}


@dataclass(frozen=True)
class Replies:
    """One author's replies to a list of test pairs, and whether each came to its end by itself."""

    texts: list[str]
    stopped: list[bool]


def score(replies: Replies, pairs: list[Pair]) -> Scores:
    """All measures of one author on one test set; the rubric's only where every context is of the retail world."""
    scores = compute_instruction_following_metrics(replies.texts, [pair.response for pair in pairs])
    scores["stops_by_itself"] = fmean(replies.stopped)
    scenarios = [retail.recognise(pair.context) for pair in pairs]
    if None in scenarios:
        return scores
    ratings = [retail.rate(scenario, text) for scenario, text in zip(scenarios, replies.texts)]
    with_order = [rating for rating, scenario in zip(ratings, scenarios) if scenario.order_number]
    with_two = [rating for rating, scenario in zip(ratings, scenarios) if len(scenario.intents) == 2]
    scores |= {
        "rating": fmean(rating.score for rating in ratings),
        "rated_4_or_more": fmean(rating.score >= retail.HIGH_QUALITY for rating in ratings),
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
    tokenizer: Tokenizer,
    pairs: list[Pair],
    sampling: Sampling,
    seed: int,
    progress: str | None = None,
) -> Replies:
    """The model's own replies to the contexts of the pairs; a context that is too long loses its beginning."""
    model.eval()
    room = model.config.max_positions - sampling.max_new_tokens
    generated = generate(
        model,
        [encode_context(pair.context, tokenizer)[-room:] for pair in pairs],
        sampling,
        pad_id=tokenizer.token_to_id(PAD),
        eos_id=tokenizer.token_to_id(EOS),
        seed=seed,
        progress=progress,
    )
    texts = tokenizer.decode_batch([reply.ids for reply in generated])
    return Replies([text.strip() for text in texts], [reply.stopped for reply in generated])


def second_ideal_replies(pairs: list[Pair], seed: int) -> Replies | None:
    """What another ideal agent writes to the same contexts; None where a context is not of the retail world.

    Two ideal agents share no words but those that matter, so their agreement is the ceiling for any model's BLEU.
    """
    rng = Random(f"second reference/{seed}")
    scenarios = [retail.recognise(pair.context) for pair in pairs]
    if None in scenarios:
        return None
    return Replies([retail.ideal_reply(scenario, rng) for scenario in scenarios], [True] * len(pairs))


def most_common_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """The most frequent training response, whatever is asked."""
    ((text, _),) = Counter(pair.response for pair in training).most_common(1)
    return Replies([text] * len(pairs), [True] * len(pairs))


def nearest_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """The response to the most similar training context: cosine of TF-IDF weights over lower-case words."""
    documents = [Counter(wordpunct_tokenize(pair.context.lower())) for pair in training]
    frequency = Counter(word for document in documents for word in document)
    column = {word: index for index, word in enumerate(frequency)}
    idf = torch.tensor([math.log(len(documents) / count) for count in frequency.values()])

    def vectors(counts: list[Counter[str]]) -> torch.Tensor:
        weights = torch.zeros(len(counts), len(column))
        for row, count in enumerate(counts):
            for word, times in count.items():
                if word in column:
                    weights[row, column[word]] = times
        return torch.nn.functional.normalize(weights * idf, dim=-1)

    asked = vectors([Counter(wordpunct_tokenize(pair.context.lower())) for pair in pairs])
    nearest = (asked @ vectors(documents).T).argmax(-1).tolist()
    return Replies([training[index].response for index in nearest], [True] * len(pairs))


# ---------------------------------------------------------------------------------------------------- comparison


def paired_bootstrap(before: list[float], after: list[float], seed: int, resamples: int = 10_000) -> dict[str, object]:
    """How sure is it that the second model is better (Koehn 2004)?

    Args:
        before, after: one score for each test context, of the same contexts in the same order.

    Returns:
        `difference` of the means; `ci95`, the 95% interval of it when the contexts are drawn anew; and the two-sided
        `p_value`, at least 1 / resamples.
    """
    gains = torch.tensor(after, dtype=torch.float64) - torch.tensor(before, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(gains), (resamples, len(gains)), generator=generator)
    means = gains[drawn].mean(dim=1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    tail = min((means <= 0).double().mean().item(), (means >= 0).double().mean().item())
    return {"difference": gains.mean().item(), "ci95": [low, high], "p_value": min(1.0, max(2 * tail, 1 / resamples))}


def evaluate_sft_vs_pretrained(
    pretrained: Transformer,
    sft: Transformer,
    tokenizer: Tokenizer,
    pairs: list[Pair],
    sampling: Sampling,
    seed: int = 0,
    name: str = "test",
) -> tuple[dict[str, Scores], list[dict[str, object]]]:
    """Lets both models answer the same contexts, with the same random numbers, and scores them alike.

    Args:
        pairs: test pairs with ideal responses; neither model has seen them.
        name: what the progress bars call the set.

    Returns:
        The scores of "pretrained" and "sft", and of "ceiling" where a second ideal reply can be written; and the texts,
        one entry a context, from which every score can be computed again.
    """
    authors = {
        "pretrained": generate_replies(pretrained, tokenizer, pairs, sampling, seed, f"{name}: pretrained"),
        "sft": generate_replies(sft, tokenizer, pairs, sampling, seed, f"{name}: fine-tuned"),
        "ceiling": second_ideal_replies(pairs, seed),
    }
    scores = {author: score(replies, pairs) for author, replies in authors.items() if replies}
    return scores, [_side_by_side(pair, index, authors) for index, pair in enumerate(pairs)]


def _side_by_side(pair: Pair, index: int, authors: dict[str, Replies | None]) -> dict[str, object]:
    texts = {"reference": pair.response}
    for author, replies in authors.items():
        if replies:
            texts["second_reference" if author == "ceiling" else author] = replies.texts[index]
    entry: dict[str, object] = {"context": pair.context, **texts}
    for author in ("pretrained", "sft"):
        entry[f"{author}_stops_by_itself"] = authors[author].stopped[index]
    if scenario := retail.recognise(pair.context):
        entry |= {f"{author}_rating": retail.rate(scenario, text).score for author, text in texts.items()}
    return entry


def compare(replies: list[dict[str, object]], seed: int) -> dict[str, dict[str, object]]:
    """The paired bootstrap of SFT against pretrained for BLEU, ROUGE-L and, in the retail world, the rating.

    Args:
        replies: the texts that `evaluate_sft_vs_pretrained` returned.
    """
    measures = {
        "bleu": lambda entry, author: bleu(entry[author], entry["reference"]),
        "rouge_l": lambda entry, author: rouge_l(entry[author], entry["reference"]),
    }
    if all("sft_rating" in entry for entry in replies):
        measures["rating"] = lambda entry, author: entry[f"{author}_rating"]
    return {
        name: paired_bootstrap(
            [measure(entry, "pretrained") for entry in replies], [measure(entry, "sft") for entry in replies], seed
        )
        for name, measure in measures.items()
    }
