from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.quality_vs_quantity import BLEU, HIGH_QUALITY, STEPS, fine_tune, in_steps, interval
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair


@pytest.mark.parametrize("count", [50, 500, 5000])
def test_every_choice_of_pairs_makes_as_many_steps_and_uses_all_pairs_alike(count: int) -> None:
    pairs = [Pair(str(number), "a") for number in range(count)]
    repeated = in_steps(pairs, seed=0)
    assert len(repeated) == STEPS * SFTConfig.batch_size
    times = Counter(pair.context for pair in repeated)
    assert max(times.values()) - min(times[pair.context] for pair in pairs) <= 1
    assert repeated == in_steps(pairs, seed=0) != in_steps(pairs, seed=1)


def test_scores_are_those_after_each_epoch(tiny_checkpoint: Path, made: dict[str, list[Pair]]) -> None:
    test = made["sft_test"][:2]
    by_epoch = fine_tune(tiny_checkpoint, made["sft_dataset"][:8], test, epochs=2, seed=0)
    assert [list(scores) for scores in by_epoch] == [[BLEU, HIGH_QUALITY]] * 2
    assert all(len(of_measure) == len(test) for scores in by_epoch for of_measure in scores.values())


def test_the_interval_holds_the_mean_and_is_wider_where_seeds_differ() -> None:
    alike, apart = interval([[0.5, 0.7] * 50] * 3), interval([[0.1, 0.3] * 50, [0.5, 0.7] * 50, [0.9, 1.1] * 50])
    for each in (alike, apart):
        assert each["mean"] == pytest.approx(0.6)
        assert each["low"] < 0.6 and 0.6 - each["low"] == pytest.approx(each["high"] - 0.6, rel=0.2)
    assert apart["high"] - apart["low"] > 3 * (alike["high"] - alike["low"])
    assert interval([[1.0] * 10]) == {"mean": 1.0, "low": 1.0, "high": 1.0}
