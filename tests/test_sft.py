"""The whole of Part 4 with a tiny model, through the real command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from nltk import wordpunct_tokenize
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.huggingface.write import write_folder
from part3_pretrain.model import Transformer
from part4_sft import sft, stages
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, save_pairs
from part4_sft.formats import load_pairs

ROOT = Path(__file__).parents[1]
OUTPUTS = {
    "sft_dataset.json",
    "sft_validation.json",
    "sft_test.json",
    "sft_test_unseen_wording.json",
    "sft_test_unseen_phrase.json",
    "loss_curve.png",
    "evaluation.json",
    "replies.json",
    "README_Part4_SFT_Comprehensive.md",
}


@dataclass(frozen=True)
class Run:
    """A finished run: what was given to it, where it wrote, and what it printed."""

    options: list[str]
    out: Path
    checkpoint: Path
    printed: str

    def read(self, name: str) -> Any:
        return json.loads((self.out / name).read_text(encoding="utf-8"))


def in_folder(folder: Path) -> list[str]:
    return ["--out-dir", str(folder / "outputs"), "--checkpoint-dir", str(folder / "checkpoints")]


@pytest.fixture(scope="module")
def run(made: dict[str, list[Pair]], tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of the command in a process of its own: 16 of 24 pairs are of high quality."""
    folder = tmp_path_factory.mktemp("run")
    given = {
        "--data": made["sft_dataset"][500:504] + made["sft_dataset"][:16] + made["sft_dataset"][504:508],
        "--validation-data": made["sft_validation"][:6],
        "--test-data": made["sft_test"][:10],
    }
    options = ["--model", str(tiny_checkpoint), "--epochs", "2", "--max-new-tokens", "12", "--learning-rate", "0.001"]
    options += ["--samples-per-context", "2"]
    for option, pairs in given.items():
        save_pairs(folder / f"{option}.json", pairs)
        options += [option, str(folder / f"{option}.json")]
    before = tiny_checkpoint.read_bytes()
    finished = subprocess.run(
        [sys.executable, "-m", "part4_sft.sft", *options, *in_folder(folder)], cwd=ROOT, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    assert tiny_checkpoint.read_bytes() == before
    return Run(options, folder / "outputs", folder / "checkpoints" / "sft_model.pt", finished.stdout)


# ---------------------------------------------------------------------------------------------------- a good run


def test_it_writes_every_file_and_names_it(run: Run) -> None:
    names = {path.name for path in run.out.iterdir()}
    assert names >= OUTPUTS
    assert [path.name for path in run.checkpoint.parent.iterdir()] == ["sft_model.pt"]
    for name in (*names, "sft_model.pt"):
        assert name in run.printed
    assert all(path.stat().st_size for path in run.out.iterdir())


def test_without_a_terminal_lines_tell_how_far_it_is(run: Run) -> None:
    lines = run.printed.splitlines()
    assert lines[0] == "16 of 24 pairs train; 6 others are for validation and 10 for the test"
    for entry, line in zip(run.read("evaluation.json")["by_epoch"], lines[1:4], strict=True):
        assert line.startswith(f"epoch {entry['epoch']}: validation loss {entry['validation_loss']:.3f}, BLEU ")
    assert lines[4] == "test: both models answer 10 contexts, each 2 times ..."
    sets = ("unseen wording", "unseen phrase", "one typo", "lower case", "unknown product")
    assert [line.partition(":")[0] for line in lines[5:10]] == [*sets]
    assert "trained on 16 of 24 pairs (the others have high_quality 0)" in lines


def test_the_data_files_hold_what_was_given_and_what_was_made(run: Run, made: dict[str, list[Pair]]) -> None:
    assert load_pairs(run.out / "sft_test.json") == made["sft_test"][:10]
    assert len(load_pairs(run.out / "sft_dataset.json")) == 24
    for name in ("sft_test_unseen_wording", "sft_test_unseen_phrase"):  # also: another process makes the same
        assert load_pairs(run.out / f"{name}.json") == made[name]


def test_the_evaluation_has_its_documented_keys(run: Run) -> None:
    evaluation = run.read("evaluation.json")
    assert set(evaluation) >= {"config", "environment", "timing_seconds", "dataset", "comparison", "baselines"}
    assert set(evaluation["config"]) == {field.name for field in fields(SFTConfig)}
    assert evaluation["dataset"]["trained_on"] == 16

    measures = {"bleu", "corpus_bleu", "rouge_l", "rating", "rated_4_or_more", "right_item", "wrong_item"}
    measures |= {"right_resolution", "stops_by_itself", "length_ratio", "distinct_2"}
    assert set(evaluation["robustness"]) == {"one_typo", "lower_case", "unknown_product"}
    for test_set in (
        evaluation,
        evaluation["unseen_wording"],
        evaluation["unseen_phrase"],
        *evaluation["robustness"].values(),
    ):
        for author in ("pretrained", "sft", "ceiling"):
            assert set(test_set[author]) >= measures | ({"perplexity"} if author != "ceiling" else set())
    for baseline in ("nearest_pair", "most_common_reply"):
        assert set(evaluation["baselines"][baseline]) >= measures
    for measure in ("bleu", "rouge_l", "rating"):
        assert set(evaluation["comparison"][measure]) == {"difference", "ci95", "p_value"}

    assert [entry["epoch"] for entry in evaluation["by_epoch"]] == [0, 1, 2]
    for entry in evaluation["by_epoch"]:
        assert set(entry) == {"epoch", "train_loss", "validation_loss", "bleu", "rouge_l", "rated_4_or_more"}
    first, *_, last = evaluation["by_epoch"]
    assert first["train_loss"] is None and last["validation_loss"] < first["validation_loss"]
    assert evaluation["examples"] == run.read("replies.json")[:8]


AUTHORS = {"pretrained": "pretrained", "sft": "sft", "ceiling": "second_reference"}


def spaced(text: str) -> str:
    """Words and punctuation marks with a space between them, and none within, whatever a random model babbles."""
    return " ".join(
        "".join("_" if letter.isspace() else letter for letter in word) for word in wordpunct_tokenize(text)
    )


def recomputed(entries: list[dict[str, Any]], author: str) -> dict[str, float]:
    """What sacrebleu, rouge-score and numpy find in the texts, ratings and ends: the mean over the samples."""
    samples = [entry["samples"][author] for entry in entries]
    found: dict[str, list[float]] = {}
    for number in range(len(samples[0])):
        replies = [sample[number] for sample in samples]
        texts, references = [reply["text"] for reply in replies], [entry["reference"] for entry in entries]
        said, wanted = ([spaced(text) for text in column] for column in (texts, references))
        smoothing: dict[str, Any] = {"smooth_method": "floor", "smooth_value": 0.1, "tokenize": "none"}
        scorer = RougeScorer(["rougeL"])
        words_said, words_wanted = ([wordpunct_tokenize(text) for text in column] for column in (texts, references))
        pairs = [pair for words in words_said for pair in pairwise(words)]
        of_this_sample = {
            "bleu": np.mean(
                [sacrebleu.sentence_bleu(*pair, use_effective_order=False, **smoothing).score / 100
                 for pair in zip(said, [[text] for text in wanted])]
            ),
            "corpus_bleu": sacrebleu.corpus_bleu(said, [wanted], smooth_method="none", tokenize="none").score / 100,
            "rouge_l": np.mean([scorer.score(*pair)["rougeL"].fmeasure for pair in zip(references, texts)]),
            "length_ratio": sum(map(len, words_said)) / sum(map(len, words_wanted)),
            "distinct_2": len(set(pairs)) / len(pairs),
            "stops_by_itself": np.mean([reply["stops_by_itself"] for reply in replies]),
            "rating": np.mean([reply["rating"] for reply in replies]),
            "rated_4_or_more": np.mean([reply["rating"] >= 4.0 for reply in replies]),
            "right_item": np.mean(["does not name the customer's item" not in reply["faults"] for reply in replies]),
            "wrong_item": np.mean(["names another item" in reply["faults"] for reply in replies]),
            "right_resolution": np.mean([not {
                "leaves a problem without its resolution", "offers a resolution for another problem"
            } & set(reply["faults"]) for reply in replies]),
        }  # fmt: skip
        for measure, value in of_this_sample.items():
            found.setdefault(measure, []).append(float(value))
    return {measure: float(np.mean(values)) for measure, values in found.items()}


def test_every_number_can_be_computed_again_from_the_replies(run: Run) -> None:
    """By other people's code, from what the run wrote."""
    evaluation = run.read("evaluation.json")
    sets = {"replies.json": evaluation}
    sets |= {f"replies_{name}.json": evaluation[name] for name in ("unseen_wording", "unseen_phrase")}
    sets |= {f"replies_{name}.json": found for name, found in evaluation["robustness"].items()}
    for file, scores in sets.items():
        entries = run.read(file)
        for author, key in AUTHORS.items():
            for measure, value in recomputed(entries, author).items():
                assert scores[author][measure] == pytest.approx(value, abs=1e-6), (file, author, measure)
            for entry in entries:
                first = entry["samples"][author][0]
                assert (entry[key], entry[f"{key}_rating"]) == (first["text"], first["rating"])

    entries = run.read("replies.json")
    assert [entry["context"] for entry in entries] == [pair.context for pair in load_pairs(run.out / "sft_test.json")]
    assert {len(entry["samples"][author]) for entry in entries for author in ("pretrained", "sft")} == {2}
    for measure in ("bleu", "rouge_l", "rating"):
        difference = recomputed(entries, "sft")[measure] - recomputed(entries, "pretrained")[measure]
        assert evaluation["comparison"][measure]["difference"] == pytest.approx(difference, abs=1e-6)
    errors = [sample["rating"] < 4.0 for entry in entries for sample in entry["samples"]["sft"]]
    below = [found["rated_below_4"] for found in evaluation["errors_by_category"].values()]
    assert min(below) <= np.mean(errors) <= max(below)
    lowest = sorted(min(sample["rating"] for sample in entry["samples"]["sft"]) for entry in entries)
    assert [reply["rating"] for reply in evaluation["worst_replies"]] == lowest[:10]


def test_the_new_checkpoint_holds_a_changed_model_and_the_same_tokenizer(run: Run, tiny_checkpoint: Path) -> None:
    before, after = load_checkpoint(tiny_checkpoint), load_checkpoint(run.checkpoint)
    assert after.model.config == before.model.config and after.tokenizer.to_str() == before.tokenizer.to_str()
    assert not torch.equal(after.model.embed_tokens.weight, before.model.embed_tokens.weight)
    assert after.made_by["results"]["sft"] == run.read("evaluation.json")["sft"]


# ---------------------------------------------------------------------------------------------------- in this process

Command = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def command(run_main: Command) -> Command:
    return partial(run_main, sft.main)


@pytest.mark.slow
def test_a_second_run_gives_the_same_weights_and_replies(run: Run, command: Command, tmp_path: Path) -> None:
    assert command(*run.options, *in_folder(tmp_path))[0] == 0
    paths = (run.checkpoint, tmp_path / "checkpoints" / "sft_model.pt")
    first, again = (load_checkpoint(path).model for path in paths)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    for path in run.out.glob("replies*.json"):
        assert path.read_bytes() == (tmp_path / "outputs" / path.name).read_bytes()


# --------------------------------------------------------------------------------------------------- own data and model


def test_anybodys_pairs_and_a_hugging_face_model(
    command: Command, tiny_model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """No retail world, so no rubric anywhere; a tenth of the contexts for the test and another for validation."""
    write_folder(tmp_path / "model", tiny_model, tokenizer, {}, "")
    entries = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"It is {2 * n}."} for n in range(30)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, entries)))
    given = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "mine.jsonl"), "--max-new-tokens", "4"]
    given += ["--epochs", "1", "--prompt-template", r"Q: {context}\nA:", "--dtype", "bfloat16", "--lora-rank", "2"]
    given += ["--gradient-checkpointing", "--gradient-accumulation-steps", "2"]
    status, printed, complained = command(*given, *in_folder(tmp_path))
    slow = complained.startswith("note: this processor has no instructions for bfloat16")
    assert status == 0 and complained.count("\n") == slow

    out = tmp_path / "outputs"
    sets = {name: load_pairs(out / f"{name}.json") for name in ("sft_dataset", "sft_test", "sft_validation")}
    assert {name: len(pairs) for name, pairs in sets.items()} == {
        "sft_dataset": 24, "sft_test": 3, "sft_validation": 3
    }  # fmt: skip
    assert len({pair.context for pairs in sets.values() for pair in pairs}) == 30
    evaluation = json.loads((out / "evaluation.json").read_text())
    assert evaluation["dataset"] == {"sft_dataset": 24, "sft_test": 3, "sft_validation": 3, "trained_on": 24}
    assert evaluation["sft"].keys() >= {"bleu", "rouge_l", "stops_by_itself", "perplexity"}
    report = (out / "README_Part4_SFT_Comprehensive.md").read_text()
    for of_retail in ("rating", "rated", "item", "resolution", "unseen", "typo", "ideal"):
        assert not re.search(rf"\b{of_retail}\b", report + printed + json.dumps(evaluation)), of_retail

    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt", dtype=None)
    assert {parameter.dtype for parameter in checkpoint.model.parameters()} == {torch.bfloat16}
    assert checkpoint.hugging_face["config.json"]["model_type"] == "llama"


def test_pairs_of_the_retail_world_are_held_out_only_where_that_is_asked_for(
    command: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    save_pairs(tmp_path / "mine.json", made["sft_dataset"][:20] + made["sft_dataset"][500:520])
    given = ["--model", str(tiny_checkpoint), "--data", str(tmp_path / "mine.json"), "--test-fraction", "0.2"]
    given += ["--epochs", "1", "--max-new-tokens", "1", "--samples-per-context", "1"]
    assert command(*given, *in_folder(tmp_path))[0] == 0
    evaluation = json.loads((tmp_path / "outputs" / "evaluation.json").read_text())
    assert evaluation["dataset"] == {"sft_dataset": 32, "sft_test": 4, "sft_validation": 4, "trained_on": 12}
    assert "rating" in evaluation["sft"] and "unseen_wording" not in evaluation


@pytest.mark.slow
def test_a_test_context_that_is_trained_on_is_told(
    command: Command, tiny_checkpoint: Path, made: dict[str, list[Pair]], tmp_path: Path
) -> None:
    save_pairs(tmp_path / "mine.json", made["sft_dataset"][:4])
    files = [part for name in ("--data", "--test-data") for part in (name, str(tmp_path / "mine.json"))]
    given = ["--model", str(tiny_checkpoint), "--epochs", "1", "--max-new-tokens", "1", "--samples-per-context", "1"]
    _, _, complained = command(*given, *files, *in_folder(tmp_path))
    assert complained == "note: 4 of 4 contexts of sft_test are in the training data too\n"


@pytest.mark.parametrize("options", [["--help"], ["--epochs", "none"]])
def test_help_and_a_mistyped_option_do_not_wait_for_torch(options: list[str]) -> None:
    told = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "part4_sft.sft", *options], cwd=ROOT, capture_output=True, text=True
    )
    imported = re.findall(r"^import time:.*\| +([\w.]+)$", told.stderr, flags=re.MULTILINE)
    assert "part4_sft.config" in imported and "torch" not in imported


def test_help_names_every_option(command: Command) -> None:
    status, printed, _ = command("--help")
    assert status == 0
    for field in fields(SFTConfig):
        assert f"--{field.name.replace('_', '-')}" in printed


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--model", "missing.pt"], "missing.pt"),
        (["--model", "damaged.pt"], "damaged.pt"),
        (["--test-fraction", "0.2"], "--data"),
        (["--moments-dtype", "bfloat16"], "--dtype bfloat16"),
        (["--test-fraction", "0.5"], "--test-fraction"),
        (["--model", "empty"], "config.json"),
        (["--out-dir", "a file"], "a file"),
        (["--checkpoint-dir", "a file"], "a file"),
        (["--epochs", "-1"], "--epochs"),
        (["--epochs", "many"], "--epochs"),
        (["--temperature", "nan"], "--temperature"),
        (["--learning-rate", "inf"], "--learning-rate"),
        (["--top-p", "0"], "--top-p"),
        (["--device", "nonsense"], "nonsense"),
        (["--train-on", "low"], "--train-on"),
        (["--nonsense"], "--nonsense"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
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
    Path("damaged.pt").write_bytes(tiny_checkpoint.read_bytes()[:5000])
    Path("a file").write_text("precious")
    Path("empty").mkdir()

    given = ["--model", str(tiny_checkpoint), "--max-new-tokens", "1", *in_folder(tmp_path)]
    status, _, complained = command(*given, *options)
    assert status == 2
    assert complained.startswith("error:") and complained.count("\n") == 1 and complaint in complained
    assert Path("a file").read_text() == "precious"
    for folder in (Path("outputs"), Path("checkpoints")):
        assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("has_instructions", [True, False])
def test_bfloat16_that_is_slow_here_is_told(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stages, "multiplies_bfloat16", lambda: has_instructions)
    for dtype, device in (("bfloat16", "cpu"), ("float32", "cpu"), ("bfloat16", "cuda")):
        stages.tell_if_slow(dtype, torch.device(device))
    assert capsys.readouterr().err.count("note: ") == (not has_instructions)
