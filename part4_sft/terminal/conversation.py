"""Both models reply to the same messages, side by side.

Each message is answered by itself, as contexts are in training; with a chat template, each model goes on with its own
conversation, until the line /new. Asked for the first time, a model answers as in `replies.json` of a run with the same
settings; asked once more, it draws other words. Where the fine-tuned model is not sure, the message goes to a person
instead.
"""

from __future__ import annotations

import os
import readline
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from itertools import zip_longest
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, NamedTuple

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.retail.invention import invented
from part3_pretrain.retail.rubric import rate, recognise
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.device import choose_device
from part3_pretrain.runtime.log import note
from part3_pretrain.runtime.printable import printable, printable_json
from part3_pretrain.runtime.training_state import digest_of_weights
from part4_sft import hand_over
from part4_sft.config import SFTConfig
from part4_sft.dataset import Turn
from part4_sft.encoding import PairEncoder
from part4_sft.extras.conversations import choose_template, make_encoder
from part4_sft.generation import Sampling, generate, longest_prompt, stream
from part4_sft.terminal.screen import BOLD, DIM, GAP, side_by_side, styled

NAMES = {"pretrained": "pretrained", "sft": "fine-tuned"}  # as they are shown
NEW_CONVERSATION = "/new"  # a line that is no message
Models = dict[str, tuple[Transformer, PairEncoder]]  # each with how it reads texts


class Reply(NamedTuple):
    """What a model has written so far, and what is made of it in the end."""

    text: str  # as the customer reads it
    draft: str  # the model's own words
    stops_by_itself: bool = False
    handed_over: bool = False  # by the model's own words, or instead of them


def load_models(
    path: Path, base: Path | None, template: str | None, max_new_tokens: int, device_name: str
) -> tuple[Models, float, bool]:
    """Read the pretrained model at `base` and the fine-tuned one at `path`, and move them to the device.

    Where `base` or `template` is None, they are those of the fine-tuning.

    Returns:
        The models, the calibrated confidence below which a reply of the fine-tuned one is handed over, and whether it
        was fine-tuned for the retail world, by whose rubric replies can be rated.

    Raises:
        UserError: a model cannot be read, or the fine-tuned one does not tell what it was made from.
    """
    device = choose_device(device_name)
    if not os.path.exists(path):
        raise UserError(f"there is no {path}", "python -m part4_sft.sft makes it, or name another with --model")
    sft = load_checkpoint(path)
    settings = sft.made_by.get("settings", {})
    if base is None:
        if not settings or "from" not in sft.made_by:
            raise UserError(f"{path} does not tell what it was fine-tuned from", "name that with --base")
        base = Path(sft.made_by["from"])
    chosen = choose_template(sft, settings.get("chat_template"), template or settings.get("prompt_template"))
    max_length = settings.get("max_length", SFTConfig.max_length)
    pretrained = load_checkpoint(base)
    # The digest is of weights in the number format of the run.
    is_comparable = settings.get("dtype") != "bfloat16" and str(base) == sft.made_by.get("from")
    if is_comparable and sft.made_by.get("digest") not in (None, digest_of_weights(pretrained.model)):
        note(f"{base} has been changed since {path} was made of it")
    models = {}
    for name, checkpoint in {"pretrained": pretrained, "sft": sft}.items():
        encoder = make_encoder(checkpoint, chosen, max_length, max_new_tokens)
        models[name] = checkpoint.model.to(device).eval(), encoder
    is_rated = "rating" in sft.made_by.get("results", {}).get("sft", {"rating": None})
    return models, sft.made_by.get("hand_over", 0.0), is_rated


def converse(
    models: Models,
    contexts: Iterable[str],
    sampling: Sampling,
    seed: int,
    threshold: float,
    as_json: bool,
    is_rated: bool = True,
) -> None:
    """Let both models reply to each message, and print it as JSON, in columns on a terminal, or line by line.

    The fine-tuned model's reply is handed over where its confidence is below the threshold.
    """
    times_asked = Counter[str]()
    said: dict[str, list[Turn]] = {name: [] for name in models}  # to each model and by it
    for context in contexts:
        if context.strip() == NEW_CONVERSATION:
            said = {name: [] for name in models}
            continue
        own_seed = f"{seed}/{times_asked[context]}"
        times_asked[context] += 1
        streams = {
            name: reply_to(*model, context, sampling, own_seed, threshold if name == "sft" else 0.0, said[name])
            for name, model in models.items()
        }
        if as_json:
            values: dict[str, Any] = {"context": context}
            for name, (*_, reply) in streams.items():
                values[name] = reply._asdict() | judge(context, reply, is_rated)
            print(printable_json(values), flush=True)
        elif sys.stdout.isatty():
            show_side_by_side(context, streams, is_rated)
        else:
            print(printable(f"customer: {context}"))
            for name, (*_, reply) in streams.items():
                print(printable(f"{NAMES[name]}: {reply.text} {remarks(context, reply, is_rated)}").rstrip())
            print(flush=True)


def reply_to(
    model: Transformer,
    encoder: PairEncoder,
    context: str,
    sampling: Sampling,
    seed: str,
    threshold: float,
    said: list[Turn],
) -> Iterator[Reply]:
    """Yield the reply so far after every token, and the whole reply last; a reply that is handed over as a whole.

    `said` are the turns so far, to which the message is added, and in the end the reply.
    """
    said.append(("user", context))
    prompt = encoder.encode_prompt(context, longest_prompt(model, sampling), tuple(said))
    if threshold:
        seeds = [seed, *(f"{seed}/other {number}" for number in range(hand_over.OTHERS))]
        drawn = generate(model, [prompt] * len(seeds), sampling, seeds=seeds)
        draft, *others = encoder.decode([reply.ids for reply in drawn])
        if hand_over.confidence(draft, others) < threshold:
            said.append(("assistant", hand_over.REPLY))
            yield Reply(hand_over.REPLY, draft, drawn[0].stopped, True)
            return
    ids: list[int] = []
    for token in stream(model, prompt, sampling, seed):
        ids.append(token)
        text = encoder.decode([ids])[0]
        yield Reply(text, text)
    text = encoder.decode([ids])[0]
    said.append(("assistant", text))
    yield Reply(text, text, len(ids) < sampling.max_new_tokens, hand_over.EVIDENCE in text)


def rating_of(context: str, text: str) -> dict[str, Any]:
    """Return the rubric's rating of a reply, and its faults; {} where the context is not of the retail world."""
    scenario = recognise(context)
    if scenario is None:
        return {}
    rating = rate(scenario, text)
    return {"rating": rating.score, "faults": rating.faults}


def judge(context: str, reply: Reply, is_rated: bool) -> dict[str, Any]:
    """Return what programs are told of a reply; one that stands for the model's own words is not rated."""
    if not is_rated or reply.text != reply.draft:
        return {"invented": []}
    return {"invented": invented(context, reply.text)} | rating_of(context, reply.text)


def rating_in_words(context: str, text: str) -> str:
    rating = rating_of(context, text)
    return f"(rated {'; '.join([format(rating['rating'], '.1f'), *rating['faults']])})" if rating else ""


def remarks(context: str, reply: Reply, is_rated: bool) -> str:
    """Say in brackets which words a hand-over stands for, or of the model's own words how they are rated."""
    if reply.text != reply.draft:
        hands_over_too = hand_over.EVIDENCE in reply.draft
        return "" if hands_over_too else f"(handed over; its own words were: {reply.draft})"
    if not is_rated:
        return ""
    unfounded = invented(context, reply.text)
    invention = f"(invented: {', '.join(unfounded)})" if unfounded else ""
    return " ".join(filter(None, [rating_in_words(context, reply.text), invention]))


def show_side_by_side(context: str, streams: dict[str, Iterator[Reply]], is_rated: bool = True) -> None:
    """Draw all replies at once, each in a column of its own, token by token, and their ratings at the end."""
    columns, lines = get_terminal_size()
    width = (columns - len(GAP) * (len(streams) - 1)) // len(streams) - 1
    print(styled(GAP.join(NAMES[name].ljust(width) for name in streams).rstrip(), BOLD))
    shown = [Reply("", "")] * len(streams)
    rows: list[str] = []
    for replies in zip_longest(*streams.values()):
        shown = [reply or before for reply, before in zip(replies, shown)]
        rows = _redraw(
            len(rows), side_by_side([reply.text for reply in shown], width)[2 - lines :]
        )  # the last that fit
    ends = [f"{reply.text}\n{remarks(context, reply, is_rated)}".rstrip() for reply in shown]
    _redraw(len(rows), side_by_side(ends, width))


def _redraw(lines_drawn: int, rows: list[str]) -> list[str]:
    """Replace the lines that were drawn last by these rows, and return the rows."""
    up = f"\x1b[{lines_drawn}A" if lines_drawn else ""
    print(f"\r{up}\x1b[J" + "\n".join(rows), flush=True)
    return rows


def read_messages() -> Iterator[str]:
    """Yield what a person types until Ctrl-D; without a terminal, every line of the input that is not blank.

    Typed lines can be edited, and recalled in this conversation and the next. Raises UserError where the input is of
    another encoding.
    """
    if isinstance(sys.stdin, TextIOWrapper):  # in some locales it would let bytes that are no text pass
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="strict")
    try:
        if sys.stdin.isatty():
            yield from _typed_messages()
        else:
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"the input is not {error.encoding} text", "convert it with iconv") from error


def _typed_messages() -> Iterator[str]:
    history = Path("~/.part4_sft_history").expanduser()
    with suppress(OSError):
        readline.read_history_file(history)
    print(styled("What does a customer want? For example: My headphones stopped working after two days.", DIM))
    try:
        with suppress(EOFError):
            while True:
                message = input("\n> ").strip()
                if message:
                    yield message
    finally:
        print()  # what comes next should not stand behind the prompt
        readline.set_history_length(1000)
        with suppress(OSError):
            readline.write_history_file(history)
