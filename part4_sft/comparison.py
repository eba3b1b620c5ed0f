"""Is the difference between two models real, or would other test contexts have shown another one?"""

from __future__ import annotations

from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch

from part4_sft.metrics import Entry, bleu, rouge_l


def paired_bootstrap(before: list[float], after: list[float], seed: int, resamples: int = 10_000) -> dict[str, Any]:
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


def compare(entries: list[Entry], seed: int) -> dict[str, dict[str, Any]]:
    """The paired bootstrap of SFT against pretrained for BLEU, ROUGE-L and, where the rubric applies, the rating.

    Args:
        entries: those of `evaluate_sft_vs_pretrained`; of several samples of a context the mean counts.
    """
    measures = {
        "bleu": lambda sample, reference: bleu(sample["text"], reference),
        "rouge_l": lambda sample, reference: rouge_l(sample["text"], reference),
    }
    if all("categories" in entry for entry in entries):
        measures["rating"] = lambda sample, _: sample["rating"]

    def by_context(author: str, measure: Callable[[dict[str, Any], str], float]) -> list[float]:
        return [fmean(measure(sample, entry["reference"]) for sample in entry["samples"][author]) for entry in entries]

    return {
        name: paired_bootstrap(by_context("pretrained", measure), by_context("sft", measure), seed)
        for name, measure in measures.items()
    }
