"""The stages of a run, in the order in which `sft.py` calls them: data, fine-tuning, evaluation, files."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from part3_pretrain.bfloat16 import multiplies_bfloat16
from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.retail.world import Scenario
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, check_not_folder, check_writable
from part3_pretrain.runtime.log import log
from part3_pretrain.runtime.training_state import TrainingState, digest_of_weights, settings
from part4_sft import dataset, metrics, report
from part4_sft.baselines import most_common_replies, nearest_replies
from part4_sft.comparison import compare
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import Example, PairEncoder
from part4_sft.extras.lora import add_lora, check_peft, merge_lora
from part4_sft.extras.streaming import TrainingData, beginning, streamed
from part4_sft.extras.tensorboard import TensorBoard, check_tensorboard
from part4_sft.failures import errors_by_category, worst_replies
from part4_sft.formats import load_pairs
from part4_sft.generation import Sampling
from part4_sft.metrics import Entry, SideBySide, evaluate_sft_vs_pretrained, score
from part4_sft.robustness import disturbed
from part4_sft.training import Step, mean_loss, train

MODEL_FILE, STATE_FILE = "sft_model.pt", "sft_model.state.pt"
HOPELESS = 100.0  # nats a token; guessing among all tokens costs 13 at most
# Settings; what the files named by some of them hold does decide.
DECIDE_NOTHING = {"model", "data", "validation_data", "test_data", "out_dir", "checkpoint_dir", "samples_per_context"}
DECIDE_NOTHING |= {"save_every", "resume", "tensorboard"}
UNSEEN = {"unseen_wording": "sft_test_unseen_wording", "unseen_phrase": "sft_test_unseen_phrase"}


def prepare_data(config: SFTConfig) -> dict[str, list[Pair]]:
    """The data sets by the names of their files.

    Those that the user named are read. Pairs of the retail world are tested with the retail world's test sets; from
    any others, and wherever --test-fraction says so, a share is held out.
    """
    given = {
        name: beginning(path) if config.stream and path == config.data else load_pairs(path)
        for name, path in {
            "sft_dataset": config.data,
            "sft_validation": config.validation_data,
            "sft_test": config.test_data,
        }.items()
        if path
    }
    if config.stream:
        return given
    pairs = given.get("sft_dataset", [])
    usable = chosen(pairs, config)
    if pairs and not usable:
        raise UserError(f"{config.data} holds no pair with high_quality 1; label some, or use --train-on all")
    if not pairs or (config.test_fraction is None and metrics.recognise(usable)):
        data = dataset.make_datasets(config.seed) | given
    else:
        contexts = len({pair.context for pair in usable})
        most = {"sft_test": dataset.TEST_PAIRS, "sft_validation": dataset.VALIDATION_PAIRS}
        share = max(1, round((config.test_fraction or 0.1) * contexts))
        sizes = {name: share if config.test_fraction else min(share, most[name]) for name in most if name not in given}
        try:
            parts = dataset.hold_out(usable, list(sizes.values()), config.seed)
        except ValueError as error:
            raise UserError(f"{config.data}: {error}; name --test-data and --validation-data") from error
        held_out = {pair.context for part in parts for pair in part}
        data = given | dict(zip(sizes, parts))
        # A pair that does not train may have the context of one that is held out: left out, it would be lost uncounted.
        data["sft_dataset"] = [pair for pair in pairs if pair.context not in held_out or not chosen([pair], config)]
    trained = {pair.context for pair in chosen(data["sft_dataset"], config)}
    for name in ("sft_validation", "sft_test"):
        if known := sum(pair.context in trained for pair in data[name]):
            note = f"note: {known} of {len(data[name])} contexts of {name} are in the training data too"
            print(note, file=sys.stderr)
    return data


def chosen(pairs: list[Pair], config: SFTConfig) -> list[Pair]:
    """The pairs that give gradients."""
    return [pair for pair in pairs if dataset.trains(pair, config.train_on)]


def tokenised(
    config: SFTConfig, data: dict[str, list[Pair]], encoder: PairEncoder
) -> tuple[TrainingData, Sequence[Example]]:
    """The pairs that give gradients, and those for validation, as examples."""
    # Those for the test too, for one that does not fit is better told of now than after the training.
    sets = {name: data[f"sft_{name}"] for name in ("validation", "test")}
    if config.stream and config.data:
        found = encoder.sets(sets)
        return streamed(config.data, encoder, config.train_on, config.out_dir), found["validation"]
    pairs = data["sft_dataset"]
    found = encoder.sets({"training": chosen(pairs, config), **sets})
    return TrainingData(found["training"], len(pairs), _digest(pairs)), found["validation"]


def fine_tune(
    model: Transformer,
    encoder: PairEncoder,
    examples: Sequence[Example],
    validation_examples: Sequence[Example],
    data: dict[str, list[Pair]],
    config: SFTConfig,
    timing: dict[str, float],
    state: TrainingState | None = None,
) -> tuple[list[Step], list[dict[str, Any]]]:
    """Trains the model in place; returns every step and, for every epoch from 0, what validation says."""
    validation = data["sft_validation"]
    scenarios = metrics.recognise(validation)
    by_epoch: list[dict[str, Any]] = []
    state = state or TrainingState()
    state.attach(by_epoch=by_epoch)
    seconds: dict[str, float] = {}
    is_first = distributed.rank() == 0
    board = TensorBoard(config.tensorboard, config.learning_rate) if config.tensorboard and is_first else None

    def validate(epoch: int, train_loss: float | None) -> None:
        with timed(f"epoch {epoch}", seconds):
            validation_loss = mean_loss(model, validation_examples)
            if not validation_loss < HOPELESS:  # nor is NaN
                advice = "choose a smaller --learning-rate" if epoch else "this model knows nothing; name another"
                raise UserError(f"the loss is {validation_loss} after epoch {epoch}; {advice}")
            replies = metrics.generate_replies(model, encoder, validation, sampling(config), config.seed)
            scores = score(replies, validation, scenarios)
            by_epoch.append(
                {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "validation_loss": validation_loss,
                    **{name: scores[name] for name in report.PRINTED if name in scores},
                }
            )
            log(report.epoch_in_words(by_epoch[-1]))
            if board:
                board.epoch(by_epoch[-1])

    with timed("fine_tuning", timing):
        if not by_epoch:
            validate(0, None)
        lora = add_lora(model, config.lora_rank) if config.lora_rank else None
        model.gradient_checkpointing = config.gradient_checkpointing
        trained: Any = torch.compile(model) if config.compile else model
        steps = train(trained, examples, config, validate, state, board.step if board else None)
        if lora:
            merge_lora(lora)
    timing["validation"] = round(sum(seconds.values()), 2)
    timing["fine_tuning"] = round(timing["fine_tuning"] - timing["validation"], 2)
    return steps, by_epoch


def decided_by(
    config: SFTConfig, training: TrainingData, data: dict[str, list[Pair]], model: Transformer
) -> dict[str, Any]:
    """All that decides what the training of this model comes to, by names for messages."""
    digests = {f"the digest of {name}": _digest(pairs) for name, pairs in data.items() if name != "sft_dataset"}
    digests["the digest of sft_dataset"] = training.digest
    digests["the digest of the weights to begin with"] = digest_of_weights(model)
    return settings(config, but=DECIDE_NOTHING) | digests


def _digest(pairs: list[Pair]) -> str:
    return sha256(json.dumps([(pair.context, pair.response, pair.high_quality) for pair in pairs]).encode()).hexdigest()


def evaluate(
    pretrained: Transformer, sft: Transformer, encoder: PairEncoder, data: dict[str, list[Pair]], config: SFTConfig
) -> tuple[dict[str, Any], dict[str, list[Entry]]]:
    """Both models on every test set, the ceiling, the baselines, and what goes wrong; and all texts by test set."""
    pairs, training = data["sft_test"], chosen(data["sft_dataset"], config) or data["sft_dataset"]
    scenarios = metrics.recognise(pairs)

    def both(name: str, pairs: list[Pair], samples: int = 1, scenarios: list[Scenario] | None = None) -> SideBySide:
        times = f", each {samples} times" if samples > 1 else ""
        log(f"{name.replace('_', ' ')}: both models answer {len(pairs)} contexts{times} ...")
        how = (sampling(config), config.seed)
        return evaluate_sft_vs_pretrained(
            pretrained, sft, encoder, pairs, *how, samples=samples, scenarios=scenarios, name=name
        )

    test = both("test", pairs, config.samples_per_context, scenarios)
    evaluation: dict[str, Any] = {
        **test.scores,
        "samples": {"per_context": config.samples_per_context, "spread": test.spread},
        "comparison": compare(test.entries, config.seed),
    }
    entries = {"test": test.entries}
    for name, file in UNSEEN.items():
        if file not in data:
            continue
        found = both(name, data[file])
        evaluation[name], entries[name] = found.scores, found.entries
    if scenarios:
        evaluation["robustness"] = {}
        for name, (changed, wanted) in disturbed(pairs, scenarios, config.seed).items():
            found = both(name, changed, scenarios=wanted)
            evaluation["robustness"][name], entries[name] = found.scores, found.entries
        evaluation["worst_replies"] = worst_replies(test.entries)
        evaluation["errors_by_category"] = errors_by_category(test.entries)
    # Of a stream, its beginning is looked up.
    evaluation["baselines"] = {
        "nearest_pair": score(nearest_replies(training, pairs), pairs, scenarios),
        "most_common_reply": score(most_common_replies(training, pairs), pairs, scenarios),
    }
    return evaluation, entries


def save(
    checkpoint: Checkpoint,
    steps: list[Step],
    evaluation: dict[str, Any],
    entries: dict[str, list[Entry]],
    data: dict[str, list[Pair]],
    config: SFTConfig,
) -> list[Path]:
    """Writes the model, the data, the numbers, the texts, the picture and the report; returns their paths."""
    out = config.out_dir
    written = [config.checkpoint_dir / MODEL_FILE]
    made_by = {
        "from": str(config.model),
        "settings": evaluation["config"],
        "dataset": evaluation["dataset"],
        "results": {author: evaluation[author] for author in ("pretrained", "sft")},
    }
    save_checkpoint(written[0], replace(checkpoint, made_by=made_by))
    for name, pairs in data.items():
        if config.stream and name == "sft_dataset":  # only its beginning is in memory
            continue
        dataset.save_pairs(out / f"{name}.json", pairs)
        written.append(out / f"{name}.json")
    contents: dict[str, Any] = {"evaluation.json": evaluation}
    for name, replies in entries.items():
        contents["replies.json" if name == "test" else f"replies_{name}.json"] = replies
    for name, content in contents.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(out / name)
    report.save_loss_curve(out / "loss_curve.png", [step.loss for step in steps], evaluation["by_epoch"])
    report.save_report(out / "README_Part4_SFT_Comprehensive.md", evaluation)
    return [*written, out / "loss_curve.png", out / "README_Part4_SFT_Comprehensive.md"]


# ---------------------------------------------------------------------------------------------------- small parts


def sampling(config: SFTConfig) -> Sampling:
    return Sampling(config.temperature, config.top_k, config.top_p, config.max_new_tokens)


def check_options(config: SFTConfig) -> None:
    """Raises UserError where options do not go together."""
    if config.moments_dtype == "bfloat16" and config.dtype != "bfloat16":
        raise UserError("--moments-dtype bfloat16 needs --dtype bfloat16 too; float32 weights have float32 moments")
    if config.stream and not (config.data and config.validation_data and config.test_data):
        raise UserError("--stream needs --data, --validation-data and --test-data: nothing is held out of a stream")
    if config.test_fraction and not config.data:
        raise UserError("--test-fraction is a share of --data; name a file with --data too")
    others = {"--lora-rank": config.lora_rank, "--compile": config.compile}
    others["--moments-dtype bfloat16"] = config.moments_dtype == "bfloat16"  # sharded, weights are float32
    for option, is_given in others.items():
        if config.shard and is_given:
            raise UserError(f"--shard does not go together with {option}; choose one of them")
    if config.lora_rank:
        check_peft()
    if config.tensorboard:
        check_tensorboard()
        check_writable(config.tensorboard)


def check_files(config: SFTConfig) -> None:
    """Raises UserError where a folder has the name of a file that a run writes."""
    names = [path for path in config.out_dir.iterdir() if path.suffix in (".json", ".png", ".md")]
    check_not_folder(*names, *(config.checkpoint_dir / name for name in (MODEL_FILE, STATE_FILE)))


def choose_device(name: str) -> torch.device:
    """Raises UserError where cuda is asked for and there is none, or not one for each process of this machine."""
    found, needed = torch.cuda.device_count(), distributed.local_world_size()
    if name == "cuda" and not found:
        raise UserError("--device cuda cannot be used, since torch finds no such device here; try --device cpu")
    if name != "cpu" and 0 < found < needed:
        raise UserError(f"{needed} processes cannot share {found} GPUs; start one for each, or use --device cpu")
    return torch.device("cuda" if name != "cpu" and found else "cpu")


def tell_if_slow(dtype: str, device: torch.device) -> None:
    """Says that this processor computes in bfloat16 by way of something else."""
    if dtype == "bfloat16" and device.type == "cpu" and not multiplies_bfloat16():
        note = "this processor has no instructions for bfloat16, so --dtype bfloat16 saves memory but takes far longer"
        print(f"note: {note} than float32", file=sys.stderr)


@contextmanager
def timed(stage: str, timing: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    timing[stage] = round(time.perf_counter() - start, 2)
