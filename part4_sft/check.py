"""What is in a file of pairs, and what may be wrong with it: python -m part4_sft.check FILE"""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from functools import partial
from pathlib import Path

from part3_pretrain.runtime.cli import PATH, exit_status, option, parse, same_as
from part4_sft.config import DEFAULT_CHECKPOINT, SFTConfig
from part4_sft.data_files.inspection import inspect, read_without_model


@dataclass(frozen=True)
class CheckConfig:
    """What can be chosen; `--help` explains each."""

    file: Path = option(MISSING, "JSON, JSONL or CSV file of pairs", type=Path, metavar="FILE")
    model: Path | None = option(
        None, f"model by which tokens are counted; by default {DEFAULT_CHECKPOINT}, if it is there", **PATH
    )
    columns: list[str] | None = same_as(SFTConfig, "columns")
    test_data: Path | None = option(None, "file of pairs whose contexts should not be in FILE", **PATH)
    chat_template: str | None = same_as(SFTConfig, "chat_template")
    prompt_template: str | None = same_as(SFTConfig, "prompt_template")
    max_length: int = same_as(SFTConfig, "max_length")
    json: bool = option(False, "print one JSON object, with all rows")


def main() -> None:
    config = parse(
        CheckConfig,
        prog="python -m part4_sft.check",
        description="Tells, before anybody labels or trains, how a file of pairs is read, what a model sees of the "
        "first pair, how long they are, and which rows may be wrong: duplicates, contradictions, placeholders, e-mail "
        "addresses, numbers of phones and cards, signatures. Rows count as in error messages: those of CSV as a "
        "spreadsheet shows them, with the header as row 1; else entries, from 1. Changes nothing.",
        example="python -m part4_sft.check replies.csv --model ~/models/SmolLM2-135M-Instruct",
    )
    model = config.model or (DEFAULT_CHECKPOINT if DEFAULT_CHECKPOINT.exists() else None)
    read_pairs = partial(read_without_model, template=config.prompt_template)
    if model:
        from part4_sft.data_files import reading  # only now, for torch takes seconds to import

        templates = config.chat_template, config.prompt_template
        read_pairs = partial(reading.read_pairs, encoder=reading.load_encoder(model, *templates, config.max_length))
    name = str(model) if model else ""
    inspect(config.file, config.columns or (), config.test_data, read_pairs, name, config.json)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
