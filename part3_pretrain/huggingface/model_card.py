"""The model card of an exported model: what it was made from, how, and what it scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from part3_pretrain.checkpoint import Checkpoint

SETTINGS = {  # of a run of fine-tuning, in words
    "epochs": "epochs",
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "lora_rank": "LoRA rank (0: all weights trained)",
    "dtype": "number format of the weights",
    "seed": "seed",
}


def model_card(name: str, checkpoint: Checkpoint) -> str:
    """Markdown with the header that the Hugging Face hub reads."""
    config, made_by = checkpoint.model.config, checkpoint.made_by
    parameters = sum(parameter.numel() for parameter in checkpoint.model.parameters())
    if "results" in made_by:
        history = _fine_tuning(made_by)
    elif made_by.keys() == {"from"}:
        history = [f"Converted from `{Path(made_by['from']).name}`, which does not tell how it was made."]
    else:
        history = ["Not fine-tuned by `part4_sft`. How it was made:", _listed(made_by)]
    sections = [
        "---\npipeline_tag: text-generation\nlibrary_name: transformers\n---",
        f"# {name}",
        f"A causal language model of the {config.family} family with {parameters:,} parameters.",
        *history,
    ]
    return "\n\n".join(sections) + "\n"


def _fine_tuning(made_by: dict[str, Any]) -> list[str]:
    settings, data, results = made_by["settings"], made_by["dataset"], made_by["results"]
    template = settings["prompt_template"].replace(r"\n", "\n")
    table = [["measure", *results], ["---"] * (1 + len(results))]
    for name in results["sft"]:
        words = name.replace("bleu", "BLEU").replace("rouge_l", "ROUGE-L").replace("distinct_2", "distinct-2")
        table.append([words.replace("_", " "), *(f"{scores[name]:.4f}" for scores in results.values())])
    data_file = Path(settings["data"]).name if settings["data"] else "synthetic retail support"
    return [
        f"Fine-tuned by `part4_sft` from `{Path(made_by['from']).name}` on {data['trained_on']} (context, response) "
        f"pairs ({data_file}), with the loss on the response alone.",
        "## Prompt",
        f"```\n{template}\n```",
        "The response begins with a space and ends with the end-of-text token.",
        "## Settings",
        _listed({words: settings[key] for key, words in SETTINGS.items()}),
        "## Results",
        f"Replies to {data['sft_test']} held-out contexts, at temperature {settings['temperature']:g}:",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
    ]


def _listed(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
