from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import __main__ as benchmarks
from benchmarks.memory import SHAPES, WAYS, compute
from benchmarks.our_side import count_operations
from benchmarks.side_by_side import Measured, alternate, largest_difference, table
from part3_pretrain.model import Transformer
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.training import collate, masked_loss
from tests.conftest import Command, assert_refused


@pytest.mark.parametrize("warm_up", [True, False])
def test_sides_take_turns_and_the_first_round_is_not_counted(warm_up: bool) -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Measured:
        order.append(name)
        return Measured(seconds if len(order) > 2 else 1000.0, 100)

    runs = alternate({"part4_sft": lambda: side("ours", 1.0), "other": lambda: side("theirs", 4.0)}, 3, warm_up)
    assert order == ["ours", "theirs"] * (4 if warm_up else 3)
    row = [cell.strip() for cell in table(runs, "tokens/s").splitlines()[-1].split("|")[1:-1]]
    assert row == ["other", "25", "25 to 25" if warm_up else "0 to 25", "3", "4.00x"]


def test_curves_of_different_lengths_are_not_compared() -> None:
    assert largest_difference([1.0, 2.1, 4.0], [1.0, 2.0, 4.0]) == pytest.approx(0.05)
    with pytest.raises(ValueError, match="1 values cannot be compared with 2"):
        largest_difference([1.0], [1.0, 2.0])


def test_memory_is_computed_from_the_number_formats() -> None:
    """134,515,008 parameters of 16, 12 and 8 bytes; of LoRA 2 each, and 10 for each of 4,884,480 trainable ones."""
    shape = SHAPES["135M (SmolLM2)"]
    assert [round(compute(shape, config), 3) for config in WAYS.values()] == [2.152, 1.614, 1.076, 0.318]


def test_context_tokens_are_not_credited_with_products_that_they_skip(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    """torch's own counter sees the same operations in a step; what attention computes itself is counted by neither."""
    examples = encoder.encode_all(made["sft_dataset"][:6])
    model = copy.deepcopy(tiny_model)
    with FlopCounterMode(display=False) as counter:
        masked_loss(model, *collate(examples)).backward()
    assert counter.get_flop_counts()["Global"][torch.ops.aten.mm] == count_operations(model, examples)


def test_a_benchmark_that_is_not_there(run_main: Command) -> None:
    assert_refused(run_main(benchmarks.main, "speed"), "there is no benchmark speed; there are step, large,")
