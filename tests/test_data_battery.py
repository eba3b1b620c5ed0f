"""People's data up to the training, and as a command: each file trains, with every pair counted, or is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from part3_pretrain.checkpoint import load_checkpoint
from part4_sft import label, sft
from part4_sft.config import DEFAULT_TEMPLATE, parse_arguments
from part4_sft.encoding import PairEncoder
from part4_sft.formats import load_pairs
from part4_sft.preparation import encode_data, prepare_data
from tests.conftest import Command, TypeKeys, assert_refused, in_folder

MB, HUGE = 10**6, "1" + "0" * 30
PAIRS = [{"context": f"Where is {n}?", "response": "Here."} for n in range(4)]
FOUR = json.dumps(PAIRS)
RATED = [pair | {"high_quality": 1} for pair in PAIRS]
LOW = {"context": "When?", "response": "w " * 600, "high_quality": 0}


def with_first(**changes: str) -> str:
    """Four pairs, of which the first is changed."""
    return json.dumps([PAIRS[0] | changes, *PAIRS[1:]])


def four(context: str, response: str) -> str:
    """Four pairs of this kind, with different contexts."""
    return json.dumps([{"context": f"{context}{n}", "response": response} for n in range(4)])


THEIRS = [{"id": n, "Frage": f"Where is {n}?", "Antwort": "Here."} for n in range(4)]
NAMED = ["--columns", "context=Frage", "response=Antwort"]
CUT = "note: {} of 2 contexts of the training set are too long and lose their beginning; the first is that of pairs.j"
TRAINS: dict[str, tuple[str, list[str], str]] = {  # contents, options, what is noted; two train, two are held out
    "a low-quality pair longer than the model": (json.dumps([*RATED, LOW]), [], ""),
    "a context of 10 MB": (with_first(context="a" * 10 * MB), [], CUT.format(1)),
    "contexts longer than the model": (four("word " * 600, "b"), [], CUT.format(2)),
    "a --max-length beyond the model": (FOUR, ["--max-length", HUGE], ""),
    "control tokens and characters": (four("<EOS>\0", "<PAD>\x1b<EOS>"), [], ""),
    "columns of other names": (json.dumps(THEIRS), NAMED, 'note: pairs.json is read as context ("Frage") + response'),
    "zero-width spaces alone": (four("\u200b", "\u200b"), [], ""),
    "a template in two lines": (FOUR, ["--prompt-template", r"{{context}}\n\U0001f642{0}"], ""),
}


@pytest.mark.parametrize(("contents", "options", "note"), TRAINS.values(), ids=TRAINS)
def test_every_pair_of_unusual_data_is_counted(
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    contents: str,
    options: list[str],
    note: str,
) -> None:
    (tmp_path / "pairs.json").write_text(contents)
    config = parse_arguments(["--data", str(tmp_path / "pairs.json"), "--max-new-tokens", "4", *options])
    settings = config.prompt_template or DEFAULT_TEMPLATE, config.max_length, config.max_new_tokens
    data, encoder = prepare_data(config), PairEncoder.for_checkpoint(load_checkpoint(tiny_checkpoint), *settings)
    encoded = encode_data(config, data, encoder)
    told = capsys.readouterr().err.replace(f"{tmp_path}/", "")
    assert told.startswith(note) and bool(told) == bool(note)
    assert all(line.startswith("note: ") for line in told.splitlines())
    assert Counter(pair for pairs in data.values() for pair in pairs) == Counter(
        load_pairs(tmp_path / "pairs.json", config.columns or ())
    )
    assert (len(encoded.training), encoded.dataset_size) == (2, len(data["sft_dataset"]))
    for example in encoded.training:  # <PAD> is 0 and <EOS> is 1, and neither comes from a text
        assert example.ids.index(1) == len(example.ids) - 1 and 0 not in example.ids


def test_a_stream_has_the_same_columns(
    encoder: PairEncoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs.jsonl"
    file.write_text("\n".join(map(json.dumps, THEIRS)))
    files = [f"--{kind}data={file}" for kind in ("", "validation-", "test-")]
    whole, stream = (parse_arguments([*files, *NAMED, *more, *in_folder(tmp_path)]) for more in ([], ["--stream"]))
    expected, examples = (encode_data(config, prepare_data(config), encoder) for config in (whole, stream))
    assert list(examples.training) == list(expected.training) and len(examples.training) == 4
    assert capsys.readouterr().err.count("left out") == 6  # of each of the three files, in both runs


def test_columns_of_other_names_can_be_labelled(tmp_path: Path, type_keys: TypeKeys) -> None:
    file = tmp_path / "theirs.json"
    file.write_text(json.dumps(THEIRS))
    printed, screens = type_keys(label.main, "5q", file, "--annotator", "a", *NAMED)
    assert "Where is 0?" in screens[0] and "written: " in printed
    assert json.loads(file.read_text()) == [one | {"high_quality": int(n == 0)} for n, one in enumerate(THEIRS)]


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For the shortest of runs."""
    monkeypatch.chdir(tmp_path)
    given = ["--model", str(tiny_checkpoint), "--epochs", "1", "--samples-per-context", "1", "--max-new-tokens", "4"]
    return [*given, *in_folder(tmp_path)]


FAULTS: list[tuple[str | bytes, list[str], str]] = [  # contents, options, complaint
    (FOUR, ["--data", "missing.json"], "cannot read missing.json: No such file or directory; name"),
    (
        FOUR,
        NAMED,
        'pairs.json, pair 1: there is no "Frage", "Antwort", which --columns names; it has "context", "response"',
    ),
    (json.dumps(THEIRS), [], "or name the columns: --columns context=NAME response=NAME"),
    (FOUR, ["--data", "."], "cannot read .: Is a directory"),
    (FOUR.encode("utf-16"), [], "pairs.json is not UTF-8 text (byte 0); save it as UTF-8"),
    ("[" + FOUR, [], "pairs.json is not JSON: line 1, column"),
    ("context,response\na,b,c\n", ["--data", "pairs.csv"], "row 2: has 3 cells, and the header has 2; put"),
    ('{"question": "a"}', [], 'pair 1: the key "context" is missing; it has "question"; the layouts'),
    (with_first(response="word " * 2 * MB), [], "pairs.json, pair 1: its response has 10000001 characters"),
    (FOUR, ["--max-length", "4"], "tokens, too many for 4 tokens; so have pair 2 ("),
    (FOUR, ["--test-data", "bad.json"], "bad.json, pair 2: must be an object"),
    (FOUR, ["--validation-data", "bad.json"], "bad.json, pair 2: must be an object"),
    (FOUR, ["--test-fraction", "0.49"], "4 different contexts are too few to hold 2 and 2 out"),
    (FOUR, ["--max-new-tokens", "511"], "--max-new-tokens leaves the model 1 of its positions; choose less"),
    (FOUR, ["--prompt-template", "gr\udcf6\udcdfe {context}"], "is not UTF-8 text"),
    (FOUR, ["--epochs", "0"], "--epochs must be 1 or more, not 0; see python -m part4_sft.sft --help"),
    (four("Where is ", "Here it is."), ["--learning-rate", "1e30", "--epochs", "6"], "--learning-rate"),
]


@pytest.mark.parametrize(("contents", "given", "complaint"), FAULTS)
def test_each_fault_ends_with_status_2_and_one_line_and_writes_nothing(
    run_main: Command, options: list[str], contents: str | bytes, given: list[str], complaint: str
) -> None:
    for name in ("pairs.json", "pairs.csv"):
        Path(name).write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    Path("bad.json").write_text(f"[{json.dumps(PAIRS[0])}, 5]")
    outcome = run_main(sft.main, *options, "--data", "pairs.json", *given)
    assert_refused(outcome, complaint)
    Path("checkpoints/sft_model.state.pt").unlink(missing_ok=True)  # the last good state is kept
    assert not [*Path().glob("outputs/*"), *Path().glob("checkpoints/*")]


WIDEST = ["--batch-size", HUGE, "--temperature", "1000", "--top-k", HUGE, "--micro-batch-size", "1"]
NARROWEST = ["--max-length", "9", "--temperature", "0.001", "--top-p", "0.001", "--top-k", "1"]
CSV = "context,response\n" + "".join(f'"=1+{n}, ""a""\nb",\u202e@x\n' for n in range(4))


@pytest.mark.parametrize(
    ("file", "contents", "given"),
    [
        ("my\npairs.csv", CSV, [*WIDEST, "--prompt-template", "{context}"]),
        ("pairs.jsonl", "\r\n \n\n".join(map(json.dumps, PAIRS)), NARROWEST),
    ],
)
def test_a_whole_run_counts_every_pair_and_every_number_is_one(
    run_main: Command, options: list[str], monkeypatch: pytest.MonkeyPatch, file: str, contents: str, given: list[str]
) -> None:
    monkeypatch.setattr("part4_sft.pictures.save_loss_curve", lambda path, *given: path.touch())  # most of the time
    Path(file).write_bytes(contents.encode())
    status, printed, told = run_main(sft.main, *options, "--data", file, *given)
    assert status == 0 and all(line.startswith("note: ") for line in told.splitlines())
    evaluation = json.loads(Path("outputs/evaluation.json").read_text(), parse_constant=pytest.fail)
    assert evaluation["dataset"] == {"sft_dataset": 2, "sft_validation": 1, "sft_test": 1, "trained_on": 2}
    assert "trained on 2 of 2 pairs" in printed
    sets = [load_pairs(Path(f"outputs/{name}.json")) for name in ("sft_dataset", "sft_validation", "sft_test")]
    assert Counter(pair for pairs in sets for pair in pairs) == Counter(load_pairs(Path(file)))
    load_checkpoint(Path("checkpoints/sft_model.pt"))  # refuses weights that are NaN
