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
Sections = dict[str, str]  # what is printed, by headings


def split(printed: str) -> Sections:
    assert all(len(line) <= 100 for line in printed.splitlines())
    _, *parts = re.split(r"^(\d\. .+)\n-+\n", printed, flags=re.MULTILINE)
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


def test_the_document_quotes_what_is_printed(sections: Sections) -> None:
    def lines(text: str) -> set[str]:
        """Heads of tables, and the names of numbers, without the digits that a name may hold."""
        heads = re.findall(r"^(?:place|token|step)  .*$", text, re.MULTILINE)
        names = re.findall(r"^(?=.{82} \S)(\S.*?)  +\S", text, re.MULTILINE)
        return {re.sub(r"[\d.]+", "0", line) for line in heads + names}

    assert re.findall(r"^## (\d\. .+)$", DOCUMENT, re.MULTILINE) == list(sections)
    quoted = lines(DOCUMENT)
    assert len(quoted) > 15 and quoted <= lines("\n".join(sections.values()))


def test_the_step_is_that_of_training(sections: Sections, tiny_model: Transformer, examples: list[Example]) -> None:
    of_pair = pytest.approx(mean_loss(tiny_model, examples[:1]), abs=1e-4)
    model = deepcopy(tiny_model)
    (step,) = train(model, examples, SFTConfig(epochs=1, batch_size=2), lambda epoch, loss: {}).steps

    loss, gradient, adam = (sections[name] for name in ("5. The loss", "6. The gradient", "7. One step of Adam"))
    assert value(loss, "mean of the last column") == value(loss, "masked_loss / tokens of this pair") == of_pair
    assert value(loss, "masked_loss / tokens of the next pair") == pytest.approx(
        mean_loss(tiny_model, examples[1:]), abs=1e-4
    )
    of_step = pytest.approx(step.loss, abs=1e-4)
    assert value(loss, "masked_loss / tokens of both") == of_step
    assert value(loss, "nn.CrossEntropyLoss over the whole row  ") == of_step
    unmasked = [Example(example.ids, example.ids) for example in examples]
    of_contexts_too = pytest.approx(mean_loss(tiny_model, unmasked), abs=1e-4)
    assert value(loss, "nn.CrossEntropyLoss over the whole row, were") == of_contexts_too != of_step
    assert value(gradient, "norm of the gradient of the whole") == pytest.approx(step.gradient_norm, abs=1e-4)
    assert value(adam, "largest change of a weight, at a learning rate of 5e-05") == pytest.approx(5e-5, rel=0.02)
    assert value(adam, "loss of the step before") == of_step
    assert value(adam, "loss of the step after") == pytest.approx(mean_loss(model, examples), abs=1e-4)


def test_only_tokens_of_the_response_are_learnt(sections: Sections, examples: list[Example]) -> None:
    ids, labels = examples[0].ids, examples[0].labels
    response = [label for label in labels if label != IGNORE_INDEX]
    rows = re.findall(r" (\d+)  +(0\.\d{4}) +(\d+\.\d{4})$", sections["5. The loss"], re.MULTILINE)
    assert [int(label) for label, _, _ in rows] == response
    for _, probability, nats in rows:
        assert math.exp(-float(nats)) == pytest.approx(float(probability), abs=1e-4)
    told = " ".join(sections["2. Tokens and labels"].split())
    assert f"ids: {ids} labels: {labels}" in told
    assert told.startswith(f"prompt, {len(ids) - len(response)} tokens: ")
    assert f": response, {len(response)} tokens: " in told and "<EOS> ids:" in told


def test_targets_are_one_token_ahead(sections: Sections, examples: list[Example]) -> None:
    first, second = examples
    inputs, targets = first.ids[:-1] + second.ids[:-1], first.labels[1:] + second.labels[1:]
    answer, seam = first.labels.count(IGNORE_INDEX), len(first.ids) - 1
    head, _, *rows = sections["3. Two pairs in one row"].strip().splitlines()
    lengths = [seam, len(inputs) - seam]
    assert head == f"inputs (1, {len(inputs)}), targets (1, {len(inputs)}), lengths {lengths}"
    places = [0, 1, *range(answer - 2, answer + 1), *range(seam - 2, seam + 2)]
    told = [(int(row[:5]), int(row[7:12]), int(row[32:37])) for row in rows]
    assert told == [(place, inputs[place], targets[place]) for place in places]


def test_no_text_sees_the_other(sections: Sections) -> None:
    hidden = sections["4. Hidden states and logits"]
    assert value(hidden, "the second pair in this row") < 1e-4 < 0.1 < value(hidden, "the second pair in a row that is")


def test_the_reply_is_that_of_the_evaluation(
    sections: Sections, tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    pair = made["sft_dataset"][499]
    (reply,) = generate_replies(tiny_model, encoder, [pair], Sampling(), "0/0").texts
    table, printed = sections["8. A reply before fine-tuning"].split("tokens: ")
    prompt = torch.tensor([encoder.encode_prompt(pair.context, 100)])
    logits = tiny_model.lm_head(tiny_model(prompt))[0, -1, 1:]  # but for <PAD>, the first
    likeliest = (logits / Sampling.temperature).softmax(-1).topk(4).values.tolist()
    assert re.findall(r" (0\.\d{3})\b", table.splitlines()[1]) == [f"{share:.3f}" for share in likeliest]
    told = [*wrapped(reply, 80), rating_in_words(pair.context, reply)]
    assert "".join(printed.split()) == "".join("".join(told).split())


def test_the_fine_tuned_model_replies_where_there_is_one(
    run_main: Command, sections: Sections, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert sections["9. A reply after fine-tuning"].startswith("there is no ")
    for name in ("pretrained.pt", "sft_model.pt"):
        shutil.copy(tiny_checkpoint, tmp_path / name)
    options = ["--checkpoint", tmp_path / "pretrained.pt", "--pair", 500]
    status, printed, complained = run_main(walkthrough.main, *options)
    assert (status, complained) == (0, "")
    again = split(printed)
    before, after = again.pop("8. A reply before fine-tuning"), again.pop("9. A reply after fine-tuning")
    assert before.strip() == after.strip() == sections["8. A reply before fine-tuning"].strip()
    assert all(again[heading] == sections[heading] for heading in again)  # the same bytes every time


def test_mistakes_end_in_one_line(run_main: Command, tmp_path: Path) -> None:
    assert_refused(run_main(walkthrough.main, "--checkpoint", tmp_path / "no.pt"), "pretrain makes")
    for number in (0, 501):
        assert_refused(run_main(walkthrough.main, "--pair", number), "--pair must be 1 to 500")
