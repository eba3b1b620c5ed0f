"""Every number format, in one process or several, replicated or sharded, with and without LoRA.

A training that is killed goes on to the same bits, and what is saved is what was learnt.
"""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import peft  # noqa: F401, so that not every process of a test imports it anew
import pytest
import torch

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part4_sft import sft
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.formats import load_pairs
from part4_sft.training import masked_loss, mean_loss, training_step
from tests.conftest import in_folder
from tests.processes import SMALL_STEPS, at_step, in_a_process, in_ranks, small_sft

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
    keeps_bfloat16 = "bfloat16" in more and not {"--shard", "--lora-rank"} & set(more)
    assert keeps_bfloat16 == all(bool((weight == weight.bfloat16()).all()) for weight in weights.values())


@pytest.mark.parametrize("more", [LORA, [*BFLOAT16, *LORA]], ids=" ".join)
def test_the_last_validation_is_of_what_is_saved(more: list[str], options: list[str], tmp_path: Path) -> None:
    assert in_a_process(sft.main, [*options, *more, *in_folder(tmp_path)]) == 0
    by_epoch = json.loads((tmp_path / "outputs" / "evaluation.json").read_text())["by_epoch"]
    saved = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt", dtype=None)
    encoder = PairEncoder(saved.tokenizer, saved.model.config.eos_ids[0])
    pairs = load_pairs(Path(options[options.index("--validation-data") + 1]))
    loss = mean_loss(saved.model.eval(), encoder.encode_all(pairs))
    assert len(by_epoch) == 2 and by_epoch[-1]["validation_loss"] == pytest.approx(loss, rel=1e-6)


def test_the_norm_of_gradients_in_bfloat16_is_exact(tiny_model: Transformer, encoder: PairEncoder) -> None:
    model = copy.deepcopy(tiny_model).bfloat16()
    examples = encoder.encode_all([Pair("Where is my tent?", "It is on its way.")])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms: list[float] = []

    def keep_norm(*call: object) -> None:
        gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
        norms.append(torch.cat(gradients).double().norm().item())

    optimizer.register_step_pre_hook(keep_norm)
    loss_module = distributed.data_parallel(model, masked_loss, shard=False, param_dtype=torch.bfloat16)
    step = training_step(loss_module, optimizer, examples)
    assert norms == [pytest.approx(step.gradient_norm, rel=1e-5)]


def test_a_sharded_model_keeps_no_whole_gradients_between_micro_batches(
    tiny_model: Transformer, encoder: PairEncoder
) -> None:
    """They are exchanged after each micro-batch: what a process keeps is its part of them."""
    examples = encoder.encode_all([Pair(f"Where is tent {n}?", "It is on its way.") for n in range(6)])
    has_part: list[bool] = []

    def main() -> None:
        with distributed.process_group(shard=True):
            loss_module = distributed.data_parallel(tiny_model, masked_loss, shard=True, param_dtype=torch.float32)
            optimizer = torch.optim.SGD(tiny_model.parameters(), lr=0.1)
            loss_module.register_forward_pre_hook(
                lambda *call: has_part.append(all(weight.grad is not None for weight in tiny_model.parameters()))
            )
            training_step(loss_module, optimizer, examples, micro_batch_size=1)
            assert has_part == [False, True, True]

    assert in_ranks(main, 2) == [0, 0]
