"""Messages by people: how many are understood, handed over, or answered with something invented.

python -m benchmarks.messages FILE, a JSON object with lists of messages under "order_status" (where is my parcel?),
"out_of_scope" (what no shop answers) and "small_talk"; a list may be an object of lists. Every reply counts in one
class. Beside the model stand authors that need no model.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import chain
from pathlib import Path

from part3_pretrain.retail.invention import invented
from part3_pretrain.retail.world import INTENTS, SMALL_TALK
from part3_pretrain.runtime.cli import OneLineParser, UserError, exit_status
from part4_sft import hand_over
from part4_sft.baselines import nearest_replies
from part4_sft.dataset import HIGH_QUALITY_PAIRS, Pair, make_datasets
from part4_sft.evaluation import generate_samples
from part4_sft.generation import Sampling
from part4_sft.report import markdown_table
from part4_sft.terminal.conversation import load_models

RIGHT = {"order_status": "delivery", "out_of_scope": "handed over", "small_talk": "small talk"}
CLASSES = ["invented", "handed over", "small talk", "delivery", "other"]
DELIVERY = [intent for intent in INTENTS if intent.name in ("order_status", "late_parcel", "not_received")]
DELIVERY += [intent.without_order_number for intent in DELIVERY if intent.without_order_number]
ASKING = DELIVERY[-1].resolutions[0]
KEYWORDS = {  # of the router, in this order
    "small talk": r"\b(?:hello|hi|hey|thanks?|bye|goodbye|ro?bot|who are you|made you|good (?:morning|evening))\b",
    "delivery": r"\b(?:order|parcel|package|delivery|track\w*|ship\w*|purchase|deliver\w*)\b",
}
Replies = dict[str, list[str]]  # by message, one or several


def main() -> None:
    parser = OneLineParser(
        prog="python -m benchmarks.messages",
        description="Lets the fine-tuned model reply to messages that people wrote, and counts what comes of each.",
        epilog="example: python -m benchmarks.messages messages.json --hand-over 0",
    )
    groups = ", ".join(RIGHT)
    parser.add_argument("file", type=Path, metavar="FILE", help=f"JSON object with lists of messages under {groups}")
    parser.add_argument("--model", type=Path, default=Path("checkpoints/sft_model.pt"), help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=9, help="replies to each message (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.7, help="randomness of replies (default: %(default)s)")
    parser.add_argument("--hand-over", type=float, help="least confidence in an answer; by default as calibrated")
    parser.add_argument("--seed", type=int, default=0, help="seed of the replies (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print every message too, with its first reply's class")
    arguments = parser.parse_args()
    messages = load_messages(arguments.file)
    models, threshold, _ = load_models(arguments.model, None, None, Sampling().max_new_tokens, "auto")
    if arguments.hand_over is not None:
        threshold = arguments.hand_over
    texts = [message for group in messages.values() for message in group]
    model, encoder = models["sft"]
    seeds = [f"{arguments.seed}/{sample}" for sample in range(arguments.samples)]
    pairs = [Pair(text, "") for text in texts]
    samples = generate_samples(model, encoder, pairs, Sampling(arguments.temperature), seeds)
    drafts = {text: list(own) for text, own in zip(texts, zip(*(replies.texts for replies in samples)))}
    authors: dict[str, Replies] = {
        f"the model, sure from {threshold:.3g} on": {text: keep_sure(drafts[text], threshold) for text in texts},
        "the model, nothing handed over by threshold": drafts,
        **without_a_model(texts),
    }
    shares = {name: count_classes(messages, replies) for name, replies in authors.items()}
    if arguments.json:
        first, *_ = authors.values()
        told = {text: {"reply": first[text][0], "class": classify(text, first[text][0])} for text in texts}
        print(json.dumps({"shares": shares, "messages": told}, indent=1, ensure_ascii=False))
        return
    for group, right in RIGHT.items():
        if group in messages:
            print(f"\n{group}: {len(messages[group])} messages, right is: {right}\n")
            rows = [[name, *(f"{share[group][each]:.1%}" for each in CLASSES)] for name, share in shares.items()]
            print(markdown_table(["replies by", *CLASSES], rows))


def load_messages(path: Path) -> dict[str, list[str]]:
    """Read the lists of messages that are measured. Raises UserError where the file holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "name a file of messages") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}", "name a file of messages") from error
    messages = {}
    for group in RIGHT:
        lists = content.get(group, []) if isinstance(content, dict) else []
        lists = list(chain(*lists.values())) if isinstance(lists, dict) else lists
        if lists and isinstance(lists, list) and all(isinstance(text, str) and text.strip() for text in lists):
            messages[group] = lists
    if not messages:
        raise UserError(f"{path} holds no lists of messages", f"they stand under {', '.join(RIGHT)}")
    return messages


def keep_sure(drafts: list[str], threshold: float) -> list[str]:
    """Return the replies to one message as a customer reads them: those that the model is not sure of, handed over."""
    sure = hand_over.confidences(drafts)
    return [draft if own >= threshold else hand_over.REPLY for draft, own in zip(drafts, sure)]


def without_a_model(texts: list[str]) -> dict[str, Replies]:
    """Return what is replied by a constant, by a router of keywords, and by the nearest of the 500 pairs."""
    replies = {"small talk": SMALL_TALK[0].resolutions[0], "delivery": ASKING}

    def route(text: str) -> str:
        kinds = (kind for kind, pattern in KEYWORDS.items() if re.search(pattern, text, re.IGNORECASE))
        return replies.get(next(kinds, ""), hand_over.REPLY)

    training = make_datasets(0)["sft_dataset"][:HIGH_QUALITY_PAIRS]
    nearest = nearest_replies(training, [Pair(text, "") for text in texts]).texts
    return {
        "a constant: handed over": {text: [hand_over.REPLY] for text in texts},
        "keywords": {text: [route(text)] for text in texts},
        "the nearest pair": {text: [reply] for text, reply in zip(texts, nearest)},
    }


def count_classes(messages: dict[str, list[str]], replies: Replies) -> dict[str, dict[str, float]]:
    """Return for each group the share of its replies in each class."""
    shares = {}
    for group, texts in messages.items():
        counts = Counter(classify(text, reply) for text in texts for reply in replies[text])
        shares[group] = {name: counts[name] / counts.total() for name in CLASSES}
    return shares


def classify(message: str, reply: str) -> str:
    """Return the one class that a reply counts in: something invented comes first."""
    if invented(message, reply):
        return "invented"
    evidence = {
        "handed over": [hand_over.EVIDENCE],
        "small talk": [SMALL_TALK[0].evidence],
        "delivery": [intent.evidence for intent in DELIVERY],
    }
    said = (name for name, words in evidence.items() if any(word in reply.lower() for word in words))
    return next(said, "other")


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
