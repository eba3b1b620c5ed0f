"""The settings of a run: one dataclass, whose fields are the options of `python -m part4_sft.sft`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from part3_pretrain.config import PretrainConfig
from part3_pretrain.runtime.cli import ABOVE_ZERO, PATH, SEED, UserError, at_least, option, parse, same_as

DEFAULT_CHECKPOINT = Path("checkpoints/pretrained.pt")
MODEL_FILE, STATE_FILE = "sft_model.pt", "sft_model.state.pt"  # in --checkpoint-dir
BEST_FILE = "sft_model.state.best.pt"  # there too, while a run with --keep best goes on
EXTRAS = {"lora_rank": "peft==0.21.2", "tensorboard": "tensorboard==2.21.0"}  # packages that only these options need
DEFAULT_TEMPLATE = r"Customer: {context}\nAgent:"  # as it is written on a command line; see `unescape`
# Beyond these bounds, probabilities in float32 become 0 all or NaN.
PROBABILITY: dict[str, Any] = {"allowed": "0.001 to 1", "is_valid": lambda value: 0.001 <= value <= 1}
TEMPERATURE: dict[str, Any] = {
    "allowed": "0, or 0.001 to 1000",
    "is_valid": lambda value: value == 0 or 0.001 <= value <= 1000,
}


@dataclass(frozen=True)
class SFTConfig:
    """What can be chosen; `--help` explains each."""

    model: Path = option(
        DEFAULT_CHECKPOINT,
        "checkpoint, folder of a Hugging Face model or GGUF file to start from; the default is pretrained if missing",
        **PATH,
    )
    data: Path | None = option(
        None, "JSON, JSONL or CSV file of training pairs; without it 5,000 retail pairs are made", **PATH
    )
    columns: list[str] | None = option(
        None,
        "what files of pairs call a key, where it is not the key itself: context=Question response=Answer",
        decides_training=False,
        nargs="+",
        type=str,
        metavar="KEY=NAME",
    )
    stream: bool = option(
        False,
        "tokenise --data, a JSONL file of any size, once into files in --out-dir that every process maps, instead of "
        "reading it into memory; needs --validation-data and --test-data, and whether they overlap is not looked at",
    )
    validation_data: Path | None = option(None, "file of pairs for the numbers after each epoch", **PATH)
    test_data: Path | None = option(None, "file of pairs for the before/after comparison", **PATH)
    test_fraction: float | None = option(
        None,
        "share of --data to hold out for the test, and as much for validation, where no file is named; 0.1 if --data "
        "is not of the retail world",
        allowed="above 0 and below 0.5",
        is_valid=lambda value: value is None or 0 < value < 0.5,
        type=float,
    )
    chat_template: str | None = option(
        None,
        "whether conversations are written as the model's own chat template has it; by default where it has one, and "
        "no --prompt-template is given",
        choices=["model", "none"],
        type=str,
    )
    train_on_turns: str = option(
        "all", "turns of the assistant that give gradients, with a chat template", choices=["last", "all"]
    )
    prompt_template: str | None = option(
        None,
        rf"what the model reads before it answers, without a chat template; \n is a new line; by default "
        f'"{DEFAULT_TEMPLATE}"',
        allowed="a text with {context} in it, once",
        is_valid=lambda template: template is None or template.count("{context}") == 1,
        type=str,
    )
    out_dir: Path = option(Path("outputs"), "folder for data, loss curve, evaluation and report", **PATH)
    checkpoint_dir: Path = option(Path("checkpoints"), "folder for sft_model.pt", **PATH)
    save_as: Path | None = option(
        None,
        "folder for transformers, or FILE.gguf for llama.cpp, that the fine-tuned model is written to besides; by "
        "default sft_model in --checkpoint-dir where --model is a folder or a GGUF file",
        **PATH,
    )
    epochs: int = option(5, "how often every training pair is seen", **at_least(1))
    learning_rate: float = option(5e-5, "Adam's (highest) learning rate", **ABOVE_ZERO)
    schedule: str = option(
        "constant",
        "learning rate after the warm-up: constant, or falling to 0 along a line or half a cosine",
        choices=["constant", "linear", "cosine"],
    )
    warmup_steps: int = option(0, "optimizer steps in which the learning rate rises from 0", **at_least(0))
    max_grad_norm: float = option(0.0, "norm that a longer gradient is scaled down to; 0: none is", **at_least(0))
    batch_size: int = option(1, "pairs in one optimizer step", **at_least(1))
    micro_batch_size: int = option(
        0,
        "pairs that a process computes at once, to save memory; 0: all of a step; the result is the same",
        **at_least(0),
    )
    max_length: int = option(512, "tokens of context and response; a longer context loses its beginning", **at_least(2))
    keep: str = option(
        "last",
        "epoch whose weights are tested and saved: the last, or that of the lowest validation loss",
        choices=["last", "best"],
    )
    seed: int = option(0, "seed of data, order and sampling", **SEED)
    device: str = same_as(PretrainConfig, "device")
    dtype: str = option(
        "auto",
        "number format of weights and gradients; bfloat16 needs half; auto is float32, in which large layers multiply "
        "in bfloat16 on a processor that has instructions for it",
        choices=["auto", "float32", "bfloat16"],
    )
    moments_dtype: str = option(
        "float32", "number format of Adam's moments with --dtype bfloat16", choices=["float32", "bfloat16"]
    )
    gradient_checkpointing: bool = option(False, "compute each block twice, so that fewer activations are in memory")
    lora_rank: int = option(0, "train matrices of this rank beside frozen weights (needs peft); 0: all", **at_least(0))
    shard: bool = option(
        False,
        "with torchrun: keep a part of weights, gradients and moments in each process (FSDP2); with --dtype bfloat16 "
        "the weights are float32 and the products bfloat16",
    )
    compile: bool = option(False, "compile the model with torch.compile; on a CPU that costs more than it gains")
    temperature: float = option(0.4, "randomness of replies; 0 takes the likeliest token", **TEMPERATURE)
    top_k: int = option(0, "draw from the k likeliest tokens only; 0: from all", **at_least(0))
    top_p: float = option(1.0, "draw from the likeliest tokens that together have this probability", **PROBABILITY)
    max_new_tokens: int = option(128, "longest reply, in tokens", **at_least(1))
    evaluate: str | None = option(
        None,
        "replies that tell how good the models are: full; quick, one each to 40 test and 20 validation contexts; none, "
        "only losses. By default full for up to 20 million parameters, else quick",
        decides_training=False,
        choices=["none", "quick", "full"],
        type=str,
    )
    samples_per_context: int | None = option(
        None,
        "replies to each test context; scores are their means; by default 16, or 1 with --evaluate quick",
        decides_training=False,
        allowed="1 or more",
        is_valid=lambda value: value is None or value >= 1,
        type=int,
    )
    hand_over: float | None = option(
        None,
        "share of other replies that must claim what a reply claims, else it is handed over to a person; 0: never; by "
        "default that which hands over 1 in 100 of the good validation replies, and 0 at temperature 0",
        decides_training=False,
        allowed="0 to 1",
        is_valid=lambda value: value is None or 0 <= value <= 1,
        type=float,
    )
    train_on: str = option(
        "high", "pairs that give gradients: those with high_quality 1, or all", choices=["high", "all"]
    )
    tensorboard: Path | None = option(
        None, "folder for curves that TensorBoard shows while the run goes on (needs tensorboard)", **PATH
    )
    save_every: int = option(
        100, "optimizer steps after which the state of the training is saved", decides_training=False, **at_least(1)
    )
    resume: bool = same_as(PretrainConfig, "resume")


def needs_pretraining(config: SFTConfig) -> bool:
    """Whether Part 3 has to run first: the default checkpoint is asked for and is not there."""
    return config.model == DEFAULT_CHECKPOINT and not config.model.exists()


def written_folders(config: SFTConfig) -> list[Path]:
    """Return the folders that a run writes to, so that it may lock them."""
    return [config.out_dir, config.checkpoint_dir, *([config.model.parent] if needs_pretraining(config) else [])]


def parse_arguments(arguments: list[str] | None = None) -> SFTConfig:
    """Read the command line.

    Raises:
        UserError: an option is unknown or out of range, options do not go together, or need a package that is not
            installed.
    """
    if any(given.startswith("--gradient-acc") for given in (sys.argv[1:] if arguments is None else arguments)):
        cause = "--gradient-accumulation-steps multiplies the batch in every other tool, and divided it here"
        raise UserError(cause, "use --micro-batch-size, the pairs that are computed at once")
    config = parse(
        SFTConfig,
        prog="python -m part4_sft.sft",
        description="Fine-tunes the pretrained model on high-quality (context, response) pairs and compares both "
        "models on contexts that the fine-tuning has not seen. Writes checkpoints/sft_model.pt and, in outputs/, data, "
        "the loss curve, evaluation.json, replies.json and a report. Memory: 16 bytes a parameter (135M: 2.2 GB, "
        "1B: 20 GB, 8B: 129 GB); with --dtype bfloat16 12, with --moments-dtype bfloat16 too 8, with --lora-rank "
        "as well little more than 2; activations come on top, and --gradient-checkpointing keeps them small.",
        example="python -m part4_sft.sft --epochs 3 --out-dir outputs/three --checkpoint-dir checkpoints/three",
        arguments=arguments,
    )
    check_combinations(config)
    return config


def check_combinations(config: SFTConfig) -> None:
    """Raise UserError where options do not go together, or need a package that is not installed."""
    if config.moments_dtype == "bfloat16" and config.dtype != "bfloat16":
        raise UserError("--moments-dtype bfloat16 needs --dtype bfloat16 too", "float32 weights have float32 moments")
    if config.stream and not (config.data and config.validation_data and config.test_data):
        raise UserError(
            "--stream needs --data, --validation-data and --test-data: nothing is held out of a stream",
        )
    if config.chat_template == "model" and config.prompt_template:
        raise UserError("--chat-template model does not go together with --prompt-template", "choose one of them")
    if config.columns and not config.data:
        raise UserError("--columns names those of --data", "name a file with --data too")
    if config.test_fraction and not config.data:
        raise UserError("--test-fraction is a share of --data", "name a file with --data too")
    cannot_be_sharded = {
        "--lora-rank": config.lora_rank > 0,
        "--compile": config.compile,
        "--moments-dtype bfloat16": config.moments_dtype == "bfloat16",  # sharded weights are float32
    }
    for name, is_given in cannot_be_sharded.items():
        if config.shard and is_given:
            raise UserError(f"--shard does not go together with {name}", "choose one of them")
    for name, requirement in EXTRAS.items():
        package = requirement.partition("==")[0]
        if getattr(config, name) and find_spec(package) is None:
            raise UserError(
                f"--{name.replace('_', '-')} needs {package}", f"install it with: pip install {requirement}"
            )
