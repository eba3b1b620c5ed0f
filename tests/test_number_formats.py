"""Every number format, in one process or several, replicated or sharded, with and without LoRA.

A training that is killed goes on to the same bits, and what is saved is what was learnt.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import peft  # noqa: F401, so that not every process of a test imports it anew
import pytest
import torch

from part3_pretrain.checkpoint import load_checkpoint
from part4_sft import sft
from tests.conftest import in_folder
from tests.processes import SMALL_STEPS, at_step, in_ranks, small_sft

STEPS = SMALL_STEPS // 2
BFLOAT16, MOMENTS, LORA = ["--dtype", "bfloat16"], ["--moments-dtype", "bfloat16"], ["--lora-rank", "2"]
COMBINATIONS = [  # all that the options allow
    [],
    BFLOAT16,
    [*BFLOAT16, *MOMENTS],
    LORA,
    [*BFLOAT16, *LORA],
    [*BFLOAT16, *MOMENTS, *LORA],
    ["--shard"],
    ["--shard", *BFLOAT16],
]
SLOW = [pytest.param(more, marks=pytest.mark.slow) for more in COMBINATIONS if more != BFLOAT16]


@pytest.fixture(scope="module")
def options(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*small_sft(tmp_path_factory.mktemp("data"), tiny_checkpoint), "--epochs", "1"]


@pytest.mark.parametrize("more", [BFLOAT16, *SLOW], ids=" ".join)
def test_processes_that_are_killed_and_resumed_end_with_the_same_bits(
    more: list[str], options: list[str], tmp_path: Path
) -> None:
    straight, killed = ([*options, *more, *in_folder(tmp_path / name)] for name in ("straight", "killed"))
    assert in_ranks(sft.main, 2, straight) == [0, 0]
    assert in_ranks(sft.main, 2, killed, at_step(5), rank=1) == [2, -signal.SIGKILL]
    assert in_ranks(sft.main, 2, [*killed, "--resume"], at_step(STEPS)) == [0, 0]  # of fewer
    results = []
    for name in ("straight", "killed"):
        evaluation = json.loads((tmp_path / name / "outputs" / "evaluation.json").read_text())
        model = load_checkpoint(tmp_path / name / "checkpoints" / "sft_model.pt", dtype=None).model
        results.append((evaluation["steps"], evaluation["by_epoch"], model.state_dict()))
    (steps, by_epoch, weights), (steps_resumed, by_epoch_resumed, weights_resumed) = results
    assert len(steps["loss"]) == STEPS and steps == steps_resumed and by_epoch == by_epoch_resumed
    torch.testing.assert_close(weights, weights_resumed, rtol=0, atol=0)
