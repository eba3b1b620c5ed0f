from __future__ import annotations

from random import Random
from statistics import fmean

import pytest

from part4_sft.comparison import compare, paired_bootstrap


def test_the_bootstrap_finds_a_clear_gain_and_none_in_noise() -> None:
    rng = Random(0)
    before = [rng.gauss(0, 1) for _ in range(200)]
    better = [value + rng.gauss(0.5, 1) for value in before]
    noise = [value + rng.choice([-1, 1]) for value in before]

    found = paired_bootstrap(before, better, seed=0)
    low, high = found["ci95"]
    assert found["difference"] == pytest.approx(fmean(better) - fmean(before))
    assert 0 < low < found["difference"] < high
    assert found["p_value"] < 0.01

    found = paired_bootstrap(before, noise, seed=0)
    low, high = found["ci95"]
    assert low < 0 < high and found["p_value"] > 0.05
    assert paired_bootstrap(before, before, seed=0) == {"difference": 0, "ci95": [0, 0], "p_value": 1}


def test_the_bootstrap_is_seeded_and_agrees_with_a_naive_one() -> None:
    rng = Random(1)
    before = [rng.random() for _ in range(50)]
    after = [rng.random() for _ in range(50)]
    found = paired_bootstrap(before, after, seed=0)
    assert found == paired_bootstrap(before, after, seed=0) != paired_bootstrap(before, after, seed=1)

    gains = [b - a for a, b in zip(before, after)]
    means = sorted(fmean(rng.choices(gains, k=50)) for _ in range(5000))
    assert found["ci95"] == pytest.approx([means[125], means[4875]], abs=0.01)
    assert found["p_value"] == pytest.approx(2 * sum(mean <= 0 for mean in means) / 5000, abs=0.03)


def test_the_comparison_takes_the_mean_over_the_samples_of_a_context() -> None:
    def entry(reference: str, before: list[str], after: list[str]) -> dict[str, object]:
        samples = {"pretrained": [{"text": text} for text in before], "sft": [{"text": text} for text in after]}
        return {"reference": reference, "samples": samples}

    found = compare([entry("one two", ["x", "x"], ["one two", "x"]), entry("three", ["three", "y"], ["y", "three"])], 0)
    assert set(found) == {"bleu", "rouge_l"}  # no rating where the rubric does not apply
    assert found["rouge_l"]["difference"] == pytest.approx((0.5 + 0) / 2)
