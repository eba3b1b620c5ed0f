"""The assignment, point by point, on a run of `python -m part4_sft.sft` with a tiny model."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part4_sft import training
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.evaluation import evaluate_sft_vs_pretrained
from part4_sft.generation import Sampling, generate, sample
from part4_sft.metrics import compute_instruction_following_metrics
from part4_sft.training import make_optimizer
from tests.conftest import FinishedRun, weights


def test_1_there_are_5000_pairs_of_which_the_first_500_are_high_quality(made: dict[str, list[Pair]]) -> None:
    assert [pair.high_quality for pair in made["sft_dataset"]] == [1] * 500 + [0] * 4500


def test_2_only_high_quality_pairs_give_gradients(finished_run: FinishedRun) -> None:
    evaluation = finished_run.read("evaluation.json")
    assert (evaluation["dataset"]["sft_dataset"], evaluation["dataset"]["trained_on"]) == (24, 16)
    assert len(evaluation["steps"]["loss"]) == 2 * 16 / 8


def test_3_weights_start_from_the_pretrained_checkpoint(finished_run: FinishedRun, tiny_checkpoint: Path) -> None:
    before, after = load_checkpoint(tiny_checkpoint), load_checkpoint(finished_run.checkpoint)
    assert after.model.config == before.model.config and after.tokenizer.to_str() == before.tokenizer.to_str()
    moved = (weights(after.model) - weights(before.model)).abs()
    assert 0 < moved.max() <= 1.5 * 0.001 * 4  # Adam moves a weight by about its learning rate in each of 4 steps


def test_4_adam_5e_5_5_epochs_and_a_loss_over_the_response_alone(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    config = SFTConfig()
    optimizer = make_optimizer(tiny_model, config)
    assert type(optimizer) is torch.optim.Adam and optimizer.param_groups[0]["lr"] == 5e-5 and config.epochs == 5
    assert isinstance(training.cross_entropy, nn.CrossEntropyLoss) and training.cross_entropy.ignore_index == -100
    example = encoder.encode(made["sft_dataset"][0])
    context = encoder.tokenizer.encode(f"Customer: {made['sft_dataset'][0].context}\nAgent:").ids
    assert example.labels[: len(context)] == [-100] * len(context)
    assert example.labels[len(context) :] == example.ids[len(context) :]
    assert example.labels[-1] == encoder.tokenizer.token_to_id("<EOS>") != encoder.tokenizer.token_to_id("<PAD>")


def test_5_bleu_and_rouge_l_of_generated_text(finished_run: FinishedRun) -> None:
    entries = finished_run.read("replies.json")
    references = [entry["reference"] for entry in entries]
    for author in ("pretrained", "sft"):
        by_sample = [[entry["samples"][author][number]["text"] for entry in entries] for number in (0, 1)]
        scores = [compute_instruction_following_metrics(texts, references) for texts in by_sample]
        for measure in ("bleu", "rouge_l"):
            mean = (scores[0][measure] + scores[1][measure]) / 2
            assert finished_run.read("evaluation.json")[author][measure] == pytest.approx(mean)
    parameters = list(inspect.signature(evaluate_sft_vs_pretrained).parameters)
    assert parameters[:6] == ["pretrained", "sft", "encoder", "pairs", "sampling", "seed"]


def test_6_both_models_answer_the_same_contexts_in_numbers_and_in_text(
    finished_run: FinishedRun, made: dict[str, list[Pair]]
) -> None:
    entries, evaluation = finished_run.read("replies.json"), finished_run.read("evaluation.json")
    assert [entry["context"] for entry in entries] == [pair.context for pair in made["sft_test"][:10]]
    assert all(entry["pretrained"] and entry["sft"] for entry in entries)
    assert set(evaluation["comparison"]["bleu"]) == {"difference", "ci95", "p_value"}


def test_7_generation_samples_with_temperature_stops_at_eos_and_never_draws_pad(tiny_model: Transformer) -> None:
    noise = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits = torch.tensor([9.0, 2.0, 1.0, 0.0]).repeat(2000, 1)  # the first is <PAD>
    drawn = sample(logits, noise, Sampling(temperature=0.5), pad_id=0).bincount(minlength=4) / 2000
    torch.testing.assert_close(drawn[1:], torch.tensor([4.0, 2.0, 0.0]).softmax(0), atol=0.03, rtol=0)
    assert drawn[0] == 0
    model = copy.deepcopy(tiny_model)
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))  # all tokens alike, <EOS> too
    replies = generate(model, [[5, 6]] * 1 + [[7]], Sampling(max_new_tokens=400))
    assert any(reply.stopped and len(reply.ids) < 400 for reply in replies)
    assert all(token not in (0, 1) for reply in replies for token in reply.ids)


def test_8_a_run_writes_every_file_and_names_it(finished_run: FinishedRun) -> None:
    names = {path.name for path in finished_run.out.iterdir()}
    assert names >= {
        "sft_dataset.json",
        "sft_validation.json",
        "sft_test.json",
        "sft_test_unseen_wording.json",
        "sft_test_unseen_phrase.json",
        "loss_curve.png",
        "evaluation.json",
        "replies.json",
        "README_Part4_SFT_Comprehensive.md",
    }
    assert [path.name for path in finished_run.checkpoint.parent.iterdir()] == ["sft_model.pt"]
    assert all(path.stat().st_size for path in finished_run.out.iterdir())
    assert all(f"/{name}\n" in finished_run.printed for name in (*names, "sft_model.pt"))
