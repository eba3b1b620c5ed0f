"""What a run writes, and that it writes over nothing that is the user's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from part3_pretrain.checkpoint import Checkpoint, save_checkpoint
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.files import atomic_write, check_kept, check_not_folder, check_writable, same_file
from part4_sft import pictures, report
from part4_sft.config import BEST_FILE, MODEL_FILE, STATE_FILE, SFTConfig
from part4_sft.dataset import Pair, save_pairs
from part4_sft.evaluation import UNSEEN_SETS, Entry
from part4_sft.extras.save_as import check_place, save_as
from part4_sft.formats import read
from part4_sft.preparation import Data
from part4_sft.terminal.journals import journals

REPORT_FILE = "README_Part4_SFT_Comprehensive.md"
RESULTS = ("evaluation.json", "replies.json", "loss_curve.png", REPORT_FILE)
UNTIDY_SETS = ("one_typo", "lower_case", "unknown_product", "unseen_message", "unseen_topic")
RETAIL_RESULTS = ("coverage.png", "controls.png", *(f"replies_{name}.json" for name in (*UNSEEN_SETS, *UNTIDY_SETS)))


def check_outputs(config: SFTConfig) -> None:
    """Raise UserError where a run could not write its files: before hours of training, not after them."""
    check_writable(config.out_dir, config.checkpoint_dir)
    if config.tensorboard:
        check_writable(config.tensorboard)
    check_place(config)
    files = [path for path in config.out_dir.iterdir() if path.suffix in (".json", ".png", ".md")]
    checkpoints = [config.checkpoint_dir / name for name in (MODEL_FILE, STATE_FILE, BEST_FILE)]
    check_not_folder(*files, *checkpoints)
    check_kept([config.model], *checkpoints)


def check_inputs_kept(config: SFTConfig, data: Data) -> None:
    """Raise UserError where a file that the user named or rated would be written over, unless by what it holds."""
    given = given_files(config)
    for path, pairs in data_files(config, data).items():
        is_given = any(same_file(path, one) for one in given)
        is_rated = bool(journals(path))
        columns = config.columns if is_given and config.columns else ()  # a rated file has our own keys
        if not (is_given or is_rated) or not path.exists() or read(path, columns).pairs == pairs:
            continue
        check_kept(given, path)
        raise UserError(f"{path} holds ratings, and would be written over", "choose another --out-dir")
    check_kept(given, *(config.out_dir / name for name in RESULTS + RETAIL_RESULTS))


def given_files(config: SFTConfig) -> list[Path]:
    """Return the files of pairs that the user named."""
    return [path for path in (config.data, config.validation_data, config.test_data) if path]


def data_files(config: SFTConfig, data: Data) -> dict[Path, list[Pair]]:
    """Return the files of pairs that a run writes; of a stream only the beginning is in memory, so it is none."""
    kept = {name: pairs for name, pairs in data.items() if not (config.stream and name == "sft_dataset")}
    return {config.out_dir / f"{name}.json": pairs for name, pairs in kept.items()}


def save(
    checkpoint: Checkpoint,
    digest: str,
    evaluation: dict[str, Any],
    entries: dict[str, list[Entry]],
    data: Data,
    config: SFTConfig,
    adapter: dict[str, Tensor],
) -> list[Path]:
    """Write the model, the data, the numbers, the replies, the picture and the report; return their paths."""
    out = config.out_dir
    model_file, curve, text = config.checkpoint_dir / MODEL_FILE, out / "loss_curve.png", out / REPORT_FILE
    made_by = {
        "from": str(config.model),
        "digest": digest,  # of the weights to begin with
        "settings": evaluation["config"],
        "dataset": evaluation["dataset"] | {"sft_test": evaluation["samples"]["contexts"]},
        "results": {author: evaluation[author] for author in ("pretrained", "sft")},
        "hand_over": evaluation["hand_over"]["threshold"] if "hand_over" in evaluation else 0.0,
    }
    trained = replace(checkpoint, made_by=made_by)
    save_checkpoint(model_file, trained)
    written = [model_file]
    written += save_data(config, data)
    contents: dict[str, Any] = {"evaluation.json": evaluation}
    for name, replies in entries.items():
        contents["replies.json" if name == "test" else f"replies_{name}.json"] = replies
    for name, content in contents.items():
        with atomic_write(out / name) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(out / name)
    pictures.save_loss_curve(curve, evaluation["steps"]["loss"], evaluation["by_epoch"])
    report.save_report(text, evaluation)
    if "curve" in evaluation.get("hand_over", {}):
        pictures.save_coverage(out / "coverage.png", evaluation["hand_over"])
        written.append(out / "coverage.png")
    if "controls" in evaluation:
        pictures.save_controls(out / "controls.png", evaluation)
        written.append(out / "controls.png")
    for name in ("replies.json", *RETAIL_RESULTS):  # those of an earlier run are of another model
        if out / name not in written:
            (out / name).unlink(missing_ok=True)
    return [*written, curve, text, *save_as(config, trained, adapter)]  # last: should it fail, nothing else is lost


def save_data(config: SFTConfig, data: Data) -> list[Path]:
    """Write the pairs, but for files that the user named, whose layout may be another; return the paths."""
    files = data_files(config, data)
    for path, pairs in files.items():
        if not any(same_file(path, one) for one in given_files(config)):
            save_pairs(path, pairs)
    return [*files]
