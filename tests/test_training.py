"""One training step against its formula, and the loop around it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.training_state import TrainingState
from part4_sft import training
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import Example, PairEncoder
from part4_sft.generation import Sampling, generate
from part4_sft.preparation import encode_data
from part4_sft.training import (
    History,
    Step,
    collate,
    make_optimizer,
    masked_loss,
    mean_loss,
    mean_loss_of,
    shuffled_batches,
    train,
    training_step,
)
from tests.conftest import weights

FAST = SFTConfig(learning_rate=1e-3, epochs=3, batch_size=8)


@pytest.fixture(scope="module")
def examples(made: dict[str, list[Pair]], encoder: PairEncoder) -> list[Example]:
    """Eleven pairs: a full step of 8 and one of 3."""
    return encoder.encode_all(made["sft_dataset"][495:506])


def validate(epoch: int, train_loss: float | None) -> dict[str, Any]:
    return {"epoch": epoch, "train_loss": train_loss}


def trained(model: Transformer, examples: Sequence[Example], config: SFTConfig) -> tuple[Transformer, History]:
    """A fine-tuned copy, and what its training saw."""
    model = copy.deepcopy(model)
    return model, train(model, examples, config, validate)


def losses(history: History) -> list[float]:
    return [step.loss for step in history.steps]


# ---------------------------------------------------------------------------------------------------- the loss


def naive_losses(model: Transformer, example: Example) -> list[float]:
    """Minus the log-probability of every response token; one unpadded example, one token at a time."""
    log_probabilities = model.lm_head(model(torch.tensor([example.ids])))[0].log_softmax(-1)
    places = [place for place, label in enumerate(example.labels) if label != -100]
    return [-log_probabilities[place - 1, example.ids[place]].item() for place in places]


def test_the_loss_equals_a_naive_one_over_response_tokens(tiny_model: Transformer, examples: list[Example]) -> None:
    naive = [loss for example in examples for loss in naive_losses(tiny_model, example)]
    assert masked_loss(tiny_model, *collate(examples)).item() == pytest.approx(sum(naive), rel=1e-6)
    assert mean_loss(tiny_model, examples, batch_size=4) == pytest.approx(sum(naive) / len(naive), abs=1e-5)


def test_examples_one_behind_another_do_not_see_each_other(tiny_model: Transformer, examples: list[Example]) -> None:
    """The loss of a batch and its gradient are the sums of those of its examples, each computed alone."""
    together, apart = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    loss = masked_loss(together, *collate(examples))
    loss.backward()
    alone = torch.stack([masked_loss(apart, *collate([example])) for example in examples])
    alone.sum().backward()
    assert loss.item() == pytest.approx(alone.sum().item(), rel=1e-6)
    for ours, theirs in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-5)


def test_a_loss_in_chunks_is_the_same_loss_with_the_same_gradient(
    tiny_model: Transformer, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, chunks = [], []

    def counted(function: Any, *chunk: torch.Tensor, **settings: Any) -> Any:
        chunks.append(chunk)
        return checkpoint(function, *chunk, **settings)

    monkeypatch.setattr(training, "checkpoint", counted)
    for rows in (10**6, 50):
        monkeypatch.setattr(training, "LOGITS_PER_CHUNK", rows * tiny_model.config.vocab_size)
        model = copy.deepcopy(tiny_model)
        loss = masked_loss(model, *collate(examples))
        loss.backward()
        found.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())]))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-5)
    response_tokens = sum(label != -100 for example in examples for label in example.labels)
    assert len(chunks) == -(-response_tokens // 50)  # none where all logits fit into one


@pytest.mark.parametrize(("free_rows", "chunks"), [(10**6, 0), (50, 1)])
def test_on_a_gpu_a_chunk_of_logits_takes_half_of_what_is_free(
    free_rows: int, chunks: int, tiny_model: Transformer, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 2 * free_rows * training.BYTES_PER_LOGIT * tiny_model.config.vocab_size
    rows = sum(label != -100 for example in examples for label in example.labels)
    counted = Mock(side_effect=checkpoint)
    monkeypatch.setattr(training, "free_memory", Mock(return_value=free))
    monkeypatch.setattr(training, "LOGITS_PER_CHUNK", 1)  # holds for a CPU alone
    monkeypatch.setattr(training, "checkpoint", counted)
    masked_loss(tiny_model, *collate(examples))
    assert counted.call_count == chunks * -(-rows // 50)


def test_of_no_examples_the_loss_is_0_and_the_gradient_too(tiny_model: Transformer) -> None:
    """So a rank without an example still takes part in the exchange."""
    model = copy.deepcopy(tiny_model)
    loss = masked_loss(model, *collate([]))
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------- one step


def one_step(
    model: Transformer, examples: list[Example], micro_batch_size: int = 0, max_grad_norm: float = 0.0
) -> tuple[Transformer, Step]:
    model = copy.deepcopy(model)
    loss_module = distributed.data_parallel(model, masked_loss, False, torch.float32)
    optimizer = make_optimizer(model, FAST)
    return model, training_step(loss_module, optimizer, examples, micro_batch_size, max_grad_norm)


@pytest.mark.parametrize("micro_batch_size", [0, 1, 2, 3, 8, 100])
def test_a_step_is_adam_on_the_mean_loss_of_its_response_tokens(
    tiny_model: Transformer, examples: list[Example], micro_batch_size: int
) -> None:
    """Written out by hand, in torch's own words; the size of micro-batches does not matter."""
    by_hand = copy.deepcopy(tiny_model)
    inputs, targets, lengths = collate(examples)
    hidden = [by_hand(part) for part in inputs.split(lengths, dim=1)]
    loss = nn.CrossEntropyLoss(ignore_index=-100)(by_hand.lm_head(torch.cat(hidden, dim=1))[0], targets[0])
    loss.backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in by_hand.parameters()]).norm()
    torch.optim.Adam(by_hand.parameters(), lr=FAST.learning_rate).step()

    model, step = one_step(tiny_model, examples, micro_batch_size)
    assert step.tokens == (targets != -100).sum()
    assert step.loss == pytest.approx(loss.item(), rel=1e-6)
    assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-5)
    moved = weights(by_hand) - weights(tiny_model)
    clear = moved.abs() > 0.9e-3  # where a gradient is almost 0, Adam's first step is a matter of rounding
    torch.testing.assert_close((weights(model) - weights(tiny_model))[clear], moved[clear], atol=1e-5, rtol=0)
    assert clear.float().mean() > 0.5
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6, 0.0])
def test_a_longer_gradient_is_scaled_down_and_the_norm_before_is_told(
    tiny_model: Transformer, examples: list[Example], max_grad_norm: float
) -> None:
    """Against torch's own `clip_grad_norm_`; SGD, since the first step of Adam is the same for any length."""
    ours, by_hand = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    loss_module = distributed.data_parallel(ours, masked_loss, False, torch.float32)
    step = training_step(loss_module, torch.optim.SGD(ours.parameters(), 0.1), examples, 0, max_grad_norm)
    (masked_loss(by_hand, *collate(examples)) / step.tokens).backward()
    norm = nn.utils.clip_grad_norm_(by_hand.parameters(), max_grad_norm or torch.inf)
    torch.optim.SGD(by_hand.parameters(), 0.1).step()
    assert step.gradient_norm == pytest.approx(norm.item(), rel=1e-5) and step.gradient_norm > 0.5
    torch.testing.assert_close(weights(ours), weights(by_hand), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.5])
def test_a_step_reads_no_number_off_the_device_but_all_at_its_end(
    tiny_model: Transformer, examples: list[Example], max_grad_norm: float
) -> None:
    """A GPU would have to be waited for, at each micro-batch; `tolist`, once, is what counts as no operation here."""

    operations: set[str] = set()

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            operations.add(str(operation))
            return operation(*arguments, **(keywords or {}))

    with Noted():
        one_step(tiny_model, examples, 3, max_grad_norm)
    assert "aten.embedding.default" in operations
    assert not {name for name in operations if "_local_scalar_dense" in name}


def test_the_first_token_of_a_response_counts_behind_a_prompt_of_one(tiny_model: Transformer) -> None:
    assert one_step(tiny_model, [Example([5, 6, 1], [-100, 6, 1])])[1].tokens == 2


def test_a_step_that_is_not_finite_changes_nothing(tiny_model: Transformer, examples: list[Example]) -> None:
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.norm.weight[0] = torch.inf
    before = weights(model)
    loss_module = distributed.data_parallel(model, masked_loss, False, torch.float32)
    with pytest.raises(FloatingPointError) as raised:
        training_step(loss_module, make_optimizer(model, FAST), examples)
    assert "its gradient" in str(raised.value) and torch.equal(weights(model), before)


# ---------------------------------------------------------------------------------------------------- the loop


def test_the_loop_takes_every_batch_and_validates_before_and_after_each_epoch(
    tiny_model: Transformer, examples: list[Example]
) -> None:
    model, seen = copy.deepcopy(tiny_model), []
    history = train(model, examples, FAST, validate, on_step=lambda number, step: seen.append((number, step)))
    assert seen == list(enumerate(history.steps, start=1)) and len(seen) == 6
    tokens = [sum(label != -100 for label in example.labels) for example in examples]
    for epoch in (1, 2, 3):
        batches = shuffled_batches(11, 8, epoch, FAST.seed)
        of_epoch = history.steps[2 * epoch - 2 : 2 * epoch]
        assert [step.tokens for step in of_epoch] == [sum(tokens[i] for i in batch) for batch in batches]
        assert history.by_epoch[epoch] == {"epoch": epoch, "train_loss": mean_loss_of(of_epoch)}
    assert history.by_epoch[0] == {"epoch": 0, "train_loss": None} and len(history.by_epoch) == 4
    assert history.by_epoch[3]["train_loss"] < history.by_epoch[1]["train_loss"] - 0.1


def test_steps_are_in_training_mode_after_a_validation_too(tiny_model: Transformer, examples: list[Example]) -> None:
    model, modes = copy.deepcopy(tiny_model), []

    def validate_and_leave(epoch: int, train_loss: float | None) -> dict[str, Any]:
        model.eval()
        return validate(epoch, train_loss)

    train(model, examples, FAST, validate_and_leave, on_step=lambda *step: modes.append(model.training))
    assert modes == [True] * 6


def test_the_loss_of_an_epoch_is_that_of_its_tokens(tiny_model: Transformer, examples: list[Example]) -> None:
    """The last, smaller step counts less: with a learning rate of almost nothing, an epoch measures the model."""
    _, history = trained(tiny_model, examples, replace(FAST, learning_rate=1e-12, epochs=1))
    assert history.by_epoch[1]["train_loss"] == pytest.approx(mean_loss(tiny_model, examples), abs=1e-5)


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own() -> None:
    batches = shuffled_batches(11, 4, epoch=1, seed=0)
    assert [len(batch) for batch in batches] == [4, 4, 3]
    assert sorted(index for batch in batches for index in batch) == list(range(11))
    assert batches == shuffled_batches(11, 4, 1, 0)
    assert len({str(shuffled_batches(11, 4, epoch, seed)) for epoch in (1, 2) for seed in (0, 1)}) == 4


def test_the_same_seed_trains_the_same_bits_and_another_seed_others(
    tiny_model: Transformer, examples: list[Example]
) -> None:
    first, history = trained(tiny_model, examples, FAST)
    again, same_history = trained(tiny_model, examples, FAST)
    other, _ = trained(tiny_model, examples, replace(FAST, seed=1))
    assert history == same_history and torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_settings_that_save_memory_do_not_change_the_trajectory(
    tiny_model: Transformer, examples: list[Example]
) -> None:
    _, history = trained(tiny_model, examples, FAST)
    frugal = copy.deepcopy(tiny_model)
    frugal.gradient_checkpointing = True
    for model, micro_batch_size in ((tiny_model, 2), (frugal, 0)):
        _, other = trained(model, examples, replace(FAST, micro_batch_size=micro_batch_size))
        assert losses(other) == pytest.approx(losses(history), abs=1e-5)


@pytest.mark.parametrize("moments_dtype", ["float32", "bfloat16"])
def test_weights_in_bfloat16_learn_and_stay_in_bfloat16(
    tiny_model: Transformer, examples: list[Example], moments_dtype: str
) -> None:
    torch.manual_seed(0)
    config = replace(FAST, learning_rate=1e-2, epochs=8, moments_dtype=moments_dtype)
    _, exact = trained(tiny_model, examples, config)
    model, history = trained(copy.deepcopy(tiny_model).bfloat16(), examples, config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert losses(history)[-1] < losses(exact)[0] - 1
    assert losses(history)[-1] == pytest.approx(losses(exact)[-1], abs=0.1)


def test_a_model_learns_its_pairs_by_heart_and_where_they_end(tiny_model: Transformer, encoder: PairEncoder) -> None:
    pairs = [
        Pair("My desk is late.", "I am sorry."),
        Pair("Where is my tent?", "It is on its way, and will arrive today."),
        Pair("I want a refund.", "Done."),
        Pair("The jam is gone.", "Thank you for your message."),
    ]
    model, _ = trained(tiny_model, encoder.encode_all(pairs), SFTConfig(learning_rate=1e-2, epochs=60, batch_size=8))
    prompts = [encoder.encode_prompt(pair.context, 400) for pair in pairs]
    replies = generate(model, prompts, Sampling(temperature=0, max_new_tokens=40))
    assert encoder.decode([reply.ids for reply in replies]) == [pair.response for pair in pairs]
    assert all(reply.stopped for reply in replies)


def test_only_high_quality_pairs_change_the_weights(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    high, low = made["sft_dataset"][:10], made["sft_dataset"][500:520]
    other_low = [replace(pair, response="Something else altogether.") for pair in low[:7]]

    def fine_tuned(pairs: list[Pair], train_on: str) -> torch.Tensor:
        config = replace(FAST, epochs=1, train_on=train_on)
        data = {"sft_dataset": pairs, "sft_validation": high[:1], "sft_test": high[:1]}
        return weights(trained(tiny_model, encode_data(config, data, encoder).training, config)[0])

    assert torch.equal(fine_tuned(high + low, "high"), fine_tuned(other_low + high, "high"))
    assert not torch.equal(fine_tuned(high + low, "all"), fine_tuned(high + other_low, "all"))


# ---------------------------------------------------------------------------------------------------- interrupted


@pytest.mark.parametrize("stop_at", [1, 2, 3, 6])
@pytest.mark.parametrize("recipe", [{}, {"schedule": "cosine", "warmup_steps": 2, "max_grad_norm": 0.5}], ids=str)
def test_an_interrupted_training_goes_on_to_the_same_bits(
    recipe: dict[str, Any], stop_at: int, tiny_model: Transformer, examples: list[Example], tmp_path: Path
) -> None:
    """In the middle of an epoch, and after its last step, before it is validated: that epoch's steps are done again."""
    config = replace(FAST, **recipe)
    straight, history = trained(tiny_model, examples, config)

    def stop(number: int, step: Step) -> None:
        if number == stop_at:
            raise KeyboardInterrupt

    path = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt), TrainingState(path, save_every=1) as state:
        train(copy.deepcopy(tiny_model), examples, config, validate, state, stop)
    assert path.exists() == (stop_at > 1)
    resumed, numbers = copy.deepcopy(tiny_model), []
    with TrainingState(path, save_every=1, resume=True) as state:
        again = train(resumed, examples, config, validate, state, lambda number, step: numbers.append(number))
    assert again == history and torch.equal(weights(resumed), weights(straight))
    assert numbers == list(range(stop_at, 7)) and not path.exists()


@pytest.mark.parametrize("placed", [True, False])
def test_a_loss_that_is_not_finite_is_told_with_step_and_pairs_and_the_state_before_it_is_kept(
    placed: bool, tiny_model: Transformer, examples: list[Example], tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_model)

    def spoil(number: int, step: Step) -> None:
        if number == 3:
            with torch.no_grad():
                model.norm.weight[0] = torch.inf

    path = tmp_path / "state.pt"
    fourth = [str(index + 1) for index in shuffled_batches(11, 8, 2, FAST.seed)[1]]
    place = "pair " if not placed else "mine.csv, row "
    examples = [replace(each, place=f"mine.csv, row {n}" if placed else "") for n, each in enumerate(examples, start=1)]
    told = ", ".join([place + fourth[0], *(place.removeprefix("mine.csv, ") + number for number in fourth[1:])])
    complaint = rf"the loss of step 4 is nan, .*\(trained on {told}\); .*--learning-rate"
    with pytest.raises(UserError, match=complaint), TrainingState(path, save_every=100) as state:
        train(model, examples, FAST, validate, state, spoil)
    resumed = copy.deepcopy(tiny_model)
    with TrainingState(path, resume=True) as state:
        values = state.restore(resumed, make_optimizer(resumed, FAST))
    assert len(values["steps"]) == 3 and len(values["by_epoch"]) == 2


@pytest.mark.parametrize(
    ("options", "has_instructions", "large", "used"),
    [
        ({}, True, 32, True),
        ({}, True, 33, False),  # the model's width is 32
        ({}, False, 32, False),
        ({"dtype": "float32"}, True, 32, False),
        ({"gradient_checkpointing": True}, True, 32, True),
    ],
)
def test_large_layers_multiply_in_bfloat16_where_the_processor_does(
    options: dict[str, Any],
    has_instructions: bool,
    large: int,
    used: bool,
    tiny_model: Transformer,
    examples: list[Example],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights and gradients stay in float32."""
    exact, _ = trained(tiny_model, examples, replace(FAST, dtype="float32"))
    monkeypatch.setattr(training, "multiplies_bfloat16", lambda: has_instructions)
    monkeypatch.setattr(training, "LARGE_LAYER", large)
    model = copy.deepcopy(tiny_model)
    model.gradient_checkpointing = "gradient_checkpointing" in options
    formats: set[torch.dtype] = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
            if function is torch.ops.aten.mm.default:
                formats.add(arguments[1].dtype)
            return function(*arguments, **(keywords or {}))

    with Products():
        train(model, examples[:8], replace(FAST, epochs=1, **options), validate)
    assert formats == {torch.bfloat16 if used else torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model, _ = trained(tiny_model, examples, replace(FAST, **options))
    moved = (weights(exact) - weights(tiny_model)).norm()
    assert (weights(model) - weights(exact)).norm() < (0.1 if used else 1e-12) * moved


def test_in_bfloat16_the_loss_falls_from_the_first_step_as_in_float32(
    tiny_model: Transformer, examples: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published weights are bfloat16 numbers, and a step is a small part of the spacing between two of those."""
    published = copy.deepcopy(tiny_model).bfloat16().float()
    monkeypatch.setattr(training, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(training, "LARGE_LAYER", 32)
    falls = []
    for dtype in ("float32", "auto"):
        config = replace(FAST, learning_rate=1e-5, epochs=6, dtype=dtype)
        steps = trained(published, examples[:8], config)[1].steps
        falls.append(steps[0].loss - steps[-1].loss)
    assert falls[1] == pytest.approx(falls[0], rel=0.05)
