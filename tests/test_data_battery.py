"""People's data up to the training, and through the command line: all pairs are counted, or one `error:` line ends it.

No case leads to a traceback, to a number that is none, or to a pair that is left out in silence. What `load_pairs`
refuses is in test_formats.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.runtime.cli import UserError
from part4_sft import run, sft
from part4_sft.config import parse_arguments
from part4_sft.encoding import PairEncoder
from part4_sft.formats import load_pairs
from part4_sft.preparation import Data, EncodedData, encode_data, prepare_data
from tests.conftest import Command

MB = 10**6
GOOD = '{"context": "Where is it?", "response": "Here.", "high_quality": 1}'
PAIRS = [{"context": f"Where is {n}?", "response": "Here."} for n in range(4)]
FOUR = json.dumps(PAIRS)
RATED = json.dumps([pair | {"high_quality": 1} for pair in PAIRS])[:-1]
LOW = json.dumps([pair | {"high_quality": 0} for pair in PAIRS])[1:-1]
MANY_LOW = ", ".join(f'{{"context": "{"c" * 1000} {n}", "response": "b", "high_quality": 0}}' for n in range(9_700))
HUGE = "1" + "0" * 30


def with_first(**changes: str) -> str:
    """Four pairs, of which the first is changed."""
    return json.dumps([PAIRS[0] | changes, *PAIRS[1:]])


def four(context: str, response: str) -> str:
    """Four pairs of this kind, with different contexts."""
    return json.dumps([{"context": f"{context}{n}", "response": response} for n in range(4)])


# ---------------------------------------------------------------------------------------------------- up to training

Prepare = Callable[..., tuple[Data, EncodedData]]


@pytest.fixture
def prepare(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """What a run does with a file before it trains."""
    monkeypatch.chdir(tmp_path)

    def call(*options: str) -> tuple[Data, EncodedData]:
        config = parse_arguments(["--max-new-tokens", "4", *options])
        checkpoint = load_checkpoint(tiny_checkpoint)
        data = prepare_data(config)
        encoder = PairEncoder.for_checkpoint(
            checkpoint, config.prompt_template, config.max_length, config.max_new_tokens
        )
        return data, encode_data(config, data, encoder)

    return call


class Trains(NamedTuple):
    """A file that trains: how many of its pairs do, the rest being held out or of low quality, and what is noted."""

    contents: str
    options: tuple[str, ...] = ()
    trained_on: int = 2
    note: str = ""


CUT = (
    "note: {} of 2 contexts of the training set are too long and lose their beginning; the first is that of pairs.json"
)
TRAINS = {
    "a byte order mark": Trains("\ufeff" + FOUR),
    "three pairs": Trains(json.dumps(PAIRS[:3]), trained_on=1),
    "the same pair twice": Trains(json.dumps([*PAIRS, *PAIRS]), trained_on=4),
    "low-quality pairs left out": Trains(f"{RATED}, {LOW.replace('Where', 'When')}]"),
    "low-quality pairs with contexts that are held out": Trains(f"{RATED}, {LOW}]"),
    "low-quality pairs asked for": Trains(f"[{LOW}]", ("--train-on", "all")),
    "a low-quality pair longer than the model": Trains(f"{RATED}, {LOW.replace('Here', 'w ' * 600)}]"),
    "10 MB in one line": Trains(f"{RATED}, {MANY_LOW}]"),
    "a context of 10 MB": Trains(with_first(context="a" * 10 * MB), note=CUT.format(1)),
    "contexts longer than the model": Trains(four("word " * 600, "b"), note=CUT.format(2)),
    "contexts longer than --max-length": Trains(FOUR, ("--max-length", "9"), note=CUT.format(2)),
    "a --max-length beyond the model": Trains(FOUR, ("--max-length", HUGE)),
    "emoji": Trains(four("\U0001f468\u200d\U0001f469 \U0001f6cb\ufe0f", "\U0001f44d\U0001f3fd")),
    "right to left": Trains(four("\u05d0\u05d9\u05df \u202e\u0644\u064a", "\u0646\u0623 \u200f\u05d0")),
    "noncharacters": Trains(four("\ufffe\uffff\U0010ffff", "\ufdd0\x7f")),
    "zero-width spaces alone": Trains(four("\u200b", "\u200b")),
    "control characters": Trains(four("\0\x1b[31m", "\0\a\b")),
    "line ends of all kinds": Trains(four("\r\n\u2028\x0c", "a\n\r\u2029b")),
    "nothing but control tokens": Trains(four("<EOS>", "<PAD><EOS>")),
    "braces": Trains(four("{context} {0} {{", "{response}")),
    "spaces around": Trains(four("  a ", "\n b \t")),
    "a template of nothing else": Trains(FOUR, ("--prompt-template", "{context}")),
    "a template in two lines": Trains(FOUR, ("--prompt-template", r"{{context}}\n\U0001f642{0}")),
}


@pytest.mark.parametrize("case", TRAINS.values(), ids=TRAINS)
def test_every_pair_of_unusual_data_is_counted(
    prepare: Prepare, capsys: pytest.CaptureFixture[str], case: Trains
) -> None:
    Path("pairs.json").write_bytes(case.contents.encode())
    data, encoded = prepare("--data", "pairs.json", *case.options)
    told = capsys.readouterr().err
    assert told.startswith(case.note) and bool(told) == bool(case.note)
    assert all(line.startswith("note: ") for line in told.splitlines())
    assert Counter(pair for pairs in data.values() for pair in pairs) == Counter(load_pairs(Path("pairs.json")))
    assert len(encoded.training) == case.trained_on and encoded.dataset_size == len(data["sft_dataset"])
    for example in encoded.training:  # <PAD> is 0 and <EOS> is 1, and neither comes from a text
        assert example.ids.index(1) == len(example.ids) - 1 and 0 not in example.ids


def test_one_pair_trains_where_it_is_not_all_that_there_is(prepare: Prepare) -> None:
    for name, pairs in {"one": PAIRS[:1], "others": PAIRS[1:]}.items():
        Path(f"{name}.json").write_text(json.dumps(pairs))
    data, encoded = prepare("--data", "one.json", "--test-data", "others.json", "--validation-data", "others.json")
    assert {name: len(pairs) for name, pairs in data.items()} == {"sft_dataset": 1, "sft_validation": 3, "sft_test": 3}
    assert (len(encoded.training), len(encoded.validation)) == (1, 3)


REFUSED: list[tuple[str, list[str], str]] = [  # contents of pairs.json, options, complaint
    (with_first(response="word " * 2 * MB), [], "pairs.json, pair 1: its response has 10000001 characters"),
    (with_first(response="a" * 10 * MB), [], "pairs.json, pair 1: its response has 10000001 characters"),
    (with_first(response="w " * 600), [], "pair 1: its response has 602 tokens, too many for 512 tokens; shorten"),
    (GOOD.replace("1}", "0}"), [], "holds no pair with high_quality 1; label some, or use --train-on all"),
    (GOOD, [], "1 different contexts are too few to hold 1 and 1 out; name --test-data and --validation-data"),
    (f"{GOOD}\n" * 9, [], "1 different contexts are too few to hold 1 and 1 out"),
    (FOUR, ["--test-fraction", "0.49"], "4 different contexts are too few to hold 2 and 2 out"),
    (FOUR, ["--data", "missing.json"], "cannot read missing.json: No such file or directory; name a file"),
    (FOUR, ["--data", "."], "cannot read .: Is a directory"),
    (FOUR, ["--data", "/dev/null"], "/dev/null holds no pairs"),
    (FOUR, ["--test-data", "bad.json"], "bad.json, pair 2: must be an object"),
    (FOUR, ["--validation-data", "bad.json"], "bad.json, pair 2: must be an object"),
    (FOUR, ["--test-data", "long.json"], "long.json, pair 1: its response has"),
    (FOUR, ["--validation-data", "long.json"], "long.json, pair 1: its response has"),
    (FOUR, ["--validation-data", "long.json", "--test-data", "long.json"], "too many for 512 tokens; so have pair 1 ("),
    (FOUR, ["--max-length", "5"], "pair 1: its response has 5 tokens, too many for 5 tokens; so have pair 2 (5 "),
    (FOUR, ["--prompt-template", "Question:"], "--prompt-template must be a text with {context} in it, once, not"),
    (FOUR, ["--prompt-template", "{context}{context}"], "a text with {context} in it, once"),
    (FOUR, ["--prompt-template", "{Context}"], "a text with {context} in it, once"),
    (FOUR, ["--prompt-template", ""], "a text with {context} in it, once"),
    (FOUR, ["--prompt-template", "gr\udcf6\udcdfe {context}"], "is not UTF-8 text"),
    (FOUR, ["--data", "gr\udcf6\udcdfe.json"], "is not UTF-8 text"),
    (FOUR, ["--temperature", "1e-50"], "--temperature must be 0, or 0.001 to 1000"),
    (FOUR, ["--temperature", "1e50"], "--temperature must be 0, or 0.001 to 1000"),
    (FOUR, ["--top-p", "1e-50"], "--top-p must be 0.001 to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("contents", "options", "complaint"), REFUSED)
def test_what_cannot_be_trained_on_is_refused(
    prepare: Prepare, capsys: pytest.CaptureFixture[str], contents: str, options: list[str], complaint: str
) -> None:
    Path("pairs.json").write_text(contents)
    Path("bad.json").write_text(f"[{GOOD}, 5]")
    Path("long.json").write_text(with_first(response="w " * 600).replace("Where", "When"))
    with pytest.raises((UserError, SystemExit)) as refused:
        prepare("--data", "pairs.json", *options)
    message = f"{refused.value} {capsys.readouterr().err}"
    assert complaint in message and len(message) < 600


# ---------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For the shortest of runs."""
    monkeypatch.chdir(tmp_path)
    given = ["--model", str(tiny_checkpoint), "--epochs", "1", "--samples-per-context", "1", "--max-new-tokens", "4"]
    return [*given, "--out-dir", "outputs", "--checkpoint-dir", "checkpoints"]


def refusal(outcome: tuple[int | str | None, str, str]) -> str:
    """The one line that the user was told, after which nothing was written."""
    status, _, told = outcome
    assert status == 2
    assert told.startswith("error: ") and told.count("\n") == 1 and told.endswith("\n")
    assert not [*Path().glob("outputs/*"), *Path().glob("checkpoints/*")]
    return told


@pytest.mark.parametrize(
    ("contents", "given", "complaint"),
    [
        (FOUR, ["--data", "missing.json"], "cannot read missing.json"),
        (FOUR.encode("utf-16"), [], "pairs.json is not UTF-8 text (byte 0); save it as UTF-8"),
        ("[" + FOUR, [], "pairs.json is not JSON: line 1, column"),
        ("context,response\na,b,c\n", ["--data", "pairs.csv"], "row 2: has 3 cells, and the header has 2; put"),
        ('{"question": "a"}', [], 'pairs.json, pair 1: the key "context" is missing; it has "question"; the layouts'),
        (with_first(response="w " * 600), [], "pairs.json, pair 1: its response has 602 tokens, too many for 512"),
        (FOUR, ["--max-new-tokens", "511"], "--max-new-tokens leaves the model 1 of its positions; choose less of"),
        (FOUR, ["--epochs", "0"], "--epochs must be 1 or more, not 0; see python -m part4_sft.sft --help"),
    ],
)
def test_each_class_of_fault_ends_with_status_2_and_one_line_and_writes_nothing(
    run_main: Command,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
    contents: str | bytes,
    given: list[str],
    complaint: str,
) -> None:
    monkeypatch.setattr(run, "train", lambda *arguments, **keywords: pytest.fail("the model was trained"))
    for name in ("pairs.json", "pairs.csv"):
        Path(name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    assert complaint in refusal(run_main(sft.main, *options, "--data", "pairs.json", *given))


@pytest.mark.parametrize("learning_rate", ["10", "1e5"], ids=["a loss past every use", "NaN"])
def test_a_learning_rate_that_leads_nowhere_is_told(run_main: Command, options: list[str], learning_rate: str) -> None:
    """That shows in training only; its last good state is kept."""
    pairs = [{"context": f"Where is {n}?", "response": "Here it is, on its way."} for n in range(12)]
    Path("pairs.json").write_text(json.dumps(pairs))
    outcome = run_main(
        sft.main, *options, "--data", "pairs.json", "--learning-rate", learning_rate, "--batch-size", "2"
    )
    Path("checkpoints/sft_model.state.pt").unlink(missing_ok=True)
    assert "--learning-rate" in refusal(outcome)


WHOLE_RUNS: dict[str, tuple[str, str, list[str]]] = {  # file, contents, options
    "the widest choice": ("my\npairs.json", FOUR, ["--batch-size", HUGE, "--temperature", "1000", "--top-k", HUGE]),
    "the narrowest choice": (
        "pairs.csv",
        "context,response\n" + "".join(f'"=1+{n}, ""a""\nb",\u202e@x\n' for n in range(4)),
        ["--temperature", "0.001", "--top-p", "0.001", "--top-k", "1", "--prompt-template", "{context}"],
    ),
    "more parts than pairs": ("pairs.json", four("\0<EOS>", "\u200b"), ["--gradient-accumulation-steps", "1000"]),
    "everything cut": ("pairs.jsonl", "\n\n".join(map(json.dumps, PAIRS)), ["--max-length", "9"]),
}


@pytest.mark.parametrize(("file", "contents", "given"), WHOLE_RUNS.values(), ids=WHOLE_RUNS)
def test_a_whole_run_counts_every_pair_and_every_number_is_one(
    run_main: Command, options: list[str], monkeypatch: pytest.MonkeyPatch, file: str, contents: str, given: list[str]
) -> None:
    monkeypatch.setattr("part4_sft.report.save_loss_curve", lambda path, *given: path.touch())  # most of the time
    Path(file).write_bytes(contents.encode())
    status, printed, told = run_main(sft.main, *options, "--data", file, *given)
    assert status == 0 and all(line.startswith("note: ") for line in told.splitlines())
    evaluation: dict[str, Any] = json.loads(Path("outputs/evaluation.json").read_text(), parse_constant=pytest.fail)
    assert evaluation["dataset"] == {"sft_dataset": 2, "sft_validation": 1, "sft_test": 1, "trained_on": 2}
    assert "trained on 2 of 2 pairs" in printed
    sets = ("sft_dataset", "sft_validation", "sft_test")
    assert Counter(pair for name in sets for pair in load_pairs(Path(f"outputs/{name}.json"))) == Counter(
        load_pairs(Path(file))
    )
    first, last = evaluation["by_epoch"]
    assert all(map(math.isfinite, (first["validation_loss"], last["validation_loss"], last["train_loss"])))
    load_checkpoint(Path("checkpoints/sft_model.pt"))  # refuses weights that are NaN


@pytest.mark.slow
def test_a_process_of_its_own_says_the_same_and_ends_with_2(options: list[str]) -> None:
    Path("pairs.json").write_bytes(b"\xff\xfe[")
    cases = [([], b"pairs.json is not UTF-8 text (byte 0)"), ([b"--out-dir", b"gr\xf6\xdfe"], b"is not UTF-8 text")]
    for given, told in cases:
        command: list[str | bytes] = [sys.executable, "-m", "part4_sft.sft", *options, "--data", "pairs.json", *given]
        root = str(Path(__file__).parents[1])
        finished = subprocess.run(command, env={"PYTHONPATH": root}, capture_output=True)
        assert finished.returncode == 2
        assert finished.stderr.startswith(b"error: ") and finished.stderr.count(b"\n") == 1 and told in finished.stderr
