from __future__ import annotations

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.side_by_side import Measured, alternate, largest_difference, table
from tests.conftest import Command


def test_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Measured:
        order.append(name)
        return Measured(seconds, 100)

    found = alternate({"part4_sft": lambda: side("ours", 1.0), "other": lambda: side("theirs", 4.0)}, rounds=3)
    assert order == ["ours", "theirs"] * 4
    assert [len(runs) for runs in found.values()] == [3, 3]
    assert "4.00x" in table(found, "tokens/s")


def test_curves_of_different_lengths_are_not_compared() -> None:
    assert largest_difference([1.0, 2.1], [1.0, 2.0]) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="cannot be compared"):
        largest_difference([1.0], [1.0, 2.0])


def test_a_benchmark_that_is_not_there(run_main: Command) -> None:
    status, _, told = run_main(benchmarks.main, "speed")
    assert status == 2 and told.startswith("error: there is no benchmark speed; there are step")
