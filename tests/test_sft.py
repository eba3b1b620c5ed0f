"""The whole of Part 4 with a tiny model, through the real command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.training_state import digest_of_weights
from part4_sft import outputs, run, sft
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, save_pairs
from part4_sft.formats import load_pairs
from part4_sft.metrics import words_of
from part4_sft.preparation import prepare_data
from tests.conftest import ROOT, Command, FinishedRun, assert_refused, in_folder, not_of_retail, weights


@pytest.fixture
def command(run_main: Command) -> Command:
    return partial(run_main, sft.main)


# ---------------------------------------------------------------------------------------------------- a good run


def test_without_a_terminal_lines_tell_how_far_it_is(finished_run: FinishedRun) -> None:
    lines = finished_run.printed.splitlines()
    assert lines[0] == "16 of 24 pairs train; 6 others are for validation and 10 for the test"
    for entry, line in zip(finished_run.read("evaluation.json")["by_epoch"], lines[1:4], strict=True):
        assert line.startswith(f"epoch {entry['epoch']}: validation loss {entry['validation_loss']:.3f}, BLEU ")
    assert lines[4] == "test: both models answer 10 contexts, each 2 times ..."
    sets = ["unseen wording", "unseen phrase", "one typo", "lower case", "unknown product"]
    assert [line.partition(":")[0] for line in lines[5:10]] == sets
    assert "trained on 16 of 24 pairs (the others have high_quality 0)" in lines


def test_the_data_files_hold_what_was_given_and_what_was_made(
    finished_run: FinishedRun, made: dict[str, list[Pair]]
) -> None:
    assert load_pairs(finished_run.out / "sft_test.json") == made["sft_test"][:10]
    assert len(load_pairs(finished_run.out / "sft_dataset.json")) == 24
    assert {path.name for path in finished_run.out.iterdir()} >= {*outputs.RETAIL_RESULTS}
    for name in ("sft_test_unseen_wording", "sft_test_unseen_phrase"):  # also: another process makes the same
        assert load_pairs(finished_run.out / f"{name}.json") == made[name]


def test_the_evaluation_has_its_documented_keys(finished_run: FinishedRun) -> None:
    evaluation = finished_run.read("evaluation.json")
    assert set(evaluation["config"]) == {field.name for field in fields(SFTConfig)}
    assert evaluation["dataset"] == {
        "sft_dataset": 24, "sft_validation": 6, "sft_test": 10, "trained_on": 16,
        "sft_test_unseen_wording": 200, "sft_test_unseen_phrase": 200,
    }  # fmt: skip
    stages = {"data", "pretraining", "tokenising", "validation", "fine_tuning", "evaluation", "controls"}
    assert set(evaluation["timing_seconds"]) == stages and all(s >= 0 for s in evaluation["timing_seconds"].values())
    environment = evaluation["environment"]
    parameters = weights(load_checkpoint(finished_run.checkpoint).model).numel()
    assert (environment["device"], environment["processes"], environment["parameters"]) == ("cpu", 1, parameters)

    measures = {"bleu", "corpus_bleu", "rouge_l", "rating", "rated_4_or_more", "right_item", "wrong_item"}
    measures |= {"right_resolution", "stops_by_itself", "length_ratio", "distinct_2"}
    for name in (".", "unseen_wording", "unseen_phrase"):
        scores = evaluation if name == "." else evaluation[name]
        for author in ("pretrained", "sft", "ceiling"):
            assert set(scores[author]) >= measures | ({"perplexity"} if author != "ceiling" else set())

    assert [entry["epoch"] for entry in evaluation["by_epoch"]] == [0, 1, 2]
    for entry in evaluation["by_epoch"]:
        assert set(entry) == {"epoch", "train_loss", "validation_loss", "bleu", "rouge_l", "rated_4_or_more"}
    first, *_, last = evaluation["by_epoch"]
    assert first["train_loss"] is None and last["validation_loss"] < first["validation_loss"]
    assert evaluation["examples"] == finished_run.read("replies.json")[:8]
    made_by = load_checkpoint(finished_run.checkpoint).made_by
    assert made_by["results"] == {author: evaluation[author] for author in ("pretrained", "sft")}
    assert made_by["settings"] == evaluation["config"] and made_by["from"] == evaluation["config"]["model"]


class Words:
    """Those of any alphabet; the library's own words are of a to z alone."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(letter if letter.isalnum() else " " for letter in " ".join(words_of(text.lower()))).split()


def spaced(text: str) -> str:
    """Words and punctuation marks with a space between them, and none within, whatever a random model babbles."""
    return " ".join(re.sub(r"\s", "_", word) for word in words_of(text))


def recomputed(entries: list[dict[str, Any]], author: str) -> dict[str, float]:
    """What sacrebleu, rouge-score and numpy find in the texts, ratings and ends: the mean over the samples."""
    found: dict[str, list[float]] = {}
    for number in range(len(entries[0]["samples"][author])):
        replies = [entry["samples"][author][number] for entry in entries]
        texts, references = [reply["text"] for reply in replies], [entry["reference"] for entry in entries]
        hypotheses, targets = ([spaced(text) for text in column] for column in (texts, references))
        words, target_words = ([words_of(text) for text in column] for column in (texts, references))
        bigrams = [bigram for reply in words for bigram in pairwise(reply)]
        smoothing: dict[str, Any] = {"smooth_method": "floor", "smooth_value": 0.1, "tokenize": "none"}
        scorer = RougeScorer(["rougeL"], tokenizer=Words())
        faults = [set(reply["faults"]) for reply in replies]
        wrong = {"leaves a problem without its resolution", "offers a resolution for another problem"}
        for measure, value in {
            "bleu": np.mean(
                [sacrebleu.sentence_bleu(*pair, use_effective_order=False, **smoothing).score / 100
                 for pair in zip(hypotheses, [[text] for text in targets])]
            ),
            "corpus_bleu": sacrebleu.corpus_bleu(
                hypotheses, [targets], smooth_method="none", tokenize="none").score / 100,
            "rouge_l": np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, texts)]),
            "length_ratio": sum(map(len, words)) / sum(map(len, target_words)),
            "distinct_2": len(set(bigrams)) / len(bigrams),
            "stops_by_itself": np.mean([reply["stops_by_itself"] for reply in replies]),
            "rating": np.mean([reply["rating"] for reply in replies]),
            "rated_4_or_more": np.mean([reply["rating"] >= 4.0 for reply in replies]),
            "right_item": np.mean(["does not name the customer's item" not in found for found in faults]),
            "wrong_item": np.mean(["names another item" in found for found in faults]),
            "right_resolution": np.mean([not wrong & found for found in faults]),
        }.items():  # fmt: skip
            found.setdefault(measure, []).append(float(value))
    return {measure: float(np.mean(values)) for measure, values in found.items()}


def test_every_number_can_be_computed_again_from_the_replies(finished_run: FinishedRun) -> None:
    """By other people's code, from what the run wrote."""
    evaluation = finished_run.read("evaluation.json")
    sets = {"replies.json": evaluation}
    sets |= {f"replies_{name}.json": evaluation[name] for name in ("unseen_wording", "unseen_phrase")}
    sets |= {f"replies_{name}.json": scores for name, scores in evaluation["robustness"].items()}
    for file, scores in sets.items():
        entries = finished_run.read(file)
        for author, key in {"pretrained": "pretrained", "sft": "sft", "ceiling": "second_reference"}.items():
            for measure, value in recomputed(entries, author).items():
                assert scores[author][measure] == pytest.approx(value, abs=1e-6), (file, author, measure)
            for entry in entries:
                first = entry["samples"][author][0]
                assert (entry[key], entry[f"{key}_rating"]) == (first["text"], first["rating"])
    entries = finished_run.read("replies.json")
    for measure in ("bleu", "rouge_l", "rating"):
        difference = recomputed(entries, "sft")[measure] - recomputed(entries, "pretrained")[measure]
        assert evaluation["comparison"][measure]["difference"] == pytest.approx(difference, abs=1e-6)


@pytest.mark.slow
def test_a_second_run_gives_the_same_weights_and_replies(
    finished_run: FinishedRun, command: Command, tmp_path: Path
) -> None:
    assert command(*finished_run.options, *in_folder(tmp_path))[0] == 0
    paths = (finished_run.checkpoint, tmp_path / "checkpoints" / "sft_model.pt")
    first, again = (load_checkpoint(path).model for path in paths)
    assert torch.equal(weights(first), weights(again))
    for path in finished_run.out.glob("replies*.json"):
        assert path.read_bytes() == (tmp_path / "outputs" / path.name).read_bytes()


def test_anybodys_pairs_and_a_hugging_face_model(
    command: Command, tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """No retail world, so no rubric anywhere; a tenth of the contexts for the test and another for validation.

    What a run of the retail world left goes away.
    """
    out = tmp_path / "outputs"
    out.mkdir()
    for name in ("replies_one_typo.json", "coverage.png", "controls.png"):
        (out / name).write_text("of another model")
    write_folder(tmp_path / "model", Checkpoint(tiny_model, tokenizer, {}))
    entries = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"It is {2 * n}."} for n in range(30)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, entries)))
    options = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "mine.jsonl"), "--max-new-tokens", "4"]
    options += ["--epochs", "1", "--prompt-template", r"Q: {context}\nA:", "--dtype", "bfloat16", "--lora-rank", "2"]
    options += ["--gradient-checkpointing", "--micro-batch-size", "2"]
    status, printed, complained = command(*options, *in_folder(tmp_path))
    slow = complained.startswith("note: this processor has no instructions for bfloat16")
    assert status == 0 and complained.count("\n") == slow

    assert [path.name for path in out.glob("*") if path.name in outputs.RETAIL_RESULTS] == []
    sizes = {"sft_dataset": 24, "sft_test": 3, "sft_validation": 3}
    sets = {name: load_pairs(out / f"{name}.json") for name in sizes}
    assert {name: len(pairs) for name, pairs in sets.items()} == sizes
    assert len({pair.context for pairs in sets.values() for pair in pairs}) == 30
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["dataset"] == sizes | {"trained_on": 24}
    report = (out / "README_Part4_SFT_Comprehensive.md").read_text()
    for of_retail in ("rating", "rated", "item", "resolution", "unseen", "typo", "ideal"):
        assert not re.search(rf"\b{of_retail}\b", report + printed + json.dumps(evaluation)), of_retail

    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt", dtype=None)
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.float32}  # as LoRA is merged
    assert checkpoint.hugging_face["config.json"]["model_type"] == "llama"


# ---------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize("options", [["--help"], ["--epochs", "none"]])
def test_help_and_a_mistyped_option_do_not_wait_for_torch(options: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "part4_sft.sft", *options]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    imported = re.findall(r"^import time:.*\| +([\w.]+)$", told.stderr, flags=re.MULTILINE)
    assert "part4_sft.config" in imported and "torch" not in imported


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "missing.pt"], "missing.pt"),
        (["--model", "damaged.pt"], "damaged.pt"),
        (["--model", "empty"], "config.json"),
        (["--out-dir", "a file"], "a file"),
        (["--checkpoint-dir", "a file"], "a file"),
        (["--epochs", "-1"], "--epochs"),
        (["--moments-dtype", "bfloat16"], "--dtype bfloat16"),
        (["--device", "cuda"], "--device cpu"),
    ],
    ids=" ".join,
)
def test_a_users_mistake_ends_in_one_line_and_nothing_is_written(
    command: Command,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    Path("damaged.pt").write_bytes(tiny_checkpoint.read_bytes()[:5000])
    Path("a file").write_text("precious")
    Path("empty").mkdir()
    given = ["--model", str(tiny_checkpoint), "--max-new-tokens", "1", *in_folder(tmp_path)]
    assert_refused(command(*given, *options), complaint)
    assert Path("a file").read_text() == "precious"
    for folder in (Path("outputs"), Path("checkpoints")):
        assert not folder.exists() or not list(folder.iterdir())


def test_a_folder_in_the_place_of_a_file_is_told_before_any_training(
    command: Command, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for folder in ("outputs/replies.json", "checkpoints/sft_model.pt", "checkpoints/sft_model.state.pt"):
        (tmp_path / folder).mkdir(parents=True)
        assert_refused(command("--model", tiny_checkpoint, *in_folder(tmp_path)), f"{folder} is a folder")
        (tmp_path / folder).rmdir()


def test_what_is_read_is_never_written_over(
    command: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    folder, model = tmp_path / "outputs", tmp_path / "checkpoints" / "sft_model.pt"
    folder.mkdir()
    for name, pairs in {
        "sft_dataset.json": not_of_retail(made["sft_dataset"][:40]),
        "sft_test.json": made["sft_dataset"][2:4],
        "replies_one_typo.json": made["sft_dataset"][:2],
    }.items():
        save_pairs(folder / name, pairs)
        before = (folder / name).read_bytes()
        given = ["--model", tiny_checkpoint, *in_folder(tmp_path), "--data", folder / name]
        assert_refused(command(*given), f"{name} is read by this run, which would write over it")
        assert (folder / name).read_bytes() == before
    model.parent.mkdir()
    model.write_bytes(tiny_checkpoint.read_bytes())
    assert_refused(command("--model", model, *in_folder(tmp_path)), "sft_model.pt is read by this run")


def test_a_file_that_somebody_has_rated_is_not_written_over_by_other_pairs(
    command: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs"
    folder.mkdir()
    save_pairs(folder / "sft_dataset.json", made["sft_dataset"][:3])
    (folder / "sft_dataset.json.anna.jsonl").touch()
    before = (folder / "sft_dataset.json").read_bytes()
    (tmp_path / "theirs.json").write_text(
        json.dumps([{"Frage": f"Where is {n}?", "Antwort": "Here."} for n in range(4)])
    )
    theirs = ["--data", tmp_path / "theirs.json", "--columns", "context=Frage", "response=Antwort"]
    for options in ([], theirs):
        refused = command("--model", tiny_checkpoint, *in_folder(tmp_path), *options)
        assert_refused(refused, "sft_dataset.json holds ratings, and would be written over; choose another --out-dir")
        assert (folder / "sft_dataset.json").read_bytes() == before
    config = SFTConfig(data=folder / "sft_dataset.json", out_dir=folder)
    outputs.check_inputs_kept(config, {"sft_dataset": made["sft_dataset"][:3]})  # the ratings as they are


def test_pairs_of_which_none_is_held_out_may_be_where_they_would_be_written_and_stay_as_they_are(
    made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    path = tmp_path / "sft_dataset.json"
    entry = {"context": made["sft_dataset"][0].context, "response": made["sft_dataset"][0].response, "high_quality": 1}
    path.write_text(json.dumps([entry]))
    config = SFTConfig(data=path, out_dir=tmp_path)
    outputs.check_inputs_kept(config, prepare_data(config))
    outputs.save_data(config, {"sft_dataset": load_pairs(path), "sft_test": made["sft_test"][:1]})
    assert path.read_text() == json.dumps([entry]) and load_pairs(tmp_path / "sft_test.json") == made["sft_test"][:1]


def test_a_model_that_changes_while_it_is_fine_tuned_is_not_compared_with(tiny_checkpoint: Path) -> None:
    config, model = SFTConfig(model=tiny_checkpoint), load_checkpoint(tiny_checkpoint).model
    again = run.load_pretrained(config, model, digest_of_weights(model))
    assert torch.equal(weights(again), weights(model))
    with pytest.raises(UserError, match="has been changed since the training began"):
        run.load_pretrained(config, model, "of what it was")


def test_where_the_default_checkpoint_is_missing_part_3_runs_first(
    command: Command,
    tiny_checkpoint: Path,
    made: dict[str, list[Pair]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And says so; with the seed, the device and the folders of this run."""
    monkeypatch.chdir(tmp_path)
    configs: list[Any] = []

    def pretrain(config: Any) -> None:
        configs.append(config)
        config.checkpoint.write_bytes(tiny_checkpoint.read_bytes())

    monkeypatch.setattr("part4_sft.run.pretrain", pretrain)
    save_pairs(tmp_path / "mine.json", not_of_retail(made["sft_dataset"][:4]))
    options = ["--epochs", "1", "--max-new-tokens", "1", "--samples-per-context", "1", "--seed", "7"]
    options += ["--device", "cpu"]
    for name in ("--data", "--validation-data", "--test-data"):
        options += [name, "mine.json"]
    status, printed, complained = command(*options)
    assert status == 0 and "checkpoints/pretrained.pt is missing, so Part 3 runs first and makes it" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "outputs", "mine.json"}
    assert [(str(c.checkpoint), str(c.out_dir), c.device, c.seed, c.resume) for c in configs] == [
        ("checkpoints/pretrained.pt", "outputs", "cpu", 7, False)
    ]
    assert complained.splitlines() == [
        f"note: 4 of 4 contexts of {name} are in the training data too" for name in ("sft_validation", "sft_test")
    ]
