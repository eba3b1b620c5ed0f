"""Write a checkpoint as a Hugging Face folder, which transformers and vLLM read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.huggingface.config import Settings, as_list, to_hugging_face
from part3_pretrain.huggingface.prompt_template import as_chat_template
from part3_pretrain.runtime.cli import UserError, first_line, unescape
from part3_pretrain.runtime.files import atomic_folder

MADE_HERE = "Fine-tuned by `part4_sft`"  # begins a model card
CARD_SETTINGS = ("epochs", "learning_rate", "batch_size", "lora_rank", "dtype", "seed")  # of a fine-tuning
CARD_WORDS = {  # for settings and measures whose names are not words
    "lora_rank": "LoRA rank (0: all weights trained)",
    "dtype": "number format of the weights",
    "bleu": "BLEU",
    "rouge_l": "ROUGE-L",
    "distinct_2": "distinct-2",
}


def write_folder(
    folder: Path, checkpoint: Checkpoint, replace: bool = False, add: Callable[[Path], None] | None = None
) -> None:
    """Write the whole folder, model card included, or nothing.

    Args:
        replace: whether what is in the folder goes; else UserError is raised where it is not empty.
        add: called with the folder before it takes its place, to write more into it.
    """
    if not replace and os.path.exists(folder) and (not os.path.isdir(folder) or any(folder.glob("*"))):  # none raises
        raise UserError(f"{folder} is there already", "name a new folder, so that no file of another model stays in it")
    files = settings_files(checkpoint)
    files["tokenizer.json"] = checkpoint.tokenizer.to_str(pretty=True)
    files["README.md"] = model_card(folder.resolve().name, checkpoint)
    weights = {
        name if name.startswith("lm_head.") else f"model.{name}": parameter.detach().contiguous()
        for name, parameter in checkpoint.model.named_parameters()  # tied embeddings once
    }
    with atomic_folder(folder, replace) as temporary:
        save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
        (temporary / "model.safetensors").chmod(0o644)  # `save_file` makes it for the owner alone
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            (temporary / name).write_text(text, encoding="utf-8")
        if add:
            add(temporary)


def settings_files(checkpoint: Checkpoint) -> Settings:
    """Return the settings files that the model came with, or made ones, with today's format, <EOS> and prompt."""
    model = checkpoint.model
    settings = to_hugging_face(model.config, checkpoint.tokenizer) | deepcopy(checkpoint.hugging_face)
    settings["config.json"]["torch_dtype"] = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    settings["config.json"].pop("dtype", None)  # the newer name of the same, which older readers do not know
    for name in ("config.json", "generation_config.json"):
        if model.config.eos_ids[0] not in as_list(settings[name].get("eos_token_id")):  # else replies would not end
            settings[name]["eos_token_id"] = list(model.config.eos_ids)
    fine_tuning = checkpoint.made_by.get("settings", {})
    if fine_tuning:  # it was evaluated without
        settings["generation_config.json"].pop("repetition_penalty", None)
    if template := fine_tuning.get("prompt_template"):  # the model's own, if it has one, is not what it was trained by
        settings["tokenizer_config.json"].pop("chat_template", None)
        source = as_chat_template(template, checkpoint.tokenizer, model.config.eos_ids[0])
        settings["chat_template.jinja"] = source
    return settings


def model_card(name: str, checkpoint: Checkpoint) -> str:
    """Return Markdown with the header that the Hugging Face hub reads: how the model was made, and what it scored."""
    made_by = checkpoint.made_by
    header = ["---", "pipeline_tag: text-generation", "library_name: transformers", "---"]
    if "results" in made_by:
        try:
            header[1:1] = _metadata(made_by)
            history = _fine_tuning(made_by)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            cause = f"what the checkpoint tells of its making cannot be: {type(error).__name__}, {first_line(error)}"
            raise UserError(cause, "make it anew or name another") from error
    elif made_by.keys() == {"from"}:
        history = [f"Converted from `{Path(made_by['from']).name}`, which does not tell how it was made."]
    else:
        history = ["Not fine-tuned by `part4_sft`. How it was made:", _bullets(made_by)]
    family, size = checkpoint.model.config.family, sum(weight.numel() for weight in checkpoint.model.parameters())
    about = f"A causal language model of the {family} family with {size:,} parameters."
    return "\n\n".join(["\n".join(header), f"# {name}", about, *history]) + "\n"


def _metadata(made_by: dict[str, Any]) -> list[str]:
    """Return the lines of the card's header that tell of a run of `part4_sft`, whose values are JSON, and so YAML."""
    settings = made_by["settings"]
    facts = {
        "base_model": Path(made_by["from"]).name,
        "datasets": [_data_file(settings)],
        "tags": ["sft", "conversational", *(["lora"] if settings["lora_rank"] else [])],
    }
    return [f"{name}: {json.dumps(fact, ensure_ascii=False)}" for name, fact in facts.items()]


def _data_file(settings: dict[str, Any]) -> str:
    return Path(settings["data"]).name if settings["data"] else "synthetic retail support"


def _fine_tuning(made_by: dict[str, Any]) -> list[str]:
    """Return the card's paragraphs about a run of `part4_sft`."""
    settings, data, results = made_by["settings"], made_by["dataset"], made_by["results"]
    prompt = "The chat template of the model that it was made from, by which replies end as well."
    if settings["prompt_template"]:
        prompt = f"```\n{unescape(settings['prompt_template'])}\n```\n\n"
        prompt += "The response begins with a space and ends with the end-of-text token, as the chat template has it."
    table = [["measure", *results], ["---"] * (1 + len(results))]
    tested = f"Replies to {data['sft_test']} held-out contexts, at temperature {settings['temperature']:g}:"
    if not data["sft_test"]:
        tested = "Of held-out responses; no replies were generated:"
    for measure in results["sft"]:
        table.append([_words(measure), *(f"{scores[measure]:.4f}" for scores in results.values())])
    learnt = f"(context, response) pairs ({_data_file(settings)}), with the loss on the response alone"
    if not settings["prompt_template"] and settings["train_on_turns"] == "all":
        learnt = f"conversations ({_data_file(settings)}), with the loss on every turn of the assistant"
    return [
        f"{MADE_HERE} from `{Path(made_by['from']).name}` on {data['trained_on']} {learnt}.",
        f"## Prompt\n\n{prompt}",
        f"## Settings\n\n{_bullets({_words(name): settings[name] for name in CARD_SETTINGS})}",
        f"## Results\n\n{tested}",
        "\n".join(f"| {' | '.join(row)} |" for row in table),
    ]


def _words(name: str) -> str:
    return CARD_WORDS.get(name, name.replace("_", " "))


def _bullets(facts: dict[str, Any]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
