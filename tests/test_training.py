from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from part3_pretrain.model import Transformer
from part4_sft import training
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import Example, Examples, PairEncoder, collate, shuffled_steps
from part4_sft.generation import Sampling, generate
from part4_sft.stages import chosen, fine_tune, tokenised
from part4_sft.training import masked_loss, mean_loss, train

FAST = SFTConfig(learning_rate=1e-3, epochs=3)


@pytest.fixture(scope="module")
def examples(made: dict[str, list[Pair]], encoder: PairEncoder) -> Examples:
    """Eleven pairs: a full step of 8 and one of 3."""
    return encoder.examples(made["sft_dataset"][495:506])


def trained(model: Transformer, examples: Sequence[Example], config: SFTConfig) -> tuple[Transformer, list[float]]:
    """A fine-tuned copy, and the loss of every step."""
    model = copy.deepcopy(model)
    steps = train(model, examples, config, after_epoch=lambda epoch, loss: None)
    return model, [step.loss for step in steps]


def weights(model: Transformer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


# ---------------------------------------------------------------------------------------------------- the loss


def naive_losses(model: Transformer, example: Example) -> list[float]:
    """Minus the log-probability of every response token; one unpadded example, one token at a time."""
    log_probabilities = model.lm_head(model(torch.tensor([example.ids])))[0].log_softmax(-1)
    places = [place for place, label in enumerate(example.labels) if label != -100]
    return [-log_probabilities[place - 1, example.ids[place]].item() for place in places]


def test_the_loss_equals_a_naive_one_over_response_tokens(tiny_model: Transformer, examples: Examples) -> None:
    losses = [loss for example in examples for loss in naive_losses(tiny_model, example)]
    batch = masked_loss(tiny_model, *collate(examples)).item()
    assert batch / len(losses) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert mean_loss(tiny_model, examples, batch_size=4) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_examples_one_behind_another_do_not_see_each_other(tiny_model: Transformer, examples: Examples) -> None:
    """The loss of a batch and its gradient are the sums of those of its examples, each computed alone."""
    together, apart = copy.deepcopy(tiny_model), copy.deepcopy(tiny_model)
    loss = masked_loss(together, *collate(examples))
    loss.backward()
    losses = [masked_loss(apart, *collate([example])) for example in examples]
    torch.stack(losses).sum().backward()
    assert loss.item() == pytest.approx(sum(one.item() for one in losses), rel=1e-6)
    for ours, theirs in zip(together.parameters(), apart.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-5)


def test_a_loss_in_chunks_is_the_same_loss_with_the_same_gradient(
    tiny_model: Transformer, examples: Examples, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (training.LOGITS_AT_ONCE, 50 * tiny_model.config.vocab_size, 1):
        monkeypatch.setattr(training, "LOGITS_AT_ONCE", at_once)
        model = copy.deepcopy(tiny_model)
        loss = masked_loss(model, *collate(examples[: 2 if at_once == 1 else 11]))
        loss.backward()
        found.append(torch.cat([loss.detach()[None], *(p.grad.flatten() for p in model.parameters())]))
        assert mean_loss(model, examples) == pytest.approx(mean_loss(tiny_model, examples), abs=1e-6)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-5)
    assert found[2][0] < found[0][0]


def test_the_context_has_no_gradient_but_through_attention(tiny_model: Transformer, examples: Examples) -> None:
    """Nothing is asked of the last block at the context's places: that much work is saved."""
    model = copy.deepcopy(tiny_model)
    seen: list[torch.Tensor] = []
    model.norm.register_full_backward_hook(lambda module, inputs, outputs: seen.extend(outputs))
    masked_loss(model, *collate(examples[:1])).backward()
    (gradient,) = seen
    assert len(gradient) == sum(label != -100 for label in examples[0].labels)
    assert (gradient.abs().sum(-1) > 0).all()


# ---------------------------------------------------------------------------------------------------- the loop


def test_accumulation_does_not_change_the_trajectory(tiny_model: Transformer, examples: Examples) -> None:
    whole, losses = trained(tiny_model, examples, FAST)
    assert len(losses) == 6
    for parts in (4, 8):
        accumulated, its_losses = trained(tiny_model, examples, replace(FAST, gradient_accumulation_steps=parts))
        assert its_losses == pytest.approx(losses, abs=1e-5)
        assert torch.allclose(weights(accumulated), weights(whole), atol=1e-5)
    assert not torch.allclose(weights(whole), weights(tiny_model), atol=1e-4)


def test_gradient_checkpointing_does_not_change_the_trajectory(tiny_model: Transformer, examples: Examples) -> None:
    model, losses = trained(tiny_model, examples, FAST)
    frugal = copy.deepcopy(tiny_model)
    frugal.gradient_checkpointing = True
    frugal, its_losses = trained(frugal, examples, FAST)
    assert its_losses == pytest.approx(losses, abs=1e-6)
    assert torch.allclose(weights(frugal), weights(model), atol=1e-6)


def test_the_gradient_norm_of_a_step_is_that_of_its_mean_loss(tiny_model: Transformer, examples: Examples) -> None:
    config = replace(FAST, epochs=1, gradient_accumulation_steps=4)
    (first, _) = train(copy.deepcopy(tiny_model), examples, config, after_epoch=lambda epoch, loss: None)
    model = copy.deepcopy(tiny_model)
    step = [examples[place] for place in shuffled_steps(len(examples), 8, 1, config.seed)[0]]
    inputs, targets, lengths = collate(step)
    (masked_loss(model, inputs, targets, lengths) / (targets != -100).sum()).backward()
    assert first.gradient_norm == pytest.approx(
        torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item(), rel=1e-5
    )


@pytest.mark.parametrize("moments_dtype", ["float32", "bfloat16"])
def test_weights_in_bfloat16_learn_and_stay_in_bfloat16(
    tiny_model: Transformer, examples: Examples, moments_dtype: str
) -> None:
    torch.manual_seed(0)
    config = replace(FAST, learning_rate=1e-2, epochs=8, moments_dtype=moments_dtype)
    _, exact = trained(tiny_model, examples, config)
    model, losses = trained(copy.deepcopy(tiny_model).bfloat16(), examples, config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert losses[-1] < exact[0] - 1 and losses[-1] == pytest.approx(exact[-1], abs=0.1)


def test_the_loss_of_a_step_is_that_of_its_tokens(tiny_model: Transformer, examples: Examples) -> None:
    """Also of the last, smaller step: with a learning rate of almost nothing, an epoch measures the untrained model."""
    means: list[float] = []
    config = replace(FAST, learning_rate=1e-12, epochs=1)
    train(copy.deepcopy(tiny_model), examples, config, after_epoch=lambda epoch, loss: means.append(loss))
    assert means == pytest.approx([mean_loss(tiny_model, examples)], abs=1e-5)


def test_the_same_seed_trains_the_same_bits_and_another_seed_others(
    tiny_model: Transformer, examples: Examples
) -> None:
    first, losses = trained(tiny_model, examples, FAST)
    again, same_losses = trained(tiny_model, examples, FAST)
    other, _ = trained(tiny_model, examples, replace(FAST, seed=1))
    assert losses == same_losses and torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_a_model_learns_its_pairs_by_heart_and_where_they_end(tiny_model: Transformer, encoder: PairEncoder) -> None:
    pairs = [
        Pair("My desk is late.", "I am sorry."),
        Pair("Where is my tent?", "It is on its way, and will arrive today."),
        Pair("I want a refund.", "Done."),
        Pair("The jam is gone.", "Thank you for your message."),
    ]
    examples = [encoder.example(pair) for pair in pairs]
    model, _ = trained(tiny_model, examples, SFTConfig(learning_rate=1e-2, epochs=60))
    replies = generate(
        model,
        [encoder.prompt(pair.context, 400) for pair in pairs],
        Sampling(temperature=0, max_new_tokens=40),
    )
    assert encoder.texts([reply.ids for reply in replies]) == [pair.response for pair in pairs]
    assert all(reply.stopped for reply in replies)


# ---------------------------------------------------------------------------------------------------- which pairs


def test_only_high_quality_pairs_change_the_weights(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    high, low = made["sft_dataset"][:10], made["sft_dataset"][500:520]
    other_low = [replace(pair, response="Something else altogether.") for pair in low[:7]]

    def fine_tuned(pairs: list[Pair], train_on: str) -> torch.Tensor:
        model = copy.deepcopy(tiny_model)
        config = SFTConfig(epochs=1, learning_rate=1e-3, max_new_tokens=2, train_on=train_on)
        data = {"sft_dataset": pairs, "sft_validation": high[:1], "sft_test": high[:1]}
        training, validation = tokenised(config, data, encoder)
        fine_tune(model, encoder, training.examples, validation, data, config, timing={})
        return weights(model)

    assert torch.equal(fine_tuned(high + low, "high"), fine_tuned(other_low + high, "high"))
    assert not torch.equal(fine_tuned(high + low, "all"), fine_tuned(high + other_low, "all"))


def test_train_on_chooses_the_pairs() -> None:
    pairs = [Pair("a", "b", 0), Pair("c", "d", 1), Pair("e", "f", 0)]
    assert chosen(pairs, SFTConfig()) == pairs[1:2]
    assert chosen(pairs, SFTConfig(train_on="all")) == pairs
