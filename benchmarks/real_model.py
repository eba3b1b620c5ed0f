"""A model from elsewhere becomes the shop's agent: as it comes, fine-tuned, and fine-tuned after reading the pages.

    python -m benchmarks.real_model prepare outputs/real
    python -m part3_pretrain.pretrain --model MODEL --corpus outputs/real/pages.txt --checkpoint checkpoints/pages.pt
    python -m part4_sft.sft --model checkpoints/pages.pt --batch-size 4 --checkpoint-dir checkpoints/real --out-dir ...
    python -m benchmarks.real_model measure MODEL checkpoints/pages.pt checkpoints/real/sft_model.pt
    python -m benchmarks.real_model losses MODEL

The pages are policies, messages with the line that the help desk files them under, and the help desk's list of what
customers say and under which name it goes: nobody replies in them.
"""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from statistics import mean

from benchmarks import our_side
from part3_pretrain import corpus
from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.retail.documents import Write, filed_message, glossary, policy
from part3_pretrain.run import DOCUMENT_END
from part3_pretrain.runtime.cli import OneLineParser, exit_status
from part4_sft.config import SFTConfig
from part4_sft.controls import with_shuffled_responses
from part4_sft.dataset import make_datasets, save_pairs, trainable
from part4_sft.evaluation import generate_replies, perturbed_sets
from part4_sft.extras.conversations import choose_template, make_encoder
from part4_sft.extras.extent import spread
from part4_sft.formats import load_pairs
from part4_sft.generation import Sampling
from part4_sft.metrics import Scores, recognise_all, score
from part4_sft.report import markdown_table
from part4_sft.training import mean_loss

PAGES: dict[Write, float] = {filed_message: 0.65, glossary: 0.2, policy: 0.15}  # and the share of each
DOCUMENTS, CONTEXTS, OTHER_TEXTS = 12_000, 100, 50
MEASURES = ("rated_4_or_more", "right_resolution", "right_item", "right_order_number", "bleu", "rouge_l")
SETS = ("test", "unseen wording", "one_typo", "lower_case", "unknown_product")


def main() -> None:
    parser = OneLineParser(prog="python -m benchmarks.real_model", description=(__doc__ or "").partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    prepare_options = commands.add_parser("prepare", help="write pages.txt and shuffled.json")
    prepare_options.add_argument("folder", type=Path)
    prepare_options.add_argument("--documents", type=int, default=DOCUMENTS, help="default: %(default)s")
    measure_options = commands.add_parser("measure", help="print a row for each model")
    measure_options.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    measure_options.add_argument("--contexts", type=int, default=CONTEXTS, help="of each set (default: %(default)s)")
    measure_options.add_argument("--texts", type=Path, help="pairs of another kind: how likely they have become")
    losses_options = commands.add_parser("losses", help="compare the loss of 50 steps in bfloat16 and in float32")
    losses_options.add_argument("model", type=Path, metavar="MODEL")
    for command in (prepare_options, measure_options):
        command.add_argument("--seed", type=int, default=0, help="of pages and contexts (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        prepare(arguments.folder, arguments.documents, arguments.seed)
        return
    if arguments.command == "losses":
        print(compare_number_formats(arguments.model))
        return
    rows = []
    for path in arguments.models:
        scores, perplexity = measure(path, arguments.contexts, arguments.texts, arguments.seed)
        row = [str(path), *(f"{scores['test'][name]:.3f}" for name in MEASURES)]
        row += [f"{scores[name]['rated_4_or_more']:.1%}" for name in SETS[1:]]
        rows.append([*row, f"{scores['test']['stops_by_itself']:.1%}", f"{perplexity:.2f}" if perplexity else ""])
    print(markdown_table(["model", *MEASURES, *SETS[1:], "stops", "perplexity of other texts"], rows))


def prepare(folder: Path, documents: int, seed: int) -> None:
    """Write the pages, and the 500 pairs with their responses dealt to other contexts."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    pages = [corpus.draw_document(rng, PAGES) for _ in range(documents)]
    (folder / "pages.txt").write_text(f"\n{DOCUMENT_END}\n".join(pages), encoding="utf-8")
    pairs = trainable(make_datasets(seed)["sft_dataset"], "high")
    save_pairs(folder / "shuffled.json", with_shuffled_responses(pairs, seed))
    print(f"written: {folder / 'pages.txt'} ({documents:,} documents), {folder / 'shuffled.json'}")


def measure(path: Path, contexts: int, texts: Path | None, seed: int) -> tuple[dict[str, Scores], float]:
    """Return the scores of one reply to each context, by set, and the perplexity of other people's responses."""
    checkpoint, config = load_checkpoint(path), SFTConfig()
    settings = checkpoint.made_by.get("settings", {})
    template = choose_template(checkpoint, settings.get("chat_template"), settings.get("prompt_template"))
    encoder = make_encoder(checkpoint, template, config.max_length, config.max_new_tokens)
    data = make_datasets(seed)
    pairs = spread(data["sft_test"], contexts)
    scenarios = recognise_all(pairs) or []
    unseen = spread(data["sft_test_unseen_wording"], contexts)
    sets = {"test": (pairs, scenarios), "unseen wording": (unseen, recognise_all(unseen) or [])}
    sets |= perturbed_sets(pairs, scenarios, seed)
    others, _, _ = encoder.encode_what_fits(spread(load_pairs(texts), OTHER_TEXTS) if texts else [])
    perplexity = math.exp(mean_loss(checkpoint.model, others, batch_size=5)) if others else 0.0
    scores = {}
    for name, (chosen, wanted) in sets.items():
        replies = generate_replies(checkpoint.model, encoder, chosen, Sampling.of(config), f"real/{name}")
        scores[name] = score(replies, chosen, wanted)
    return scores, perplexity


def compare_number_formats(path: Path) -> str:
    """Say how far the losses of fine-tuning with large layers in bfloat16 are from those in float32."""
    pairs, losses = trainable(make_datasets(0)["sft_dataset"], "high"), {}
    for dtype in ("float32", "auto"):
        checkpoint, config = load_checkpoint(path), SFTConfig(epochs=1, batch_size=4, dtype=dtype)
        encoder = make_encoder(checkpoint, choose_template(checkpoint, None, None), config.max_length, 0)
        examples = encoder.encode_all(pairs[: 50 * config.batch_size])
        losses[dtype] = [step.loss for step in our_side.fine_tune(checkpoint.model, examples, config).steps]
    exact, rounded = losses.values()
    differences = [other - one for one, other in zip(exact, rounded)]
    return (
        f"Loss of {len(exact)} steps in bfloat16 against float32: {mean(differences):+.4f} nats on average, at most "
        f"{max(map(abs, differences)):.4f} apart; in the last {rounded[-1]:.4f} and {exact[-1]:.4f}."
    )


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
