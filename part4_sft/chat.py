"""Talk to both models side by side: python -m part4_sft.chat

Each message is answered by itself, as contexts are in training. Asked for the first time, a model answers as in
`replies.json` of a run with the same settings; asked once more, it draws other words.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from part3_pretrain.retail.rubric import Rating, rate, recognise
from part3_pretrain.runtime.cli import PATH, UserError, exit_status, option, parse, same_as
from part4_sft.config import DEFAULT_TEMPLATE, SFTConfig
from part4_sft.terminal.screen import BOLD, DIM, size, styled, wrapped

if TYPE_CHECKING:  # --help should not wait for torch
    from part3_pretrain.model import Transformer
    from part4_sft.encoding import PairEncoder
    from part4_sft.generation import Sampling

HISTORY = Path("~/.part4_sft_history")
NAMES = {"pretrained": "pretrained", "sft": "fine-tuned"}


@dataclass(frozen=True)
class ChatConfig:
    """What can be chosen; `--help` explains each."""

    model: Path = option(Path("checkpoints/sft_model.pt"), "the fine-tuned model", **PATH)
    base: Path | None = option(None, "the model to compare with; by default the one it was fine-tuned from", **PATH)
    context: str | None = option(
        None,
        "what to answer, once, instead of asking for messages",
        allowed="a text that is not blank",
        is_valid=lambda text: text is None or bool(text.strip()),
        type=str,
    )
    json: bool = option(False, "print one JSON object for each message, for programs", action="store_true")
    prompt_template: str | None = option(
        None,
        r"what the models read before they answer; \n is a new line; by default that of the fine-tuning",
        allowed="a text with {context} in it, once",
        is_valid=lambda template: template is None or template.count("{context}") == 1,
        type=str,
    )
    temperature: float = same_as(SFTConfig, "temperature")
    top_k: int = same_as(SFTConfig, "top_k")
    top_p: float = same_as(SFTConfig, "top_p")
    max_new_tokens: int = same_as(SFTConfig, "max_new_tokens")
    seed: int = same_as(SFTConfig, "seed")
    device: str = same_as(SFTConfig, "device")


def main() -> None:
    config = parse(
        ChatConfig,
        prog="python -m part4_sft.chat",
        description="Lets the model before and after fine-tuning answer the same messages, side by side. Rates replies "
        "by the rubric where the message is of the retail world. Without a terminal, every line of the input is a "
        "message. Ctrl-D ends.",
        example='python -m part4_sft.chat --context "The tiered planter has a large crack."',
    )
    from part4_sft.generation import Sampling

    models = load_models(config)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.max_new_tokens)
    asked = Counter[str]()
    for context in messages(config):
        replies = {
            author: Reply(model, encoder, context, sampling, f"{config.seed}/{asked[context]}")
            for author, (model, encoder) in models.items()
        }
        asked[context] += 1
        if config.json:
            found = {author: described(reply) for author, reply in replies.items()}
            print(json.dumps({"context": context, **found}, ensure_ascii=False), flush=True)
        elif sys.stdout.isatty():
            show_side_by_side(replies)
        else:
            print(f"customer: {context}")
            for author, reply in replies.items():
                *_, text = reply
                print(f"{NAMES[author]}: {text} {in_words(rating_of(reply))}".rstrip())
            print(flush=True)


def messages(config: ChatConfig) -> Iterator[str]:
    """What is to be answered: --context, or what a person types (lines can be edited and recalled), or a program."""
    if config.context is not None:
        yield config.context
    elif not sys.stdin.isatty():
        try:
            yield from filter(str.strip, (line.rstrip("\n") for line in sys.stdin))
        except UnicodeDecodeError as error:
            raise UserError(f"the input is not {error.encoding} text; convert it with iconv") from error
    else:
        import readline

        with suppress(OSError):
            readline.read_history_file(HISTORY.expanduser())
        print(styled("What does a customer want? For example: The tiered planter has a large crack.", DIM))
        try:
            with suppress(EOFError):
                while True:
                    if context := input("\n> ").strip():
                        yield context
        finally:
            print()  # what comes next should not stand behind the prompt
            readline.set_history_length(1000)
            with suppress(OSError):
                readline.write_history_file(HISTORY.expanduser())


def load_models(config: ChatConfig) -> dict[str, tuple[Transformer, PairEncoder]]:
    """Both models, and how each reads texts.

    Raises UserError where one cannot be read, or the fine-tuned one does not tell what it was made from.
    """
    from part3_pretrain.checkpoint import load_checkpoint
    from part4_sft.encoding import PairEncoder
    from part4_sft.stages import choose_device

    device = choose_device(config.device)
    if not config.model.exists():
        raise UserError(f"there is no {config.model}; python -m part4_sft.sft makes it, or name another with --model")
    sft = load_checkpoint(config.model)
    settings = sft.made_by.get("settings", {})
    if not (base := config.base or (settings and sft.made_by["from"])):
        raise UserError(f"{config.model} does not tell what it was fine-tuned from; name that with --base")
    template = config.prompt_template or settings.get("prompt_template", DEFAULT_TEMPLATE)
    max_length = settings.get("max_length", SFTConfig.max_length)
    return {
        author: (
            checkpoint.model.to(device).eval(),
            PairEncoder.for_checkpoint(checkpoint, template, max_length, config.max_new_tokens),
        )
        for author, checkpoint in {"pretrained": load_checkpoint(Path(base)), "sft": sft}.items()
    }


class Reply:
    """One model's reply to a message; iterated over, the text so far after every token.

    `stopped` tells afterwards whether it came to its end by itself.
    """

    def __init__(self, model: Transformer, encoder: PairEncoder, context: str, sampling: Sampling, seed: str) -> None:
        self.model, self.encoder, self.context, self.sampling, self.seed = model, encoder, context, sampling, seed
        self.text, self.stopped = "", False

    def __iter__(self) -> Iterator[str]:
        from part4_sft.generation import longest_prompt, stream

        ids: list[int] = []
        prompt = self.encoder.encode_prompt(self.context, longest_prompt(self.model, self.sampling))
        for token in stream(self.model, prompt, self.sampling, seed=self.seed):
            ids.append(token)
            (self.text,) = self.encoder.decode([ids])
            yield self.text
        self.stopped = len(ids) < self.sampling.max_new_tokens
        yield self.text


# ---------------------------------------------------------------------------------------------------- showing


def rating_of(reply: Reply) -> Rating | None:
    """What the rubric says of a reply; None where its context is not of the retail world."""
    scenario = recognise(reply.context)
    return rate(scenario, reply.text) if scenario else None


def in_words(rating: Rating | None) -> str:
    return f"({'; '.join([f'rated {rating.score:.1f}', *rating.faults])})" if rating else ""


def described(reply: Reply) -> dict[str, Any]:
    """A reply and what is known of it, for programs; `rating` and `faults` where the rubric applies."""
    *_, text = reply
    found: dict[str, Any] = {"text": text, "stops_by_itself": reply.stopped}
    if rating := rating_of(reply):
        found |= {"rating": rating.score, "faults": rating.faults}
    return found


def show_side_by_side(replies: dict[str, Reply]) -> None:
    """Writes all replies at once, each in a column of its own, token by token."""
    columns, lines = size()
    width = (columns - 3 * (len(replies) - 1)) // len(replies) - 1
    print(styled("   ".join(NAMES[author].ljust(width) for author in replies).rstrip(), BOLD))
    drawn = 0  # lines that stand below the heading
    for _ in zip_longest(*replies.values()):
        rows = _in_columns([reply.text for reply in replies.values()], width)[2 - lines :]  # the last that fit
        _redraw(rows, drawn)
        drawn = len(rows)
    ends = [f"{reply.text}\n{in_words(rating_of(reply))}".rstrip() for reply in replies.values()]
    _redraw(_in_columns(ends, width), drawn)


def _in_columns(texts: list[str], width: int) -> list[str]:
    rows = zip_longest(*(wrapped(text, width) for text in texts), fillvalue="")
    return ["   ".join(cell.ljust(width) for cell in row).rstrip() for row in rows]


def _redraw(rows: list[str], drawn: int) -> None:
    up = f"\x1b[{drawn}A" if drawn else ""
    print(f"\r{up}\x1b[J" + "\n".join(rows), flush=True)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
