"""--evaluate: a large model writes few replies by default, and what was not written is not told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.huggingface.write import model_card
from part4_sft import evaluation, run, sft
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, save_pairs
from part4_sft.extras.extent import choose_pairs, settle_extent
from tests.conftest import Command, FinishedRun, in_folder
from tests.processes import small_sft


@pytest.mark.parametrize(
    ("parameters", "given", "expected"),
    [
        (20_000_000, {}, ("full", 16)),
        (20_000_001, {}, ("quick", 1)),
        (20_000_001, {"evaluate": "full"}, ("full", 16)),
        (2, {"evaluate": "quick"}, ("quick", 1)),
        (20_000_001, {"samples_per_context": 3}, ("quick", 3)),
        (2, {"samples_per_context": 3}, ("full", 3)),
        (2, {"evaluate": "none"}, ("none", 1)),
    ],
)
def test_the_size_of_the_model_decides_where_nothing_is_said(
    parameters: int, given: dict[str, Any], expected: tuple[str, int]
) -> None:
    config = SFTConfig(**given)
    settled = settle_extent(config, parameters)
    assert (settled.evaluate, settled.samples_per_context) == expected
    assert replace(settled, evaluate=config.evaluate, samples_per_context=config.samples_per_context) == config


def test_quick_takes_pairs_from_everywhere_in_a_file() -> None:
    pairs = [Pair(str(number), "a") for number in range(100)]
    data = {"sft_dataset": pairs, "sft_validation": pairs[:7], "sft_test": pairs, "sft_test_unseen_phrase": pairs}
    chosen = choose_pairs(data, "quick")
    places = [int(pair.context) for pair in chosen.pop("sft_test")]
    assert len(set(places)) == 40 and places[0] == 0 and 95 < places[-1] < 100
    assert chosen == {"sft_dataset": pairs, "sft_validation": pairs[:7]}
    assert choose_pairs(data, "full") == data


@pytest.fixture
def evaluated(run_main: Command, tiny_checkpoint: Path, tmp_path: Path) -> Any:
    """Runs a small training with --evaluate; gives `evaluation.json` and what was printed."""

    def evaluate(extent: str, *options: str) -> tuple[dict[str, Any], str]:
        given = small_sft(tmp_path, tiny_checkpoint)
        pairs = [Pair(f"What is {number} and {number}?", f"It is {2 * number}.") for number in range(100, 150)]
        for name in ("validation", "test"):
            save_pairs(tmp_path / f"{name}-data.json", pairs)
        status, printed, complained = run_main(sft.main, *given, *in_folder(tmp_path), "--evaluate", extent, *options)
        assert (status, complained) == (0, "")
        return json.loads((tmp_path / "outputs" / "evaluation.json").read_text()), printed

    return evaluate


def test_quick_answers_forty_contexts_of_the_test_and_twenty_of_validation(
    evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated = Mock(side_effect=evaluation.validate)
    monkeypatch.setattr(run, "validate", validated)
    result, printed = evaluated("quick")
    assert [len(call.args[2]) for call in validated.call_args_list] == [20, 20, 20]
    assert "test: both models answer 40 contexts ..." in printed
    entries = json.loads((tmp_path / "outputs" / "replies.json").read_text())
    assert len(entries) == 40 and {len(entry["samples"]["sft"]) for entry in entries} == {1}
    assert result["dataset"]["sft_test"] == 50 and result["samples"]["contexts"] == 40
    assert result["config"]["evaluate"] == "quick"
    report = (tmp_path / "outputs" / "README_Part4_SFT_Comprehensive.md").read_text()
    assert "answered 40 of 50 contexts that are not in the training data" in report
    card = model_card("mine", load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt"))
    assert "Replies to 40 held-out contexts" in card


def test_none_generates_nothing_and_says_so(evaluated: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is the same, and what an earlier run wrote of its model goes away."""
    full, _ = evaluated("full")
    monkeypatch.setattr("part4_sft.evaluation.generate", pytest.fail)
    result, printed = evaluated("none")
    assert result["steps"] == full["steps"] and "answer" not in printed
    losses = [[entry["validation_loss"] for entry in one["by_epoch"]] for one in (result, full)]
    assert losses[0] == losses[1]
    assert {*result["by_epoch"][1]} == {"epoch", "train_loss", "validation_loss"}
    for author in ("pretrained", "sft"):
        assert result[author] == {"perplexity": full[author]["perplexity"]}
    assert not {"comparison", "baselines", "controls", "robustness"} & result.keys()
    assert not (tmp_path / "outputs" / "replies.json").exists()
    report = (tmp_path / "outputs" / "README_Part4_SFT_Comprehensive.md").read_text()
    assert "wrote any reply (`--evaluate none`)" in report and "BLEU" not in report
    card = model_card("mine", load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt"))
    assert "no replies were generated" in card and "Replies to" not in card


def test_an_evaluation_that_takes_too_long_may_be_shortened_when_it_is_resumed(
    evaluated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(AssertionError):
        patched.setattr(run, "evaluate", interrupt)
        evaluated("full")
    result, printed = evaluated("none", "--resume")
    assert "resuming after step 12 of 12" in printed
    assert "bleu" in result["by_epoch"][2] and "bleu" not in result["sft"]


@pytest.mark.slow
def test_quick_measures_of_the_retail_world_what_it_answers(
    run_main: Command, finished_run: FinishedRun, tmp_path: Path
) -> None:
    given = [*finished_run.options, *in_folder(tmp_path), "--evaluate", "quick", "--hand-over", "0.5"]
    assert run_main(sft.main, *given)[0] == 0
    result = json.loads((tmp_path / "outputs" / "evaluation.json").read_text())
    assert result["hand_over"] == {"threshold": 0.5}
    for key in ("pretrained", "sft", "ceiling", "comparison", "errors_by_category"):
        assert result[key].keys() == finished_run.read("evaluation.json")[key].keys()
    assert not {"unseen_wording", "unseen_phrase", "robustness", "controls"} & result.keys()
    assert load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt").made_by["hand_over"] == 0.5
