"""What goes wrong: the worst replies and where they occur, so that a reader knows where not to trust the model."""

from __future__ import annotations

from collections import Counter

from part3_pretrain.retail.rubric import HIGH_QUALITY
from part4_sft.metrics import Entry


def worst_replies(entries: list[Entry], count: int = 10) -> list[dict[str, object]]:
    """The fine-tuned model's lowest rated replies, lowest first, at most one a context, with the rubric's reasons."""
    lowest = [
        {"context": entry["context"], **min(entry["samples"]["sft"], key=lambda sample: sample["rating"])}
        for entry in entries
    ]
    return sorted(lowest, key=lambda reply: reply["rating"])[:count]


def errors_by_category(entries: list[Entry]) -> dict[str, dict[str, float]]:
    """For each category of intents, how many replies the fine-tuned model gave and which share is rated below 4.0.

    A reply to a customer with two problems counts in the category of each.
    """
    replies, errors = Counter[str](), Counter[str]()
    for entry in entries:
        for category in entry["categories"]:
            replies[category] += len(entry["samples"]["sft"])
            errors[category] += sum(sample["rating"] < HIGH_QUALITY for sample in entry["samples"]["sft"])
    return {
        category: {"replies": count, "rated_below_4": errors[category] / count}
        for category, count in sorted(replies.items())
    }
