from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.quality_vs_quantity import STEPS, in_steps, interval
from part4_sft.dataset import Pair


def test_every_choice_of_pairs_makes_as_many_steps_and_uses_all_pairs_alike() -> None:
    for count in (50, 500, 5000):
        pairs = [Pair(str(number), "a") for number in range(count)]
        repeated = in_steps(pairs, seed=0)
        assert len(repeated) == STEPS * 8
        times = Counter(pair.context for pair in repeated)
        assert max(times.values()) - min(times[pair.context] for pair in pairs) <= 1
        assert repeated == in_steps(pairs, seed=0) != in_steps(pairs, seed=1)


def test_the_interval_holds_the_mean_and_is_wider_where_seeds_differ() -> None:
    alike, apart = interval([[0.5, 0.7] * 50] * 3), interval([[0.1, 0.3] * 50, [0.5, 0.7] * 50, [0.9, 1.1] * 50])
    for found in (alike, apart):
        assert found["mean"] == pytest.approx(0.6)
        assert found["low"] < 0.6 < found["high"]
    assert apart["high"] - apart["low"] > 3 * (alike["high"] - alike["low"])
    assert interval([[1.0] * 10]) == {"mean": 1.0, "low": 1.0, "high": 1.0}
