"""Talk to both models side by side: python -m part4_sft.chat"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from part3_pretrain.runtime.cli import PATH, exit_status, option, parse, same_as
from part4_sft.config import SFTConfig


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
    json: bool = option(False, "print one JSON object for each message, for programs")
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
    hand_over: float | None = option(
        None,
        "share of 8 other replies that must claim what the fine-tuned model's reply claims, else the message is handed "
        "over to a person; 0: never; by default as it was calibrated, and 0 at temperature 0",
        allowed="0 to 1",
        is_valid=lambda value: value is None or 0 <= value <= 1,
        type=float,
    )
    seed: int = same_as(SFTConfig, "seed")
    device: str = same_as(SFTConfig, "device")


def main() -> None:
    config = parse(
        ChatConfig,
        prog="python -m part4_sft.chat",
        description="Lets the model before and after fine-tuning answer the same messages, side by side. Rates replies "
        "by the rubric where message and model are of the retail world. Without a terminal, every line of the input is "
        "a message. Ctrl-D ends.",
        example='python -m part4_sft.chat --context "My headphones stopped working after two days."',
    )
    from part4_sft.generation import Sampling  # only now, for torch takes seconds to import
    from part4_sft.terminal.conversation import converse, load_models, read_messages

    models, threshold, is_rated = load_models(
        config.model, config.base, config.prompt_template, config.max_new_tokens, config.device
    )
    if config.hand_over is not None or not config.temperature:
        threshold = config.hand_over or 0.0
    contexts = read_messages() if config.context is None else [config.context]
    converse(models, contexts, Sampling.of(config), config.seed, threshold, config.json, is_rated)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
