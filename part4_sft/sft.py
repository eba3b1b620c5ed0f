"""Supervised fine-tuning from beginning to end: python -m part4_sft.sft

Makes the data, takes the pretrained checkpoint (and pretrains it first where it is missing), fine-tunes on the
high-quality pairs, lets both models answer contexts they have never seen, and writes what came out.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import load_checkpoint, save_checkpoint
from part3_pretrain.command_line import UserError, exit_status
from part3_pretrain.files import check_writable, written_whole
from part3_pretrain.model import Transformer
from part3_pretrain.pretrain import PretrainConfig, run_pretraining
from part3_pretrain.tokenizer import PAD
from part4_sft import dataset, metrics, report
from part4_sft.baselines import most_common_replies, nearest_replies
from part4_sft.comparison import compare
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig, parse_arguments
from part4_sft.dataset import Pair
from part4_sft.failures import errors_by_category, worst_replies
from part4_sft.generation import Sampling
from part4_sft.metrics import Entry, evaluate_sft_vs_pretrained, score
from part4_sft.robustness import disturbed
from part4_sft.training import mean_loss, train

UNSEEN = {"unseen_wording": "sft_test_unseen_wording", "unseen_phrase": "sft_test_unseen_phrase"}


def main() -> None:
    run(parse_arguments())


def run(config: SFTConfig) -> dict[str, Any]:
    """Does the whole of Part 4 and returns what it wrote to `evaluation.json`.

    Raises:
        UserError: an option, a file or a folder cannot be used; nothing half-written is left behind.
    """
    timing: dict[str, float] = {}
    device = choose_device(config.device)
    check_writable(config.out_dir, config.checkpoint_dir)
    torch.manual_seed(config.seed)

    with timed("data", timing):
        data = prepare_data(config)
    with timed("pretraining", timing):
        if config.model == DEFAULT_CHECKPOINT and not config.model.exists():
            print(f"{config.model} is missing, so Part 3 runs first and makes it")
            run_pretraining(PretrainConfig(seed=config.seed, checkpoint=config.model, out_dir=config.out_dir))
        pretrained, tokenizer, _ = load_checkpoint(config.model)
    if config.max_new_tokens >= pretrained.config.max_positions:
        raise UserError(f"--max-new-tokens must be below the {pretrained.config.max_positions} positions of the model")
    pretrained.to(device).eval()
    model = copy.deepcopy(pretrained)

    losses, by_epoch = fine_tune(model, tokenizer, data, config, timing)
    with timed("evaluation", timing):
        evaluation, entries = evaluate(pretrained, model, tokenizer, data, config)

    evaluation = {
        "config": {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()},
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(device),
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "timing_seconds": timing,
        "dataset": {name: len(pairs) for name, pairs in data.items()} | {"trained_on": len(chosen(data, config))},
        **evaluation,
        "by_epoch": by_epoch,
        "examples": entries["test"][:8],
    }
    written = save(model, tokenizer, losses, evaluation, entries, data, config)
    report.print_summary(evaluation, written)
    return evaluation


# ---------------------------------------------------------------------------------------------------- the stages


def prepare_data(config: SFTConfig) -> dict[str, list[Pair]]:
    """The data sets by the names of their files: the user's where a file is named, made ones elsewhere."""
    data = dataset.make_datasets(config.seed)
    if config.data:
        data["sft_dataset"] = dataset.load_pairs(config.data)
    if config.validation_data:
        data["sft_validation"] = dataset.load_pairs(config.validation_data)
    if config.test_data:
        data["sft_test"] = dataset.load_pairs(config.test_data)
    if not chosen(data, config):
        raise UserError(f"{config.data} holds no pair with high_quality 1; label some, or use --train-on all")
    return data


def chosen(data: dict[str, list[Pair]], config: SFTConfig) -> list[Pair]:
    """The pairs that give gradients."""
    return [pair for pair in data["sft_dataset"] if gives_gradients(pair, config)]


def gives_gradients(pair: Pair, config: SFTConfig) -> bool:
    return pair.high_quality == 1 or config.train_on == "all"


def fine_tune(
    model: Transformer,
    tokenizer: Tokenizer,
    data: dict[str, list[Pair]],
    config: SFTConfig,
    timing: dict[str, float],
) -> tuple[list[float], list[dict[str, Any]]]:
    """Trains the model in place; returns the loss of every step and, for every epoch from 0, what validation says."""
    max_length = min(config.max_length, model.config.max_positions)
    numbered = [entry for entry in enumerate(data["sft_dataset"], start=1) if gives_gradients(entry[1], config)]
    examples = dataset.encode_pairs(numbered, tokenizer, max_length, str(config.data or "sft_dataset"))
    validation, source = data["sft_validation"], str(config.validation_data or "sft_validation")
    validation_examples = dataset.encode_pairs(enumerate(validation, start=1), tokenizer, max_length, source)
    # A test pair that does not fit is better told of now than after the training.
    dataset.encode_pairs(
        enumerate(data["sft_test"], start=1), tokenizer, max_length, str(config.test_data or "sft_test")
    )
    pad_id = tokenizer.token_to_id(PAD)
    by_epoch: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}

    def validate(epoch: int, train_loss: float | None) -> None:
        with timed(f"epoch {epoch}", seconds):
            replies = metrics.generate_replies(model, tokenizer, validation, sampling(config), config.seed)
            scores = score(replies, validation, metrics.recognise(validation))
            by_epoch.append(
                {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "validation_loss": mean_loss(model, validation_examples, pad_id),
                    **{name: scores[name] for name in ("bleu", "rouge_l", "rated_4_or_more") if name in scores},
                }
            )

    with timed("fine_tuning", timing):
        validate(0, None)
        trained = torch.compile(model) if config.compile else model
        losses = train(trained, examples, config, pad_id, after_epoch=validate)
    timing["validation"] = round(sum(seconds.values()), 2)
    timing["fine_tuning"] = round(timing["fine_tuning"] - timing["validation"], 2)
    return losses, by_epoch


def evaluate(
    pretrained: Transformer, sft: Transformer, tokenizer: Tokenizer, data: dict[str, list[Pair]], config: SFTConfig
) -> tuple[dict[str, Any], dict[str, list[Entry]]]:
    """Both models on every test set, the ceiling, the baselines, and what goes wrong; and all texts by test set."""
    pairs, training = data["sft_test"], chosen(data, config)
    scenarios = metrics.recognise(pairs)
    models = (pretrained, sft, tokenizer)
    how = (sampling(config), config.seed)
    test = evaluate_sft_vs_pretrained(*models, pairs, *how, samples=config.samples_per_context)
    evaluation: dict[str, Any] = {
        **test.scores,
        "samples": {"per_context": config.samples_per_context, "spread": test.spread},
        "comparison": compare(test.entries, config.seed),
    }
    entries = {"test": test.entries}
    for name, file in UNSEEN.items():
        found = evaluate_sft_vs_pretrained(*models, data[file], *how, name=name)
        evaluation[name], entries[name] = found.scores, found.entries
    if scenarios:
        evaluation["robustness"] = {}
        for name, (changed, wanted) in disturbed(pairs, scenarios, config.seed).items():
            found = evaluate_sft_vs_pretrained(*models, changed, *how, scenarios=wanted, name=name)
            evaluation["robustness"][name], entries[name] = found.scores, found.entries
        evaluation["worst_replies"] = worst_replies(test.entries)
        evaluation["errors_by_category"] = errors_by_category(test.entries)
    evaluation["baselines"] = {
        "nearest_pair": score(nearest_replies(training, pairs), pairs, scenarios),
        "most_common_reply": score(most_common_replies(training, pairs), pairs, scenarios),
    }
    return evaluation, entries


def save(
    model: Transformer,
    tokenizer: Tokenizer,
    losses: list[float],
    evaluation: dict[str, Any],
    entries: dict[str, list[Entry]],
    data: dict[str, list[Pair]],
    config: SFTConfig,
) -> list[Path]:
    """Writes the model, the data, the numbers, the texts, the picture and the report; returns their paths."""
    out = config.out_dir
    written = [config.checkpoint_dir / "sft_model.pt"]
    save_checkpoint(written[0], model, tokenizer, {"from": str(config.model), "settings": evaluation["config"]})
    for name, pairs in data.items():
        dataset.save_pairs(out / f"{name}.json", pairs)
        written.append(out / f"{name}.json")
    contents: dict[str, Any] = {"evaluation.json": evaluation}
    for name, replies in entries.items():
        contents["replies.json" if name == "test" else f"replies_{name}.json"] = replies
    for name, content in contents.items():
        with written_whole(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(out / name)
    report.save_loss_curve(out / "loss_curve.png", losses, evaluation["by_epoch"])
    report.save_report(out / "README_Part4_SFT_Comprehensive.md", evaluation)
    return [*written, out / "loss_curve.png", out / "README_Part4_SFT_Comprehensive.md"]


# ---------------------------------------------------------------------------------------------------- small parts


def sampling(config: SFTConfig) -> Sampling:
    return Sampling(config.temperature, config.top_k, config.top_p, config.max_new_tokens)


def choose_device(name: str) -> torch.device:
    """Raises UserError where cuda is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda cannot be used, since torch finds no such device here; try --device cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def timed(stage: str, timing: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timing[stage] = round(time.perf_counter() - start, 2)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
