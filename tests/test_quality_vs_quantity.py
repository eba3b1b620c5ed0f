from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

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


def test_the_interval_holds_the_mean_and_is_wider_where_seeds_or_intents_differ() -> None:
    each_its_own, two = range(100), [index % 2 for index in range(100)]
    alike = [[0.5, 0.7] * 50] * 3
    apart = [[0.2, 0.4] * 50, [0.5, 0.7] * 50, [0.8, 1.0] * 50]
    intervals = [interval(*arguments) for arguments in ((alike, each_its_own), (apart, each_its_own), (alike, two))]
    widths = [each["high"] - each["low"] for each in intervals]
    assert all(each["mean"] == pytest.approx(0.6) and each["low"] < 0.6 < each["high"] for each in intervals)
    assert widths[1] > 10 * widths[0] and widths[2] > 3 * widths[0]
    assert interval([[1.0] * 10] * 3, range(10)) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert interval([[1.0] * 9 + [0.9]] * 2 + [[0.8] * 10], range(10))["high"] == 1.0  # no score is higher


def test_the_interval_of_three_seeds_covers_what_other_seeds_would_show() -> None:
    rng, covered = Random(0), 0
    for _ in range(100):
        contexts = [rng.gauss(0.5, 0.05) for _ in range(20)]
        scores = [[one + shift for one in contexts] for shift in (rng.gauss(0, 0.05) for _ in range(3))]
        each = interval(scores, range(20))
        covered += each["low"] <= 0.5 <= each["high"]
    assert covered >= 93  # seeds drawn anew like contexts: 79
