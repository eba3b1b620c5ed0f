"""The walkthrough prints what training and generation compute, and its document quotes what it prints."""

from __future__ import annotations

import io
import math
import re
import shutil
from contextlib import redirect_stdout
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part4_sft import walkthrough
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import Example, PairEncoder
from part4_sft.evaluation import generate_replies
from part4_sft.generation import Sampling
from part4_sft.terminal.conversation import rating_in_words
from part4_sft.terminal.one_pair import follow
from part4_sft.terminal.screen import wrapped
from part4_sft.training import mean_loss, train
from tests.conftest import ROOT, Command, assert_refused

DOCUMENT = (ROOT / "docs/walkthrough.md").read_text(encoding="utf-8")
Sections = dict[str, str]  # what is printed, by the numbers in the headings


def split(printed: str) -> Sections:
    assert all(len(line) <= 100 for line in printed.splitlines())
    assert re.findall(r"^(\d\. .+)\n-+$", printed, re.MULTILINE) == re.findall(r"^## (.+)$", DOCUMENT, re.MULTILINE)
    _, *parts = re.split(r"^(\d)\. .+\n-+\n", printed, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2]))


@pytest.fixture(scope="module")
def sections(tiny_checkpoint: Path) -> Sections:
    """Of the last of the 500 pairs; the next one is the first."""
    with redirect_stdout(io.StringIO()) as printed:
        follow(tiny_checkpoint, 500, seed=0)
    return split(printed.getvalue())


@pytest.fixture
def examples(encoder: PairEncoder, made: dict[str, list[Pair]]) -> list[Example]:
    return encoder.encode_all([made["sft_dataset"][499], made["sft_dataset"][0]])


def value(section: str, name: str) -> float:
    """The number in the line that begins with this name."""
    return float(re.search(rf"^{name}.* (\S+)$", section, re.MULTILINE)[1])


def lines(text: str) -> set[str]:
    """Heads of tables, and the names of numbers, without the digits that a name may hold."""
    names = re.findall(r"^(?:place|token|step)  .*$|^(?=.{82} \S)\S.*?(?=  +\S)", text, re.MULTILINE)
    return {re.sub(r"[\d.]+", "0", name) for name in names}


def test_the_document_quotes_what_is_printed(sections: Sections) -> None:
    assert len(lines(DOCUMENT)) > 15 and lines(DOCUMENT) <= lines("\n".join(sections.values()))


def test_the_step_is_that_of_training(sections: Sections, tiny_model: Transformer, examples: list[Example]) -> None:
    model = deepcopy(tiny_model)
    (step,) = train(model, examples, SFTConfig(epochs=1, batch_size=2), lambda epoch, loss: {}).steps
    printed = "\n".join(sections.values())
    for name, expected in {
        "mean of the last column": mean_loss(tiny_model, examples[:1]),
        "masked_loss / tokens of this pair": mean_loss(tiny_model, examples[:1]),
        "masked_loss / tokens of the next pair": mean_loss(tiny_model, examples[1:]),
        "masked_loss / tokens of both": step.loss,
        "nn.CrossEntropyLoss over the whole row  ": step.loss,
        "nn.CrossEntropyLoss over the whole row, were": mean_loss(
            tiny_model, [Example(example.ids, example.ids) for example in examples]
        ),
        "norm of the gradient of the whole": step.gradient_norm,
        "loss of the step before": step.loss,
        "loss of the step after": mean_loss(model, examples),
    }.items():
        assert value(printed, name) == pytest.approx(expected, abs=1e-4), name
    assert value(printed, "largest change of a weight, at a learning rate of 5e-05") == pytest.approx(5e-5, rel=0.02)
    second = "the second pair in "  # no text sees the other
    assert value(printed, f"{second}this row") < 1e-4 < 0.1 < value(printed, f"{second}a row that is")


def test_only_tokens_of_the_response_are_learnt(sections: Sections, examples: list[Example]) -> None:
    ids, labels = examples[0].ids, examples[0].labels
    response = [label for label in labels if label != IGNORE_INDEX]
    rows = re.findall(r" (\d+)  +(0\.\d{4}) +(\d+\.\d{4})$", sections["5"], re.MULTILINE)
    assert [int(label) for label, _, _ in rows] == response
    for _, probability, nats in rows:
        assert math.exp(-float(nats)) == pytest.approx(float(probability), abs=1e-4)
    told = " ".join(sections["2"].split())
    assert told.startswith(f"prompt, {len(ids) - len(response)} tokens: ") and f"ids: {ids} labels: {labels}" in told
    assert f": response, {len(response)} tokens: " in told and "<EOS> ids:" in told


def test_targets_are_one_token_ahead(sections: Sections, examples: list[Example]) -> None:
    first, second = examples
    inputs, targets = first.ids[:-1] + second.ids[:-1], first.labels[1:] + second.labels[1:]
    answer, seam = first.labels.count(IGNORE_INDEX), len(first.ids) - 1
    head, _, *rows = sections["3"].strip().splitlines()
    shape = (1, len(inputs))
    assert head == f"inputs {shape}, targets {shape}, lengths {[seam, len(inputs) - seam]}"
    places = [0, 1, *range(answer - 2, answer + 1), *range(seam - 2, seam + 2)]
    told = [(int(row[:5]), int(row[7:12]), int(row[32:37])) for row in rows]
    assert told == [(place, inputs[place], targets[place]) for place in places]


def test_the_reply_is_that_of_the_evaluation(
    sections: Sections, tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    pair = made["sft_dataset"][499]
    (reply,) = generate_replies(tiny_model, encoder, [pair], Sampling(), "0/0").texts
    table, printed = sections["8"].split("tokens: ")
    prompt = torch.tensor([encoder.encode_prompt(pair.context, 100)])
    logits = tiny_model.lm_head(tiny_model(prompt))[0, -1, 1:]  # but for <PAD>, the first
    likeliest = (logits / Sampling.temperature).softmax(-1).topk(4).values.tolist()
    assert re.findall(r" (0\.\d{3})\b", table.splitlines()[1]) == [f"{share:.3f}" for share in likeliest]
    told = [*wrapped(reply, 80), rating_in_words(pair.context, reply)]
    assert "".join(printed.split()) == "".join("".join(told).split())


def test_the_fine_tuned_model_replies_where_there_is_one(
    run_main: Command, sections: Sections, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert sections["9"].startswith("there is no ")
    for name in ("pretrained.pt", "sft_model.pt"):
        shutil.copy(tiny_checkpoint, tmp_path / name)
    status, printed, complained = run_main(walkthrough.main, "--checkpoint", tmp_path / "pretrained.pt", "--pair", 500)
    assert (status, complained) == (0, "")
    again, reply = split(printed), sections["8"].strip()
    assert again["8"].strip() == again["9"].strip() == reply
    assert all(again[number] == sections[number] for number in "1234567")  # the same bytes every time


def test_mistakes_end_in_one_line(run_main: Command, tmp_path: Path) -> None:
    assert_refused(run_main(walkthrough.main, "--checkpoint", tmp_path / "no.pt"), "pretrain makes")
    for number in (0, 501):
        assert_refused(run_main(walkthrough.main, "--pair", number), "--pair must be 1 to 500")
