"""Both models reply to the same messages, side by side.

Each message is answered by itself, as contexts are in training. Asked for the first time, a model answers as in
`replies.json` of a run with the same settings; asked once more, it draws other words.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.retail.rubric import Rating, rate, recognise
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.device import choose_device
from part4_sft.config import DEFAULT_TEMPLATE, SFTConfig
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling, longest_prompt, stream
from part4_sft.terminal.screen import BOLD, styled, wrapped

NAMES = {"pretrained": "pretrained", "sft": "fine-tuned"}  # as they are shown
GAP = "   "  # between columns


@dataclass(frozen=True)
class Reply:
    """What a model has written so far, and whether it came to its end by itself."""

    text: str
    stopped: bool


@dataclass(frozen=True)
class Speaker:
    """A model, and how it reads texts."""

    model: Transformer
    encoder: PairEncoder

    def stream_reply(self, context: str, sampling: Sampling, seed: str) -> Iterator[Reply]:
        """Yield the reply so far after every token, and the whole reply last."""
        ids: list[int] = []
        reply = Reply("", stopped=False)
        prompt = self.encoder.encode_prompt(context, longest_prompt(self.model, sampling))
        for token in stream(self.model, prompt, sampling, seed=seed):
            ids.append(token)
            reply = Reply(self.encoder.decode([ids])[0], stopped=False)
            yield reply
        yield Reply(reply.text, stopped=len(ids) < sampling.max_new_tokens)


def load_speakers(
    path: Path, base_path: Path | None, template: str | None, max_new_tokens: int, device_name: str
) -> dict[str, Speaker]:
    """Read the pretrained and the fine-tuned model, and move them to the device.

    Args:
        path: of the fine-tuned model.
        base_path: of the pretrained model; by default the one that the other was fine-tuned from.
        template: of the prompts of both; by default that of the fine-tuning.

    Raises:
        UserError: one cannot be read, or the fine-tuned one does not tell what it was made from.
    """
    device = choose_device(device_name)
    if not path.exists():
        raise UserError(f"there is no {path}", "python -m part4_sft.sft makes it, or name another with --model")
    sft = load_checkpoint(path)
    settings = sft.made_by.get("settings", {})
    if base_path is None:
        if not settings or "from" not in sft.made_by:
            raise UserError(f"{path} does not tell what it was fine-tuned from", "name that with --base")
        base_path = Path(sft.made_by["from"])
    template = template or settings.get("prompt_template", DEFAULT_TEMPLATE)
    max_length = settings.get("max_length", SFTConfig.max_length)
    speakers = {}
    for name, checkpoint in {"pretrained": load_checkpoint(base_path), "sft": sft}.items():
        encoder = PairEncoder.for_checkpoint(checkpoint, template, max_length, max_new_tokens)
        speakers[name] = Speaker(checkpoint.model.to(device).eval(), encoder)
    return speakers


def converse(
    speakers: dict[str, Speaker], contexts: Iterable[str], sampling: Sampling, seed: int, as_json: bool
) -> None:
    """Let both models reply to each message, and print it as JSON, in columns on a terminal, or line by line."""
    times_asked = Counter[str]()
    for context in contexts:
        own_seed = f"{seed}/{times_asked[context]}"
        times_asked[context] += 1
        streams = {name: speaker.stream_reply(context, sampling, own_seed) for name, speaker in speakers.items()}
        if as_json:
            replies = {name: as_values(context, last) for name, (*_, last) in streams.items()}
            print(json.dumps({"context": context, **replies}, ensure_ascii=False), flush=True)
        elif sys.stdout.isatty():
            show_side_by_side(context, streams)
        else:
            print(f"customer: {context}")
            for name, (*_, last) in streams.items():
                print(f"{NAMES[name]}: {last.text} {in_words(rating_of(context, last.text))}".rstrip())
            print(flush=True)


def rating_of(context: str, reply: str) -> Rating | None:
    """Rate a reply by the rubric; None where its context is not of the retail world."""
    scenario = recognise(context)
    return rate(scenario, reply) if scenario else None


def in_words(rating: Rating | None) -> str:
    return f"({'; '.join([f'rated {rating.score:.1f}', *rating.faults])})" if rating else ""


def as_values(context: str, reply: Reply) -> dict[str, Any]:
    """Return a reply and what is known of it, for programs; `rating` and `faults` where the rubric applies."""
    values: dict[str, Any] = {"text": reply.text, "stops_by_itself": reply.stopped}
    rating = rating_of(context, reply.text)
    if rating:
        values |= {"rating": rating.score, "faults": rating.faults}
    return values


# ---------------------------------------------------------------------------------------------------- columns


def show_side_by_side(context: str, streams: dict[str, Iterator[Reply]]) -> None:
    """Draw all replies at once, each in a column of its own, token by token, and their ratings at the end."""
    columns, lines = get_terminal_size()
    width = (columns - len(GAP) * (len(streams) - 1)) // len(streams) - 1
    print(styled(GAP.join(NAMES[name].ljust(width) for name in streams).rstrip(), BOLD))
    texts = [""] * len(streams)
    lines_drawn = 0  # below the heading
    for replies in zip_longest(*streams.values()):
        texts = [reply.text if reply else text for reply, text in zip(replies, texts)]
        rows = _in_columns(texts, width)[2 - lines :]  # the last that fit
        _redraw(rows, lines_drawn)
        lines_drawn = len(rows)
    ends = [f"{text}\n{in_words(rating_of(context, text))}".rstrip() for text in texts]
    _redraw(_in_columns(ends, width), lines_drawn)


def _in_columns(texts: list[str], width: int) -> list[str]:
    rows = zip_longest(*(wrapped(text, width) for text in texts), fillvalue="")
    return [GAP.join(cell.ljust(width) for cell in row).rstrip() for row in rows]


def _redraw(rows: list[str], lines_drawn: int) -> None:
    """Replace the lines that were drawn last."""
    up = f"\x1b[{lines_drawn}A" if lines_drawn else ""
    print(f"\r{up}\x1b[J" + "\n".join(rows), flush=True)
