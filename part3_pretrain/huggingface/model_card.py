"""The model card of an exported model: what it was made from, how, and what it scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.runtime.cli import unescape

SETTING_NAMES = {  # settings of a fine-tuning that the card tells, in words
    "epochs": "epochs",
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "lora_rank": "LoRA rank (0: all weights trained)",
    "dtype": "number format of the weights",
    "seed": "seed",
}
MEASURE_NAMES = {"bleu": "BLEU", "rouge_l": "ROUGE-L", "distinct_2": "distinct-2"}  # the others are plain words


def model_card(name: str, checkpoint: Checkpoint) -> str:
    """Return Markdown with the header that the Hugging Face hub reads."""
    config, made_by = checkpoint.model.config, checkpoint.made_by
    parameter_count = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    if "results" in made_by:
        history = _fine_tuning_sections(made_by)
    elif made_by.keys() == {"from"}:
        history = [f"Converted from `{Path(made_by['from']).name}`, which does not tell how it was made."]
    else:
        history = ["Not fine-tuned by `part4_sft`. How it was made:", _bullets(made_by)]
    sections = [
        "---\npipeline_tag: text-generation\nlibrary_name: transformers\n---",
        f"# {name}",
        f"A causal language model of the {config.family} family with {parameter_count:,} parameters.",
        *history,
    ]
    return "\n\n".join(sections) + "\n"


def _fine_tuning_sections(made_by: dict[str, Any]) -> list[str]:
    settings, data, results = made_by["settings"], made_by["dataset"], made_by["results"]
    template = unescape(settings["prompt_template"])
    data_file = Path(settings["data"]).name if settings["data"] else "synthetic retail support"
    return [
        f"Fine-tuned by `part4_sft` from `{Path(made_by['from']).name}` on {data['trained_on']} (context, response) "
        f"pairs ({data_file}), with the loss on the response alone.",
        "## Prompt",
        f"```\n{template}\n```",
        "The response begins with a space and ends with the end-of-text token.",
        "## Settings",
        _bullets({words: settings[key] for key, words in SETTING_NAMES.items()}),
        "## Results",
        f"Replies to {data['sft_test']} held-out contexts, at temperature {settings['temperature']:g}:",
        _table(results),
    ]


def _table(results: dict[str, dict[str, float]]) -> str:
    """Return a table with a row for each measure and a column for each model."""
    rows = [["measure", *results], ["---"] * (1 + len(results))]
    for measure in results["sft"]:
        words = MEASURE_NAMES.get(measure, measure.replace("_", " "))
        rows.append([words, *(f"{scores[measure]:.4f}" for scores in results.values())])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
