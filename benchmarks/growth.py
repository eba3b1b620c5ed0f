"""How cost grows with the pairs, the response, the batch, the model, the replies at once: tables and a picture."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

from benchmarks import our_side
from benchmarks.memory import SHAPES
from benchmarks.side_by_side import peak_memory, run_python, seconds_of
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.loss_curve import BLUE, new_figure, save_figure
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.retail import world
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, draw_pairs, make_datasets, save_pairs
from part4_sft.encoding import Example
from part4_sft.formats import load_pairs
from part4_sft.generation import Sampling, generate
from part4_sft.report import markdown_table

VOCABULARY = 2048
PAIR_COUNTS = (500, 5_000, 50_000)
RESPONSE_LENGTHS = (32, 64, 128, 256, 512)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MODELS = {
    "2M": ModelConfig(VOCABULARY, 192, 512, 4, 4, 4),
    "10M": ModelConfig(VOCABULARY, 384, 1024, 5, 6, 6),
    "35M": ModelConfig(VOCABULARY, 576, 1536, 8, 9, 3),
    "135M": SHAPES["135M (SmolLM2)"],
}
REPLY_COUNTS = (1, 4, 16, 64, 256)  # written at once
MADE_COUNTS = (1_000, 10_000, 50_000)

Row = tuple[float, float]  # how many, and the cost of one


class Panel(NamedTuple):
    """A table and a panel of the picture: what grows, what one of it costs, and what was measured."""

    title: str  # what is done
    number: str  # what grows
    cost: str  # of one, with its unit
    points: Sequence[Row]


def main(out_dir: Path) -> str:
    made = {count: cost_of_making(count) for count in MADE_COUNTS}
    lengths = [(n, 1000 * cost_of_length(n)) for n in RESPONSE_LENGTHS]
    batches = [(n, 1000 * cost_of_batch(n)) for n in BATCH_SIZES]
    models = [cost_of_model(shape) for shape in MODELS.values()]
    panels = [
        Panel("Load, tokenise, train", "pairs", "ms per pair", [(n, 1000 * cost_of_pairs(n)) for n in PAIR_COUNTS]),
        Panel("Train on longer responses", "tokens of a response", "ms per response token", lengths),
        Panel("Train with larger batches", "pairs in a step", "ms per pair", batches),
        Panel("Train larger models", "parameters", "ns per token and parameter", models),
        Panel("Generate", "replies at once", "ms per reply", [(n, 1000 * cost_of_replies(n)) for n in REPLY_COUNTS]),
        Panel("Make and write data", "pairs", "ms per pair", [(n, 1000 * cost) for n, (cost, _) in made.items()]),
    ]
    lines = []
    for title, number, cost, points in panels:
        header = [number, *(f"{n:,}" for n, _ in points)]
        lines += [markdown_table(header, [[f"{title}: {cost}", *(f"{each:.3g}" for _, each in points)]]), ""]
    peaks = ", ".join(f"{n:,} pairs: {peak:.0f} MB" for n, (_, peak) in made.items())
    lines.append(f"Making pairs, memory at the peak of a process of its own: {peaks}.")
    draw(panels, out_dir / "growth.png")
    return "\n".join([*lines, "", f"written: {out_dir / 'growth.png'}"])


def least_seconds(work: Callable[[], object], rounds: int = 2) -> float:
    """Return the least of several runs: what else the machine does can only add to it."""
    return min(seconds_of(work) for _ in range(rounds))


def cost_of_pairs(count: int) -> float:
    """Return seconds a pair, from file to the end of an epoch; model and texts are so small that the rest shows."""
    _, encoder = our_side.load_model()
    model = Transformer(ModelConfig(encoder.tokenizer.get_vocab_size(), 32, 64, 1, 2, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.json"
        save_pairs(path, (Pair(f"Where is order {n}?", f"Order {n} is on its way.") for n in range(count)))

        def load_and_train() -> None:
            our_side.fine_tune(model, encoder.encode_all(load_pairs(path)), SFTConfig(epochs=1, batch_size=64))

        rounds = 2 if count > 5_000 else 4  # few pairs are soon done
        return least_seconds(load_and_train, rounds) / count


def cost_of_length(response_length: int) -> float:
    """Return seconds a token, for 32 pairs with prompts of 32 tokens."""
    rng, prompt_length = Random(0), 32
    model = Transformer(ModelConfig(VOCABULARY, max_positions=1024))
    rows = [[rng.randrange(2, VOCABULARY) for _ in range(prompt_length + response_length)] for _ in range(32)]
    examples = [Example(row, [IGNORE_INDEX] * prompt_length + row[prompt_length:]) for row in rows]
    return least_seconds(lambda: our_side.fine_tune(model, examples)) / our_side.count_tokens(examples)


def cost_of_batch(size: int) -> float:
    """Return seconds a pair, for steps of so many."""
    model, encoder = our_side.load_model()
    examples, config = our_side.encode_good_pairs(encoder)[:128], SFTConfig(epochs=1, batch_size=size)
    return least_seconds(lambda: our_side.fine_tune(model, examples, config)) / len(examples)


def cost_of_model(shape: ModelConfig) -> Row:
    """Return the number of parameters, and nanoseconds a token for each of them."""
    model, (_, encoder) = Transformer(shape), our_side.load_model()
    parameters = our_side.count_parameters(model)
    examples = our_side.encode_good_pairs(encoder)[: 8 if parameters > 1e8 else 32]
    seconds = least_seconds(lambda: our_side.fine_tune(model, examples))
    return parameters, 1e9 * seconds / our_side.count_tokens(examples) / parameters


def cost_of_replies(at_once: int) -> float:
    """Return seconds a reply, of so many written at once."""
    model, encoder = our_side.load_model()
    data = make_datasets(0)
    prompts = our_side.encode_prompts(encoder, data["sft_test"] + data["sft_validation"])[: max(8, at_once)]
    return least_seconds(lambda: generate(model, prompts, Sampling(), batch_size=at_once)) / len(prompts)


def cost_of_making(count: int) -> tuple[float, float]:
    """Return seconds a pair and the peak in MB, of a process that makes and writes so many."""
    seconds, peak = run_python("-m", "benchmarks.growth", str(count)).split()
    return float(seconds) / count, float(peak)


def make(count: int) -> None:
    """Make and write ideal pairs, and print seconds and megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        draw_customer = partial(world.draw_customer, held_out_item=False)
        pairs = draw_pairs(count, draw_customer, world.ideal_reply, set(), Random(0))
        print(seconds_of(lambda: save_pairs(Path(folder) / "pairs.json", pairs)), peak_memory() / 1e6)


def draw(panels: list[Panel], path: Path) -> None:
    """Draw one panel for each cost, all from zero."""
    figure = new_figure(11, 6.5)
    figure.suptitle("What one costs, by how many there are: a flat line means twice as many take twice as long")
    for axes, (title, number, cost, points) in zip(figure.subplots(2, 3).flat, panels):
        axes.plot(*zip(*points), "o-", color=BLUE)
        axes.set(title=title, xlabel=f"{number} (logarithmic)", ylabel=cost)
        axes.set(xscale="log", ylim=(0, 1.15 * max(each for _, each in points)))
        labels = [f"{n / 1e6:.0f}M" if n > 1e6 else f"{n:,.0f}" for n, _ in points]
        axes.set_xticks([n for n, _ in points], labels=labels)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    make(int(sys.argv[1]))
