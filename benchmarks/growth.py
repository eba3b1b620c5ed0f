"""How cost grows with the pairs, the response, the batch, the model, the replies at once: tables and a picture."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from matplotlib import pyplot as plt

from benchmarks.memory import SHAPES
from benchmarks.side_by_side import peak_memory, the_500_pairs
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.retail import world
from part3_pretrain.runtime.files import atomic_write
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.dataset import Pair, draw_pairs, make_datasets, save_pairs
from part4_sft.encoding import Example, PairEncoder
from part4_sft.formats import load_pairs
from part4_sft.generation import Sampling, generate
from part4_sft.report import BLUE, markdown_table
from part4_sft.training import train

VOCABULARY = 2048
PAIRS = (500, 5_000, 50_000)
RESPONSE_LENGTHS = (32, 64, 128, 256, 512)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
MODELS = {
    "2M": ModelConfig(VOCABULARY, 192, 512, 4, 4, 4),
    "10M": ModelConfig(VOCABULARY, 384, 1024, 5, 6, 6),
    "35M": ModelConfig(VOCABULARY, 576, 1536, 8, 9, 3),
    "135M": SHAPES["135M (SmolLM2)"],
}
REPLIES_AT_ONCE = (1, 4, 16, 64, 256)
MADE = (1_000, 10_000, 50_000)

Row = tuple[float, float]  # how many, and the cost of one


def main(out_dir: Path) -> str:
    made = {count: cost_of_making(count) for count in MADE}
    panels: dict[str, tuple[str, list[Row]]] = {
        "pairs": ("ms a pair: load, tokenise, train", [(n, 1000 * cost_of_pairs(n)) for n in PAIRS]),
        "response tokens": ("ms a token trained on", [(n, 1000 * cost_of_length(n)) for n in RESPONSE_LENGTHS]),
        "pairs a step": ("ms a pair", [(n, 1000 * cost_of_batch(n)) for n in BATCH_SIZES]),
        "parameters": ("ns a token and parameter", [cost_of_model(shape) for shape in MODELS.values()]),
        "replies at once": ("ms a reply", [(n, 1000 * cost_of_replies(n)) for n in REPLIES_AT_ONCE]),
        "pairs made": ("ms a pair made and written", [(n, 1000 * cost) for n, (cost, _) in made.items()]),
    }
    tables = []
    for number, (cost, points) in panels.items():
        rows = [[number, *(f"{n:,}" for n, _ in points)], [cost, *(f"{each:.3g}" for _, each in points)]]
        tables += [markdown_table(rows[0], rows[1:]), ""]
    peaks = ", ".join(f"{n:,} pairs: {peak:.0f} MB" for n, (_, peak) in made.items())
    tables.append(f"Making pairs, memory at the peak of a process of its own: {peaks}.")
    draw(panels, out_dir / "growth.png")
    return "\n".join([*tables, "", f"written: {out_dir / 'growth.png'}"])


def seconds_of(work: Callable[[], object], rounds: int = 2) -> float:
    """The least of several runs: what else the machine does can only add to it."""
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def train_on(model: Transformer, examples: Sequence[Example], batch_size: int = 8) -> None:
    train(model, examples, SFTConfig(epochs=1, batch_size=batch_size), after_epoch=lambda epoch, loss: None)


def write_pairs(path: Path, count: int) -> None:
    """Ideal pairs, written as they are drawn."""
    save_pairs(path, draw_pairs(count, world.ideal_reply, set(), Random(0), held_out_item=False))


def cost_of_pairs(count: int) -> float:
    """Seconds a pair, from the file to the end of an epoch; model and texts are so small that the rest shows."""
    tokenizer = load_checkpoint(DEFAULT_CHECKPOINT).tokenizer
    model = Transformer(ModelConfig(tokenizer.get_vocab_size(), 32, 64, 1, 2, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.json"
        save_pairs(path, (Pair(f"Where is order {n}?", f"Order {n} is on its way.") for n in range(count)))

        def work() -> None:
            train_on(model, PairEncoder(tokenizer, eos_id=1).encode_all(load_pairs(path)), batch_size=64)

        return seconds_of(work, rounds=2 if count > 5_000 else 4) / count  # few pairs are soon done, so oftener


def cost_of_length(length: int) -> float:
    rng, prompt = Random(0), 32
    model = Transformer(ModelConfig(VOCABULARY, max_positions=1024))
    rows = [[rng.randrange(2, VOCABULARY) for _ in range(prompt + length)] for _ in range(32)]
    examples = [Example(row, [IGNORE_INDEX] * prompt + row[prompt:]) for row in rows]
    return seconds_of(lambda: train_on(model, examples)) / (len(rows) * (prompt + length))


def cost_of_batch(size: int) -> float:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    examples = the_500_pairs(checkpoint.tokenizer)[:128]
    return seconds_of(lambda: train_on(checkpoint.model, examples, size)) / len(examples)


def cost_of_model(shape: ModelConfig) -> Row:
    """Parameters, and nanoseconds a token for each of them."""
    model = Transformer(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    examples = the_500_pairs(load_checkpoint(DEFAULT_CHECKPOINT).tokenizer)[: 8 if parameters > 1e8 else 32]
    tokens = sum(len(example.ids) for example in examples)
    return parameters, 1e9 * seconds_of(lambda: train_on(model, examples)) / tokens / parameters


def cost_of_replies(at_once: int) -> float:
    checkpoint = load_checkpoint(DEFAULT_CHECKPOINT)
    encoder = PairEncoder(checkpoint.tokenizer, eos_id=1)
    data = make_datasets(0)
    prompts = [encoder.encode_prompt(pair.context, 300) for pair in data["sft_test"] + data["sft_validation"]][:256]
    prompts = prompts[: max(8, at_once)]
    return seconds_of(lambda: generate(checkpoint.model, prompts, Sampling(), batch_size=at_once)) / len(prompts)


def cost_of_making(count: int) -> tuple[float, float]:
    """Seconds a pair and the peak in MB, of a process that makes and writes so many."""
    command = [sys.executable, "-m", "benchmarks.growth", str(count)]
    seconds, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(seconds) / count, float(peak)


def make(count: int) -> None:
    """Prints seconds and megabytes."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_pairs(Path(folder) / "pairs.json", count)
        print(time.perf_counter() - start, peak_memory() / 1e6)


def draw(panels: dict[str, tuple[str, list[Row]]], path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for panel, (number, (cost, points)) in zip(axes.flat, panels.items()):
        panel.plot(*zip(*points), "o-", color=BLUE)
        panel.set(title=cost, xlabel=number, xscale="log", ylim=(0, 1.15 * max(each for _, each in points)))
        labels = [f"{n / 1e6:.0f}M" if n > 1e6 else f"{n:,}" for n, _ in points]
        panel.set_xticks([n for n, _ in points], labels=labels)
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    make(int(sys.argv[1]))
