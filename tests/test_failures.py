from __future__ import annotations

import pytest

from part4_sft.failures import errors_by_category, worst_replies


def entry(context: str, categories: list[str], *ratings: float) -> dict[str, object]:
    samples = [{"text": f"rated {rating}", "rating": rating, "faults": ["names another item"]} for rating in ratings]
    return {"context": context, "categories": categories, "samples": {"sft": samples}}


ENTRIES = [
    entry("a", ["payment"], 5.0, 4.0),
    entry("b", ["payment", "delivery"], 3.5, 5.0),
    entry("c", ["delivery"], 1.0, 1.5),
]


def test_the_worst_come_first_one_a_context_with_their_reasons() -> None:
    worst = worst_replies(ENTRIES, count=2)
    assert [(reply["context"], reply["rating"], reply["text"]) for reply in worst] == [
        ("c", 1.0, "rated 1.0"),
        ("b", 3.5, "rated 3.5"),
    ]
    assert worst[0]["faults"] == ["names another item"]


def test_errors_are_counted_in_every_category_of_a_context() -> None:
    assert errors_by_category(ENTRIES) == {
        "delivery": {"replies": 4, "rated_below_4": pytest.approx(0.75)},
        "payment": {"replies": 4, "rated_below_4": pytest.approx(0.25)},
    }
