"""Is it better to fine-tune on few good replies or on many typical ones? python -m benchmarks.quality_vs_quantity

LIMA (Zhou et al. 2023) and AlpaGasus (Chen et al. 2024) found that a small set of good replies beats a large one of
mixed quality. Here the same pretrained checkpoint is fine-tuned for the same number of optimizer steps on 500 good
pairs, 500 others, and all 5,000; then on 50 to 500 good ones; then for 1 to 10 epochs. Each with three seeds, which
decide the choice and order of the pairs and the sampling.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from tqdm import tqdm

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.retail import rubric, world
from part3_pretrain.runtime.cli import PATH, exit_status, option, parse
from part3_pretrain.runtime.files import atomic_write, check_writable
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, make_datasets
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling
from part4_sft.metrics import bleu, generate_replies, recognise
from part4_sft.report import BLUE, ORANGE, markdown_table
from part4_sft.training import train

SEEDS, STEPS = (0, 1, 2), 315  # 315 steps are five epochs of 500 pairs in batches of 8
FEWER, LONGEST = (50, 100, 200), 10  # pairs and epochs of the two learning curves
OTHER_TEST_SEED = 1000  # contexts of the same kind as the test's, so that the test itself stays untouched
RESAMPLES = 10_000

Found = dict[str, list[list[float]]]  # "BLEU" and "rated 4.0 or more", for each seed and each context


@dataclass(frozen=True)
class Config:
    """What can be chosen; `--help` explains each."""

    model: Path = option(Path("checkpoints/pretrained.pt"), "checkpoint that every run starts from", **PATH)
    out_dir: Path = option(Path("outputs"), "folder for quality_vs_quantity.json, .md and .png", **PATH)


def main() -> None:
    config = parse(
        Config,
        prog="python -m benchmarks.quality_vs_quantity",
        description="Fine-tunes the same checkpoint on good, typical and all pairs, on fewer pairs and for longer.",
        example="python -m benchmarks.quality_vs_quantity --out-dir docs",
    )
    check_writable(config.out_dir)
    model, encoder = loaded(config.model)
    pairs, test = make_datasets(0)["sft_dataset"], make_datasets(OTHER_TEST_SEED)["sft_test"]
    good, others = [pair for pair in pairs if pair.high_quality], [pair for pair in pairs if not pair.high_quality]
    choices: dict[str, Callable[[Random], list[Pair]]] = {
        "500 high-quality pairs": lambda rng: good,
        "500 others": lambda rng: rng.sample(others, 500),
        "all 5,000": lambda rng: pairs,
        **{f"{count} high-quality pairs": partial(Random.sample, population=good, k=count) for count in FEWER},
    }
    results: dict[str, Found] = {}
    for seed in SEEDS:
        add(results.setdefault("nothing", {}), scores(model, encoder, test, seed))
    with tqdm(total=len(SEEDS) * (len(choices) + 1), desc="fine-tuning runs", unit="run", disable=None) as bar:
        for name, choose in choices.items():
            for seed in SEEDS:
                chosen = choose(Random(seed))
                (found,) = fine_tune(config.model, in_steps(chosen, seed), test, 1, seed)
                add(results.setdefault(name, {}), found)
                bar.update()
        for seed in SEEDS:
            for epoch, found in enumerate(fine_tune(config.model, good, test, LONGEST, seed), start=1):
                add(results.setdefault(f"epoch {epoch}", {}), found)
            bar.update()
    write(
        config.out_dir,
        {name: {measure: interval(found[measure]) for measure in found} for name, found in results.items()},
    )


def in_steps(pairs: list[Pair], seed: int) -> list[Pair]:
    """As many pairs as `STEPS` batches hold, in one go: all of them over and over, each time in another order."""
    rng = Random(f"order/{seed}")
    repeated: list[Pair] = []
    while len(repeated) < STEPS * SFTConfig.batch_size:
        repeated += rng.sample(pairs, len(pairs))
    return repeated[: STEPS * SFTConfig.batch_size]


def fine_tune(
    checkpoint: Path, pairs: list[Pair], test: list[Pair], epochs: int, seed: int
) -> list[dict[str, list[float]]]:
    """Fine-tunes the checkpoint on all of the pairs; returns the scores of every test context after each epoch."""
    model, encoder = loaded(checkpoint)
    found = []

    def evaluate(epoch: int, train_loss: float) -> None:
        found.append(scores(model, encoder, test, seed))

    train(model, encoder.encode_all(pairs), SFTConfig(epochs=epochs, seed=seed), evaluate)
    return found


def loaded(path: Path) -> tuple[Transformer, PairEncoder]:
    checkpoint = load_checkpoint(path)
    return checkpoint.model, PairEncoder(checkpoint.tokenizer, checkpoint.model.config.eos_ids[0])


def scores(model: Transformer, encoder: PairEncoder, test: list[Pair], seed: int) -> dict[str, list[float]]:
    """What the model's reply to every test context scores."""
    scenarios: list[world.Scenario] = recognise(test)  # type: ignore[assignment]  # what is made is recognised
    replies = generate_replies(model, encoder, test, Sampling(), seed).texts
    ratings = [rubric.rate(scenario, reply).score for scenario, reply in zip(scenarios, replies)]
    return {
        "BLEU": [bleu(reply, pair.response) for reply, pair in zip(replies, test)],
        "rated 4.0 or more": [float(rating >= rubric.HIGH_QUALITY) for rating in ratings],
    }


def add(to: Found, found: dict[str, list[float]]) -> None:
    for measure, values in found.items():
        to.setdefault(measure, []).append(values)


def interval(scores: list[list[float]]) -> dict[str, float]:
    """The mean over seeds and contexts, and its 95% interval when both are drawn anew (bootstrap).

    Args:
        scores: one list a seed, with one score a context.
    """
    table = torch.tensor(scores, dtype=torch.float64)  # (seeds, contexts)
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(table.shape[1], (RESAMPLES, table.shape[1]), generator=generator)
    seeds = torch.randint(len(table), (RESAMPLES, len(table)), generator=generator)
    by_seed = torch.stack([row[contexts].mean(dim=1) for row in table])  # (seeds, resamples)
    means = by_seed.gather(0, seeds.T).mean(dim=0)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"mean": table.mean().item(), "low": low, "high": high}


def write(folder: Path, results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Writes the numbers, their table and the picture, and prints the table."""
    rows = [
        [name, *(f"{found['mean']:.3f} ({found['low']:.3f} to {found['high']:.3f})" for found in measures.values())]
        for name, measures in results.items()
    ]
    table = markdown_table(["fine-tuned on", *next(iter(results.values()))], rows)
    paths = {ending: folder / f"quality_vs_quantity.{ending}" for ending in ("json", "md", "png")}
    with atomic_write(paths["json"]) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    with atomic_write(paths["md"]) as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 4), sharey=True, layout="constrained")
    kinds = {
        "nothing": "none",
        "500 high-quality pairs": "500\nhigh-quality",
        "500 others": "500\nothers",
        "all 5,000": "all\n5,000",
    }
    draw(left, [results[kind] for kind in kinds], range(4), "")
    left.set(title=f"which pairs, {STEPS} steps", xticks=range(4), xticklabels=kinds.values(), xlim=(-0.5, 3.5))
    left.set(ylabel="score (0 to 1)", ylim=(0, 1.05))
    counts = [*FEWER, 500]
    draw(middle, [results[f"{count} high-quality pairs"] for count in counts], counts, "-")
    middle.set(title=f"how many, {STEPS} steps", xlabel="high-quality pairs", xscale="log")
    middle.set(xticks=counts, xticklabels=counts)
    middle.minorticks_off()
    draw(right, [results[f"epoch {epoch}"] for epoch in range(1, LONGEST + 1)], range(1, LONGEST + 1), "-")
    right.set(title="how long, 500 high-quality pairs", xlabel="epochs", xticks=range(1, LONGEST + 1))
    left.legend(loc="upper right")
    with atomic_write(paths["png"]) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
    print(table)
    print("\nwritten:", *paths.values())


def draw(axes: Axes, results: list[dict[str, dict[str, float]]], places: list[int] | range, line: str) -> None:
    """Means with their intervals."""
    for (measure, color), marker in zip({"rated 4.0 or more": BLUE, "BLEU": ORANGE}.items(), "os"):
        means = [found[measure]["mean"] for found in results]
        errors = [
            [found[measure]["mean"] - found[measure]["low"] for found in results],
            [found[measure]["high"] - found[measure]["mean"] for found in results],
        ]
        axes.errorbar(places, means, errors, fmt=marker + line, color=color, capsize=4, label=measure)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
