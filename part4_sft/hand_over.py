"""Knowing when not to answer: a reply that the model would not give again goes to a person.

How sure a model is of a reply is told by others that it draws for the same message: the share of them that claim the
same products, numbers and resolutions, in whatever words (self-consistency, Wang et al. 2022). No rule reads the
message.
"""

from __future__ import annotations

from statistics import fmean
from typing import Any

from part3_pretrain.retail.invention import claims
from part3_pretrain.retail.world import OUTSIDE

OTHERS = 8  # replies that are drawn to tell how sure the model is of one
KEPT = 0.99  # share of the good validation replies that are not handed over: at 0.97, many more are, and few wrong ones
EVIDENCE, REPLY = OUTSIDE[0].evidence, OUTSIDE[0].resolutions[0]  # the reply is read instead of the model's own words


def confidence(reply: str, others: list[str]) -> float:
    """Return the share of the others that claim what the reply does, 0 to 1; 0 where that is nothing."""
    own = claims(reply)
    return fmean(claims(other) == own for other in others) if own else 0.0


def confidences(samples: list[str]) -> list[float]:
    """Return the confidence in each of the samples of one message, by the eight behind it; the first follow the last.

    Where there are fewer than nine, by all others; of a single one nothing is known, so 0.
    """
    said = [claims(sample) for sample in samples]
    count = min(OTHERS, len(said) - 1)
    shares = []
    for place, own in enumerate(said):
        others = (said[place:] + said[:place])[1 : count + 1]
        shares.append(others.count(own) / count if own and count else 0.0)
    return shares


def calibrate(confidences: list[float], is_good: list[bool]) -> float:
    """Return the highest threshold that hands over at most 1% of the good replies, or 0 if there are none.

    A reply is handed over if its confidence is below the threshold.
    """
    good = sorted(own for own, good in zip(confidences, is_good) if good)
    return good[int((1 - KEPT) * len(good))] if good else 0.0


def coverage_curve(confidences: list[float], is_good: list[bool]) -> list[dict[str, Any]]:
    """Return for each threshold which share the model answers by itself, and which share of these answers is good."""
    curve = []
    for threshold in sorted({0.0, *confidences}):
        answered = [good for own, good in zip(confidences, is_good) if own >= threshold]
        coverage = len(answered) / len(is_good)
        curve.append({"threshold": threshold, "coverage": coverage, "rated_4_or_more": fmean(answered)})
    return curve
