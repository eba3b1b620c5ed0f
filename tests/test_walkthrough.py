"""The walkthrough prints what training and generation compute, and its document quotes what it prints."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import pytest

from part3_pretrain.model import Transformer
from part3_pretrain.retail import rubric
from part4_sft import walkthrough
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.generation import Sampling
from part4_sft.metrics import generate_replies
from part4_sft.training import mean_loss, train
from tests.conftest import Command

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs/walkthrough.md").read_text(encoding="utf-8")
Sections = dict[str, str]  # what is printed, by headings


@pytest.fixture(autouse=True)
def made_once(monkeypatch: pytest.MonkeyPatch, made: dict[str, list[Pair]]) -> None:
    monkeypatch.setattr(walkthrough, "make_datasets", {0: made}.__getitem__)


def walk(run_main: Command, *options: object) -> Sections:
    status, printed, complained = run_main(walkthrough.main, *options)
    assert (status, complained) == (0, "")
    assert all(len(line) <= 100 for line in printed.splitlines())
    _, *parts = re.split(r"^(\d\. .+)\n-+\n", printed, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2]))


@pytest.fixture
def sections(run_main: Command, tiny_checkpoint: Path) -> Sections:
    """Of the last of the 500 pairs; the next one is the first."""
    return walk(run_main, "--checkpoint", tiny_checkpoint, "--pair", 500)


def value(section: str, name: str) -> float:
    """The number in the line that begins with this name."""
    return float(re.search(rf"^{name}.* (\S+)$", section, re.MULTILINE)[1])


def test_the_document_quotes_what_is_printed(sections: Sections) -> None:
    def lines(text: str) -> set[str]:
        """Heads of tables, and the names of numbers, without the digits that a name may hold."""
        heads = re.findall(r"^(?:place|token|step)  .*$", text, re.MULTILINE)
        names = re.findall(r"^(?=.{82} \S)(\S.*?)  +\S", text, re.MULTILINE)
        return {re.sub(r"[\d.]+", "0", line) for line in heads + names}

    assert re.findall(r"^## (\d\. .+)$", DOCUMENT, re.MULTILINE) == list(sections)
    quoted = lines(DOCUMENT)
    assert len(quoted) > 15 and quoted <= lines("\n".join(sections.values()))


def test_the_step_is_that_of_training(
    sections: Sections, tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    pairs = made["sft_dataset"]
    examples = [encoder.encode(pairs[499]), encoder.encode(pairs[0])]
    of_pair = pytest.approx(mean_loss(tiny_model, examples[:1]), abs=1e-4)
    model = deepcopy(tiny_model)
    (step,) = train(model, examples, SFTConfig(epochs=1, batch_size=2), lambda epoch, loss: None)

    loss, gradient, adam = (sections[name] for name in ("5. The loss", "6. The gradient", "7. One step of Adam"))
    assert value(loss, "mean of the last column") == value(loss, "masked_loss / tokens of this pair") == of_pair
    of_step = pytest.approx(step.loss, abs=1e-4)
    assert value(loss, "masked_loss / tokens of both") == of_step
    assert value(loss, "nn.CrossEntropyLoss over the whole row  ") == of_step
    assert value(gradient, "norm of the gradient of the whole") == pytest.approx(step.gradient_norm, abs=1e-4)
    assert value(adam, "loss of the step before") == of_step
    assert value(adam, "loss of the step after") == pytest.approx(mean_loss(model, examples), abs=1e-4)


def test_only_tokens_of_the_response_are_learnt(
    sections: Sections, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    example = encoder.encode(made["sft_dataset"][499])
    rows = re.findall(r" (\d+)  +(0\.\d{4}) +(\d+\.\d{4})$", sections["5. The loss"], re.MULTILINE)
    assert [int(label) for label, _, _ in rows] == [label for label in example.labels if label >= 0]
    for _, probability, nats in rows:
        assert math.exp(-float(nats)) == pytest.approx(float(probability), abs=1e-4)
    assert str(example.ids) in " ".join(sections["2. Tokens and labels"].split())
    assert str(example.labels) in " ".join(sections["2. Tokens and labels"].split())


def test_no_text_sees_the_other(sections: Sections) -> None:
    hidden = sections["4. Hidden states and logits"]
    assert value(hidden, "the second pair in this row") < 1e-4 < 0.1 < value(hidden, "the second pair in a row that is")


def test_the_reply_is_that_of_the_evaluation(
    sections: Sections, tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    pair = made["sft_dataset"][499]
    wanted = generate_replies(tiny_model, encoder, [pair], Sampling(), "0/0").texts[0]
    _, printed = sections["8. A reply before fine-tuning"].split("tokens: ")
    reply, rating = printed.split("(rated ")
    assert re.sub(r"\W", "", reply) == re.sub(r"\W", "", wanted)
    rated = rubric.rate(rubric.recognise(pair.context), wanted)
    assert " ".join(rating.split()) == "; ".join([f"{rated.score:.1f}", *rated.faults]) + ")"


def test_the_fine_tuned_model_replies_where_there_is_one(
    run_main: Command, sections: Sections, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert sections["9. A reply after fine-tuning"].startswith("there is no ")
    for name in ("pretrained.pt", "sft_model.pt"):
        shutil.copy(tiny_checkpoint, tmp_path / name)
    again = walk(run_main, "--checkpoint", tmp_path / "pretrained.pt", "--pair", 500)
    before, after = again.pop("8. A reply before fine-tuning"), again.pop("9. A reply after fine-tuning")
    assert before.strip() == after.strip() == sections["8. A reply before fine-tuning"].strip()
    assert all(again[heading] == sections[heading] for heading in again)  # the same bytes every time


def test_mistakes_end_in_one_line(run_main: Command, tmp_path: Path) -> None:
    mistakes = {("--checkpoint", tmp_path / "no.pt"): "pretrain makes", ("--pair", 501): "1 to 500"}
    for options, advice in mistakes.items():
        status, printed, complained = run_main(walkthrough.main, *options)
        assert (status, printed) == (2, "")
        assert complained.startswith("error: ") and complained.count("\n") == 1 and advice in complained


def test_help_does_not_wait_for_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "part4_sft.walkthrough", "--help"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = re.findall(r"^import time:.*\| +([\w.]+)$", told.stderr, flags=re.MULTILINE)
    assert "part4_sft.config" in imported and "torch" not in imported
