"""People's data through the real command line: each file trains, with every pair counted, or ends in one `error:` line.

No case leads to a traceback, to a number that is none, or to a pair that is left out in silence.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest

from part3_pretrain.checkpoint import load_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError
from part4_sft import report, sft, stages
from part4_sft.encoding import Example
from part4_sft.formats import load_pairs
from part4_sft.training import Step, train

ROOT = Path(__file__).parents[1]
Command = Callable[..., tuple[int | str | None, str, str]]


@pytest.fixture
def options(tiny_checkpoint: Path, tmp_path: Path) -> list[str]:
    """For the shortest of runs."""
    given = ["--model", str(tiny_checkpoint), "--epochs", "1", "--samples-per-context", "1", "--max-new-tokens", "4"]
    return given + ["--out-dir", str(tmp_path / "outputs"), "--checkpoint-dir", str(tmp_path / "checkpoints")]


# ---------------------------------------------------------------------------------------------------- refused

GOOD = '{"context": "Where is it?", "response": "Here.", "high_quality": 1}'
GOOD_CSV = "context,response,high_quality\nWhere is it?,Here.,1\n"
USER, ASSISTANT = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'


def second(old: str, new: str) -> str:
    """An array of two pairs; `old` is replaced in the second."""
    assert old in GOOD
    return f"[{GOOD},\n{GOOD.replace(old, new)}]"


def chat(*messages: str) -> str:
    """JSONL of two chats, the second with these messages."""
    return "\n".join(f'{{"messages": [{", ".join(turns)}]}}' for turns in [(USER, ASSISTANT), messages])


BAD_JSON = [
    # no JSON, or no entries
    ("", "holds no pairs"),
    (" \n\n", "holds no pairs"),
    ("[]", "holds no pairs"),
    (f"[\n{GOOD},\n{GOOD}\n", "is not JSON: line 4, column 1: "),
    (f"[\n{GOOD}\n{GOOD}]", "is not JSON: line 3, column 1: "),
    (f"{GOOD}\n\n{GOOD[:-1]}\n", "is not JSON: line 3, column 67: "),
    (f"{GOOD}\n{GOOD} {GOOD}", "is not JSON: line 2, column 69: "),
    ("context,response\na,b", "is not JSON: line 1, column 1: "),
    ("context,response\na,b", "one JSON object a line, or CSV with a name that ends in .csv"),
    ('{\n"context": "a", "response": "b"\n}', "is not JSON: line 1, column 2: "),
    ('{"context": "a\tb", "response": "b"}', "is not JSON: line 1, column 15: "),
    (f"{GOOD}\n{'[' * 100_000}", "line 2 is nested too deeply"),
    ('[{"a":' * 100_000, "line 1 is nested too deeply"),
    (second("1}", "1" * 5000 + "}"), "digits"),
    # no object, or no known keys
    (f'[{GOOD}, "Where is it?"]', 'pair 2: must be an object, {"key": value, ...}, not "Where is it?"'),
    (f"{GOOD}\n[{GOOD}]", "pair 2: must be an object, "),
    (f"[[{GOOD}]]", "pair 1: must be an object, "),
    ("null", "pair 1: must be an object, "),
    ("[{}]", 'pair 1: the key "context" is missing; it has no keys; '),
    (second(', "response": "Here."', ""), 'pair 2: the key "response" is missing; it has "context", "high_quality" '),
    (second("}", ', "rating": 5}'), 'pair 2: unknown key "rating"'),
    (
        '{"instruction": "a", "output": "b", "text": "ab"}',
        '"text": remove it; it has "instruction", "output", "text"; the layouts',
    ),
    ('{"question": "a", "answer": "b"}', 'it has "question", "answer"; '),
    (
        '{"question": "a", "answer": "b"}',
        "context + response; prompt + completion; instruction + output (+ input); messages",
    ),
    ('{"text": "a b"}', 'pair 1: the key "context" is missing; it has "text"; split "text" into "messages", or '),
    (
        '{"instruction": "a", "input": "", "output": "b"}\n{"prompt": "a", "completion": "b"}',
        'pair 2: the key "instruction" is missing; it has "prompt", "completion" '
        'where pair 1 has "instruction", "input", "output"; ',
    ),
    ('{"prompt": "a", "response": "b"}', 'pair 1: the key "context" is missing; it has "prompt", "response"; '),
    (second(', "high_quality": 1', ""), 'pair 2: "high_quality" must be in all entries or in none; it has "context", '),
    (f'{{"context": "a", "response": "b"}}\n{GOOD}', 'pair 2: "high_quality" must be in all entries or in none'),
    (second("}", ', "context": "b"}'), 'pair 2: the key "context" is there twice'),
    (second("}", r', "\ud83d\n\u2028": 5}'), r'pair 2: unknown key "\ud83d\n\u2028"'),
    (second("}", f', "{"k" * 9999}": 5}}'), 'pair 2: unknown key "kkk'),
    (second("}", "".join(f', "k{number}": 5' for number in range(999)) + "}"), 'pair 2: unknown key "k0"'),
    # values
    (second("Here.", " \\n"), 'pair 2: "response" is empty'),
    (second("Where is it?", ""), 'pair 2: "context" is empty'),
    (second('"Here."', "7"), 'pair 2: "response" must be text, not 7'),
    (second('"Here."', "null"), 'pair 2: "response" must be text, not null'),
    (second('"Here."', "NaN"), 'pair 2: "response" must be text, not NaN'),
    (second('"Here."', "-Infinity"), 'pair 2: "response" must be text, not -Infinity'),
    (second('"Here."', '{"a": "b"}'), 'pair 2: "response" must be text, not an object'),
    (second("Here.", r"Here \ud83d"), 'pair 2: "response" holds half of a character'),
    (second("Where", r"\udc00"), 'pair 2: "context" holds half of a character'),
    (second("1}", "2}"), 'pair 2: "high_quality" must be 0 or 1, not 2'),
    (second("1}", "true}"), 'pair 2: "high_quality" must be 0 or 1, not true'),
    (second("1}", "1.0}"), 'pair 2: "high_quality" must be 0 or 1, not 1.0'),
    (second("1}", '"1"}'), 'pair 2: "high_quality" must be 0 or 1, not "1"'),
    (second("1}", "[1]}"), 'pair 2: "high_quality" must be 0 or 1, not a list'),
    ('{"instruction": "a", "input": null, "output": "b"}', 'pair 1: "input" must be text, not null'),
    ('{"instruction": " ", "input": "a", "output": "b"}', 'pair 1: "instruction" is empty'),
    (
        f'{{"prompt": [{USER}], "completion": [{ASSISTANT}]}}',
        'pair 1: "prompt" must be text, not a list; a conversation goes into "messages"',
    ),
    # conversations
    ('{"messages": "a"}', 'pair 1: "messages" must be a list of objects {"role", "content"}'),
    (chat(), 'pair 2: "messages" must be one message or more'),
    (chat(ASSISTANT), 'pair 2: "messages" must be one message or more'),
    (chat(USER, ASSISTANT, USER), "a last one from the assistant"),
    (chat('"a"', ASSISTANT), "pair 2, message 1: must be an object, "),
    (chat(USER, '{"role": "assistant"}'), 'pair 2, message 2: the key "content" is missing; it has "role" and must'),
    (chat(USER, '{"role": "assistant", "content": "b", "name": "B"}'), 'pair 2, message 2: unknown key "name"'),
    (chat(USER, '{"role": "user", "content": "b", "role": "user"}'), 'message 2: the key "role" is there twice'),
    (chat('{"from": "human", "value": "a"}', ASSISTANT), 'the key "role" is missing; it has "from", "value"'),
    (chat('{"role": "tool", "content": "a"}', ASSISTANT), '"role" must be one of system, user, assistant, not "tool"'),
    (chat('{"role": ["user"], "content": "a"}', ASSISTANT), "must be one of system, user, assistant, not a list"),
    (chat('{"role": "user", "content": [{"type": "text"}]}', ASSISTANT), '"content" must be text, not a list\n'),
    (chat('{"role": "user", "content": ""}', ASSISTANT), 'pair 2, message 1: "content" is empty'),
    (chat(USER, r'{"role": "assistant", "content": "\ud83d"}'), 'message 2: "content" holds half of a character'),
]

BAD_CSV = [
    ("", "holds no pairs"),
    ("context,response\n\n", "holds no pairs"),
    (GOOD_CSV + "a,b\n", "row 3: has 2 cells, and the header has 3"),
    (GOOD_CSV + "\r\na,b,1,\n", "row 4: has 4 cells, and the header has 3"),
    ("context;response\na;b;c\n", 'put "quotes" around a cell that holds semicolons'),
    ("context,response,response\na,b,c\n", 'the header is "context", "response", "response"'),
    ("context,response,\na,b,c\n", 'the header is "context", "response", ""'),
    ("context|response\na|b\n", 'row 1: the key "context" is missing; it has "context|response"; '),
    ("text\na\n", 'split "text" into'),
    ("messages\na\n", "in a JSON or JSONL file"),
    (GOOD_CSV + "a,b,yes\n", 'row 3: "high_quality" must be 0 or 1, not "yes"'),
    (GOOD_CSV + "a,b,1.0\n", 'row 3: "high_quality" must be 0 or 1, not "1.0"'),
    (GOOD_CSV + "a,b,\n", 'row 3: "high_quality" must be 0 or 1, not ""'),
    (GOOD_CSV + "a, ,0\n", 'row 3: "response" is empty'),
    (GOOD_CSV + 'a,"b"c,0\n', "is not CSV: line 3: "),
    (GOOD_CSV + 'a,"b,0\n', "is not CSV: line 3: "),
    (GOOD_CSV + "a,b\0,0\n", "NUL"),
    (GOOD, "holds no pairs"),
]

MB = 10**6
PAIRS = [{"context": f"Where is {n}?", "response": "Here."} for n in range(4)]
FOUR = json.dumps(PAIRS)


def with_first(**changes: str) -> str:
    """Four pairs, of which the first is changed."""
    return json.dumps([PAIRS[0] | changes, *PAIRS[1:]])


BAD_JSON_FILES: list[tuple[str, bytes | str, str]] = [  # name of the case, contents, complaint
    ("UTF-16", FOUR.encode("utf-16"), "is not UTF-8 text (byte 0); save it as UTF-8"),
    ("UTF-16 without a mark", FOUR.encode("utf-16-le"), "is not JSON: line 1, column 2"),
    ("UTF-32", FOUR.encode("utf-32"), "is not UTF-8 text (byte 0)"),
    ("Latin-1", '["größe"]'.encode("latin-1"), "is not UTF-8 text (byte 4)"),
    ("UTF-8 with a surrogate", b'["\xed\xa0\x80"]', "is not UTF-8 text (byte 2)"),
    ("UTF-8 cut in a character", '["grö'.encode()[:-1], "is not UTF-8 text (byte 4)"),
    ("gzip", gzip.compress(FOUR.encode()), "is not UTF-8 text (byte 1)"),
    ("two byte order marks", "\ufeff\ufeff" + FOUR, "is not JSON: line 1, column 1"),
    ("only a byte order mark", "\ufeff", "holds no pairs"),
    ("only NULs", b"\0" * 1000, "is not JSON: line 1, column 1"),
    ("a NUL in a text", FOUR.replace("0?", "0\0?"), "is not JSON: line 1, column 25"),
    ("10 MB of junk in one line", b"x" * 10 * MB, "is not JSON: line 1, column 1"),
    ("a key of 10 MB", '[{"%s": 1}]' % ("k" * 10 * MB), 'pair 1: the key "context" is missing'),
    ("a response of 10 MB", with_first(response="word " * 2 * MB), "pair 1: its response has 10000001 characters"),
    ("a word of 10 MB", with_first(response="a" * 10 * MB), "pair 1: its response has 10000001 characters"),
    ("a response longer than the model", with_first(response="w " * 600), "pair 1: its response has 602 tokens"),
    ("NaN for high_quality", GOOD.replace("1}", "NaN}"), 'pair 1: "high_quality" must be 0 or 1, not NaN'),
    ("a number past every float", GOOD.replace("1}", "1e999}"), 'pair 1: "high_quality" must be 0 or 1, not Infinity'),
    ("depth 10,000 in a value", GOOD.replace("1}", "[" * 10_000 + "]" * 10_000 + "}"), "line 1 is nested too deeply"),
    ("depth 10,000 of objects", '{"context": ' * 10_000, "line 1 is nested too deeply"),
    ("depth 500", GOOD.replace("1}", "[" * 500 + "]" * 500 + "}"), 'pair 1: "high_quality" must be 0 or 1, not a list'),
    ("a context of no-break spaces", with_first(context="\u00a0\u2003\n"), 'pair 1: "context" is empty'),
    ("a comma after the last pair", FOUR[:-1] + ",]", f"is not JSON: line 1, column {len(FOUR) + 1}"),
    ("a comment", "// pairs\n" + FOUR, "is not JSON: line 1, column 1"),
    ("single quotes", FOUR.replace('"', "'"), "is not JSON: line 1, column 3"),
    ("two arrays", FOUR + FOUR, f"is not JSON: line 1, column {len(FOUR) + 1}"),
    ("an array within an object", f'{{"data": {FOUR}}}', 'pair 1: the key "context" is missing; it has "data"'),
    ("only low-quality pairs", GOOD.replace("1}", "0}"), "holds no pair with high_quality 1; label some, or use "),
    ("one pair", GOOD, "1 different contexts are too few to hold 1 and 1 out; name --test-data"),
    ("one context", f"{GOOD}\n" * 9, "1 different contexts are too few to hold 1 and 1 out"),
]

BAD_CSV_FILES: list[tuple[str, bytes | str, str]] = [
    ("JSONL", f"{GOOD}\n{GOOD}", 'row 1: the key "context" is missing'),
    ("bars for commas", "context|response\na|b\n", 'it has "context|response"'),
    ("UTF-16", "context,response\na,b\n".encode("utf-16"), "is not UTF-8 text (byte 0)"),
    ("no header", "Where is it?,Here.\nWhere?,There.\n", 'it has "Where is it?", "Here."'),
    (
        "a cell of 10 MB",
        "context,response\na," + "a" * 10 * MB + "\nb,b\nc,c",
        "row 2: its response has 10000001 char",
    ),
]

MISTAKES: list[tuple[str, list[str], str]] = [  # name of the case, options, complaint
    ("no such file", ["--data", "missing.json"], "cannot read missing.json: No such file or directory"),
    ("a folder", ["--data", "."], "cannot read .: Is a directory"),
    ("a device", ["--data", "/dev/null"], "/dev/null holds no pairs"),
    ("test data", ["--test-data", "bad.json"], "bad.json, pair 2: must be an object"),
    ("validation data", ["--validation-data", "bad.json"], "bad.json, pair 2: must be an object"),
    ("too long for the test", ["--test-data", "long.json"], "long.json, pair 1: its response has"),
    ("too long for validation", ["--validation-data", "long.json"], "long.json, pair 1: its response has"),
    (
        "too long for two",
        ["--validation-data", "long.json", "--test-data", "long.json"],
        "tokens, too many for 512 tokens; so have pair 1 (",
    ),
    ("test fraction", ["--test-fraction", "0.49"], "4 different contexts are too few to hold 2 and 2 out"),
    ("template without {context}", ["--prompt-template", "Question:"], "a text with {context} in it, once"),
    ("template with two", ["--prompt-template", "{context}{context}"], "a text with {context} in it, once"),
    ("template with {Context}", ["--prompt-template", "{Context}"], "a text with {context} in it, once"),
    ("empty template", ["--prompt-template", ""], "a text with {context} in it, once"),
    ("<EOS> in the template", ["--prompt-template", "<EOS>{context}"], "--prompt-template holds <EOS>"),
    ("<PAD> in the template", ["--prompt-template", "{context}<PAD>"], "--prompt-template holds <PAD>"),
    ("template longer than the model", ["--prompt-template", "{context}" + "x y " * 900], "--prompt-template has 2700"),
    ("template in Latin-1", ["--prompt-template", "gr\udcf6\udcdfe {context}"], "is not UTF-8 text"),
    ("file name in Latin-1", ["--data", "gr\udcf6\udcdfe.json"], "is not UTF-8 text"),
    (
        "reply longer than the model",
        ["--max-new-tokens", "511"],
        "--max-new-tokens leaves the model 1 of its positions",
    ),
    ("no room for a response", ["--max-length", "5"], "pair 1: its response has 5 tokens, too many for 5"),
    ("a temperature that rounds to 0", ["--temperature", "1e-50"], "--temperature must be 0, or 0.001 to 1000"),
    ("a temperature past float32", ["--temperature", "1e50"], "--temperature must be 0, or 0.001 to 1000"),
    ("a nucleus that rounds to 0", ["--top-p", "1e-50"], "--top-p must be 0.001 to 1"),
]


@pytest.mark.parametrize(
    ("file", "contents", "complaint"),
    [pytest.param("pairs.json", *bad, id=name) for name, *bad in BAD_JSON_FILES]
    + [pytest.param("pairs.csv", *bad, id=f"csv, {name}") for name, *bad in BAD_CSV_FILES]
    + [pytest.param("pairs.json", *bad, id=f"json {number}") for number, bad in enumerate(BAD_JSON)]
    + [pytest.param("pairs.csv", *bad, id=f"csv {number}") for number, bad in enumerate(BAD_CSV)],
)
def test_a_bad_file_is_refused_with_its_place(
    run_main: Command, options: list[str], tmp_path: Path, no_training: None, file: str, contents: Any, complaint: str
) -> None:
    path = tmp_path / file
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    told = refusal(run_main(sft.main, *options, "--data", path), tmp_path)
    assert told.startswith(f"error: {path}") and complaint in told
    assert len(told) < len(str(path)) + 600


@pytest.mark.parametrize(("given", "complaint"), [pytest.param(*case, id=name) for name, *case in MISTAKES])
def test_an_option_that_cannot_be_used_is_refused(
    run_main: Command,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_training: None,
    given: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.json").write_text(FOUR)
    Path("bad.json").write_text(f"[{GOOD}, 5]")
    Path("long.json").write_text(with_first(response="w " * 600).replace("Where", "When"))
    assert complaint in refusal(run_main(sft.main, *options, "--data", "pairs.json", *given), tmp_path)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*arguments: Any, **keywords: Any) -> NoReturn:
        pytest.fail("the model was trained")

    monkeypatch.setattr(stages, "train", trained)


def refusal(outcome: tuple[int | str | None, str, str], folder: Path) -> str:
    """The one line that the user was told, after which nothing was written."""
    status, _, told = outcome
    assert status == 2
    assert told.startswith("error: ") and told.count("\n") == 1 and told.endswith("\n")
    for name in ("outputs", "checkpoints"):
        assert not (folder / name).exists() or not list((folder / name).iterdir())
    return told


@pytest.mark.parametrize("learning_rate", ["10", "1e5"], ids=["a loss past every use", "NaN"])
def test_a_learning_rate_that_leads_nowhere_is_told(
    run_main: Command, options: list[str], tmp_path: Path, learning_rate: str
) -> None:
    """That shows in training only; its last good state is kept."""
    pairs = [{"context": f"Where is {n}?", "response": "Here it is, on its way."} for n in range(12)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    given = ["--data", tmp_path / "pairs.json", "--learning-rate", learning_rate, "--batch-size", "2"]
    outcome = run_main(sft.main, *options, *given)
    (tmp_path / "checkpoints" / "sft_model.state.pt").unlink(missing_ok=True)
    assert "--learning-rate" in refusal(outcome, tmp_path)


@pytest.mark.parametrize("text", [second("1}", "0}"), f"{GOOD}\n{GOOD}", chat(USER, ASSISTANT), GOOD_CSV * 2])
@pytest.mark.parametrize("name", ["mine.json", "mine.csv"])
def test_no_damage_to_a_file_leads_to_a_traceback(tmp_path: Path, name: str, text: str) -> None:
    rng = Random(0)
    path = tmp_path / name
    refused = 0
    for _ in range(150):
        damaged = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.randint(0, 3)] = rng.choice(
                [b"", b'"', b"[", b"{", b",", b"\0", b"\n", b"\\u", b"\xff"]
            )
        path.write_bytes(damaged)
        try:
            assert all(pair.context.strip() and pair.response.strip() for pair in load_pairs(path))
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 50


# ---------------------------------------------------------------------------------------------------- trained on


def in_csv(*rows: tuple[str, ...]) -> str:
    written = io.StringIO()
    csv.writer(written).writerows([("context", "response"), *rows])
    return written.getvalue()


def four(context: str, response: str) -> str:
    """Four pairs of this kind, with different contexts."""
    return json.dumps([{"context": f"{context}{n}", "response": response} for n in range(4)])


@dataclass(frozen=True)
class Trains:
    """A file that trains: how many of its pairs do, the rest being held out or of low quality, and what is noted."""

    contents: str
    trained_on: int = 2
    note: str = ""
    file: str = "pairs.json"
    options: list[str] = field(default_factory=list)


LOW = json.dumps([pair | {"high_quality": 0} for pair in PAIRS])[1:-1]
MANY_LOW = ", ".join(f'{{"context": "{"c" * 1000} {n}", "response": "b", "high_quality": 0}}' for n in range(9_700))
RATED = json.dumps([pair | {"high_quality": 1} for pair in PAIRS])[:-1]
CUT = "note: 2 of 2 contexts of the training set are too long and lose their beginning; the first is that of"
TRAINED = {
    "plain": Trains(FOUR),
    "a byte order mark": Trains("\ufeff" + FOUR),
    "three pairs": Trains(json.dumps(PAIRS[:3]), trained_on=1),
    "a batch larger than the data": Trains(FOUR, options=["--batch-size", "1" + "0" * 30]),
    "more parts than pairs": Trains(FOUR, options=["--gradient-accumulation-steps", "1000"]),
    "the same pair twice": Trains(json.dumps([*PAIRS, *PAIRS]), trained_on=4),
    "low-quality pairs left out": Trains(f"{RATED}, {LOW.replace('Where', 'When')}]"),
    "low-quality pairs wanted": Trains(f"[{LOW}]", options=["--train-on", "all"]),
    "a low-quality pair longer than the model": Trains(f"{RATED}, {LOW.replace('Here', 'w ' * 600)}]"),
    "10 MB in one line": Trains(f"{RATED}, {MANY_LOW}]"),
    "a context of 10 MB": Trains(with_first(context="a" * 10 * MB), note=CUT.replace("2", "1", 1)),
    "contexts longer than the model": Trains(four("word " * 600, "b"), note=CUT),
    "contexts longer than --max-length": Trains(FOUR, note=CUT, options=["--max-length", "9"]),
    "a --max-length beyond the model": Trains(FOUR, options=["--max-length", "1" + "0" * 30]),
    "emoji": Trains(four("\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f6cb\ufe0f", "\U0001f44d\U0001f3fd")),
    "right to left": Trains(four("\u05d0\u05d9\u05df \u202e\u0644\u064a", "\u0646\u0623\u0633\u0641 \u200f\u05d0")),
    "combining marks": Trains(four("Z\u0351\u036b\u0343\u036a\u0302", "e\u0301")),
    "noncharacters": Trains(four("\ufffe\uffff\U0010ffff", "\ufdd0\x7f")),
    "zero-width spaces alone": Trains(four("\u200b", "\u200b")),
    "control characters": Trains(four("\0\x1b[31m", "\0\a\b")),
    "line ends of all kinds": Trains(four("\r\n\u2028\x0c", "a\n\r\u2029b")),
    "escaped pairs of surrogates": Trains(json.dumps(PAIRS).replace("Where", "\\ud83d\\ude42")),
    "control tokens": Trains(four("<EOS> <PAD>", "<PAD><EOS> and <EOS>")),
    "nothing but control tokens": Trains(four("<EOS>", "<EOS>")),
    "braces": Trains(four("{context} {0} {{", "{response}")),
    "spaces around": Trains(four("  a ", "\n b \t")),
    "a template of nothing else": Trains(FOUR, options=["--prompt-template", "{context}"]),
    "a template in two lines": Trains(FOUR, options=["--prompt-template", r"{{context}}\n\U0001f642{0}"]),
    "JSONL with blank lines": Trains("\r\n \n\n".join(map(json.dumps, PAIRS)) + "\n\n", file="pairs.jsonl"),
    "CSV": Trains(in_csv(*((f'{n}, "a"\nb', "c,d") for n in range(4))), file="pairs.csv"),
    "CSV with formulas": Trains(in_csv(*((f"=1+{n}", "@x") for n in range(4))), file="pairs.csv"),
    "a line's end in the file's name": Trains(FOUR, file="my\npairs.json"),
    "the widest choice": Trains(FOUR, options=["--temperature", "1000", "--top-k", "1" + "0" * 30]),
    "the narrowest choice": Trains(FOUR, options=["--temperature", "0.001", "--top-p", "0.001", "--top-k", "1"]),
}


@pytest.mark.parametrize("case", TRAINED.values(), ids=TRAINED)
def test_unusual_data_trains_and_every_pair_is_counted(
    run_main: Command, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Trains
) -> None:
    monkeypatch.setattr(report, "save_loss_curve", lambda path, *given: path.touch())  # most of the time of such a run
    trained: list[Example] = []

    def noting(model: Transformer, examples: Sequence[Example], *given: Any, **more: Any) -> list[Step]:
        trained.extend(examples)
        return train(model, examples, *given, **more)

    monkeypatch.setattr(stages, "train", noting)
    path = tmp_path / case.file
    path.write_bytes(case.contents.encode())
    status, printed, told = run_main(sft.main, *options, "--data", path, *case.options)
    assert status == 0
    assert told.startswith(case.note) and all(line.startswith("note: ") for line in told.splitlines() if case.note)
    assert bool(told) == bool(case.note)

    out, given = tmp_path / "outputs", load_pairs(path)
    evaluation = json.loads((out / "evaluation.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    counts = evaluation["dataset"]
    assert counts.pop("trained_on") == case.trained_on
    assert f"trained on {case.trained_on:,} of {counts['sft_dataset']:,} pairs" in printed
    assert sum(counts.values()) == len(given)
    assert Counter(pair for name in counts for pair in load_pairs(out / f"{name}.json")) == Counter(given)
    first, last = evaluation["by_epoch"]
    assert all(map(math.isfinite, (first["validation_loss"], last["validation_loss"], last["train_loss"])))
    load_checkpoint(tmp_path / "checkpoints" / "sft_model.pt")  # refuses weights that are NaN

    assert len(trained) == case.trained_on
    for example in trained:  # <PAD> is 0 and <EOS> is 1, and neither comes from a text
        assert example.ids.index(1) == len(example.ids) - 1 and 0 not in example.ids


def test_one_pair_trains_where_it_is_not_all_that_there_is(
    run_main: Command, options: list[str], tmp_path: Path
) -> None:
    for name, pairs in {"one": PAIRS[:1], "others": PAIRS[1:]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(pairs))
    given = ["--data", tmp_path / "one.json"]
    given += [part for name in ("--test-data", "--validation-data") for part in (name, tmp_path / "others.json")]
    assert run_main(sft.main, *options, *given)[0] == 0
    evaluation = json.loads((tmp_path / "outputs" / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert evaluation["dataset"] == {"sft_dataset": 1, "sft_validation": 3, "sft_test": 3, "trained_on": 1}


# ---------------------------------------------------------------------------------------------------- other processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("contents", "given", "told"),
    [
        (b"\xff\xfe[", [], b"pairs.json is not UTF-8 text (byte 0)"),
        (FOUR.encode(), [b"--prompt-template", b"gr\xf6\xdfe {context}"], b"is not UTF-8 text"),
    ],
    ids=["data", "option"],
)
def test_a_process_of_its_own_says_the_same_and_ends_with_2(
    options: list[str], tmp_path: Path, contents: bytes, given: list[bytes], told: bytes
) -> None:
    (tmp_path / "pairs.json").write_bytes(contents)
    command: list[str | bytes] = [sys.executable, "-m", "part4_sft.sft", *options, "--data", "pairs.json", *given]
    finished = subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert finished.returncode == 2
    assert finished.stderr.startswith(b"error: ") and finished.stderr.count(b"\n") == 1 and told in finished.stderr
