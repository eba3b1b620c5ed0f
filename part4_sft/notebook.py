"""Fine-tuning as a function, for notebooks and other programs; `import part4_sft` offers it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from part3_pretrain.runtime.cli import UserError, flag
from part3_pretrain.runtime.distributed import process_group
from part3_pretrain.runtime.locks import locked
from part4_sft.config import MODEL_FILE, SFTConfig, parse_arguments, written_folders
from part4_sft.run import run

PAIRS = ("data", "validation_data", "test_data")  # options that are files of pairs, or here the pairs themselves


class FineTuned(NamedTuple):
    """What a fine-tuning wrote: the checkpoint of the model, and what is in `evaluation.json`."""

    checkpoint: Path
    evaluation: dict[str, Any]


def fine_tune(**options: Any) -> FineTuned:
    r"""Fine-tune a model on pairs, compare it with what it was, and write what `python -m part4_sft.sft` writes.

    Args:
        options: those of the command, under the names of the fields of `SFTConfig`, with the same defaults and checks;
            `python -m part4_sft.sft --help` explains each. Most used are
            model: a checkpoint, the folder of a Hugging Face model, or a GGUF file. Without it, the retail model,
                which is pretrained first where it is missing (ten minutes).
            data: a file of training pairs, or the pairs as a list of dicts, in any layout that a file may have:
                {"context", "response"}, {"prompt", "completion"}, {"messages"}, ...; so may be `validation_data` and
                `test_data`. Without the two, a tenth of the pairs each is held out for them.
            out_dir, checkpoint_dir: folders for data, evaluation and report, and for the model.
            epochs, learning_rate, batch_size, max_length, lora_rank, dtype, seed, resume.

    Returns:
        The path of the checkpoint, for `part3_pretrain.checkpoint.load_checkpoint` and `python -m part4_sft.chat
        --model`, and the evaluation: `evaluation["sft"]` and `["pretrained"]` hold the scores of both models. Where
        `model` is a folder or a GGUF file, the fine-tuned one is written in its format too, beside the checkpoint.

    Raises:
        UserError: an option or a pair cannot be used, a file cannot be read or written, or the training diverges. It
            says what to do, and names options as on the command line: `--batch-size` is `batch_size`.
        KeyboardInterrupt: the kernel was interrupted; the same call with `resume=True` goes on.

    Example:
        >>> from part4_sft import fine_tune
        >>> pairs = [{"context": f"What is {n} plus {n}?", "response": f"It is {n + n}."} for n in range(40)]
        >>> checkpoint, evaluation = fine_tune(
        ...     model="models/SmolLM2-135M", data=pairs, epochs=3, batch_size=8, learning_rate=1e-4,
        ...     prompt_template="Question: {context}\nAnswer:", evaluate="none",
        ...     out_dir="outputs/sums", checkpoint_dir="checkpoints/sums",
        ... )
        >>> checkpoint
        PosixPath('checkpoints/sums/sft_model.pt')
        >>> evaluation["sft"]["perplexity"] < evaluation["pretrained"]["perplexity"]
        True
    """
    known = [one.name for one in fields(SFTConfig)]
    if unknown := sorted(options.keys() - known):
        raise UserError(f"there is no option {unknown[0]}", f"there are {', '.join(known)}")
    with TemporaryDirectory() as folder:
        for name in PAIRS:
            if isinstance(options.get(name), Iterable) and not isinstance(options[name], str):
                options[name] = write_lines(Path(folder, f"{name}.jsonl"), options[name])
        config = parse_arguments(as_arguments(options))
        try:
            with locked(*written_folders(config)), process_group(config.shard):
                return FineTuned(config.checkpoint_dir / MODEL_FILE, run(config))
        except UserError as error:  # which names files that the caller has never seen
            raise UserError(re.sub(rf"{re.escape(folder)}/(\w+)\.jsonl", r"\1", str(error))) from error


def as_arguments(options: dict[str, Any]) -> list[str]:
    """Return options as they are given on a command line, but those that have their default, which may be None."""
    arguments: list[str] = []
    for name, value in options.items():
        if value is True or isinstance(value, list | tuple):
            arguments += [flag(name), *([] if value is True else map(str, value))]
        elif value is not getattr(SFTConfig, name):
            arguments.append(f"{flag(name)}={value}")
    return arguments


def write_lines(path: Path, entries: Iterable[Any]) -> Path:
    """Write a file of one JSON value a line, and return its path. Raises UserError where one cannot be JSON."""
    try:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    except (TypeError, ValueError) as error:
        raise UserError(f"{path.stem} holds what JSON does not: {error}", "give dicts of texts") from error
    return path
