"""People's files of pairs: every layout in every kind of file is read, and what is no pair is refused by its place."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from part3_pretrain.runtime.cli import UserError
from part4_sft.dataset import Pair
from part4_sft.formats import load_pairs, pairs_of_lines, relabel

Entries = list[dict[str, Any]]

# ---------------------------------------------------------------------------------------------------- good files


def write_array(folder: Path, entries: Entries) -> Path:
    path = folder / "pairs.json"
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def write_jsonl(folder: Path, entries: Entries) -> Path:
    """With lines as other tools leave them: blank ones, and ends of Windows."""
    path = folder / "pairs.jsonl"
    lines = [json.dumps(entry, ensure_ascii=False) + "\r\n" for entry in entries]
    path.write_bytes("\n  \n".join(lines).encode())
    return path


def write_csv(folder: Path, entries: Entries) -> Path:
    """With the byte order mark that spreadsheets write; keys that an entry lacks become empty cells."""
    path = folder / "pairs.CSV"
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, sorted(set().union(*entries)))
        writer.writeheader()
        writer.writerows(entries)
    return path


CONTEXTS = ["Where is my desk?", "Größe?\nI asked,\u2028twice."]
RESPONSES = ['It is on "its" way, soon.\n', " Größe L 🙂" + "!" * 200_000]
GOOD = '{"context": "Where is it?", "response": "Here.", "high_quality": 1}'
LAYOUTS: dict[str, Entries] = {
    "ours": [{"context": c, "response": r} for c, r in zip(CONTEXTS, RESPONSES)],
    "TRL": [{"completion": r, "prompt": c} for c, r in zip(CONTEXTS, RESPONSES)],
    "Alpaca": [
        {"instruction": CONTEXTS[0], "output": RESPONSES[0]},
        {"instruction": "Größe?", "input": "I asked,\u2028twice.", "output": RESPONSES[1]},
    ],
    "Alpaca, blank input": [{"instruction": c, "input": " ", "output": r} for c, r in zip(CONTEXTS, RESPONSES)],
    "chat": [
        {"messages": [{"role": "user", "content": c}, {"content": r, "role": "assistant"}]}
        for c, r in zip(CONTEXTS, RESPONSES)
    ],
}


@pytest.mark.parametrize("ratings", [None, [0, 1]], ids=["unrated", "rated"])
@pytest.mark.parametrize(
    ("layout", "write"),
    [(layout, write) for layout in LAYOUTS for write in (write_array, write_jsonl)]
    + [(layout, write_csv) for layout in LAYOUTS if layout != "chat"],  # a cell holds no list
)
def test_every_layout_gives_the_same_pairs_from_every_kind_of_file(
    tmp_path: Path, layout: str, write: Callable[[Path, Entries], Path], ratings: list[int] | None
) -> None:
    entries = LAYOUTS[layout]
    if ratings:
        entries = [entry | {"high_quality": rating} for entry, rating in zip(entries, ratings)]
    path = write(tmp_path, entries)
    pairs = load_pairs(path)
    assert pairs == [Pair(*texts) for texts in zip(CONTEXTS, RESPONSES, ratings or [1, 1])]
    places = ("row 2", "row 3") if write is write_csv else ("pair 1", "pair 2")  # the header is row 1
    assert [pair.place for pair in pairs] == [f"{path}, {place}" for place in places]

    assert relabel(path, lambda pair: None if pair == pairs[0] else 0) == [0, 0]
    assert load_pairs(path) == [Pair(pair.context, pair.response, 0) for pair in pairs]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
def test_csv_is_read_as_spreadsheets_leave_it(tmp_path: Path, name: str, delimiter: str) -> None:
    path = tmp_path / name
    rows = (" Context ", "RESPONSE", "High quality"), ("a", "b,;", "1"), (" ", "", ""), (), ("c", "d", "0")
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    pairs = load_pairs(path)
    assert pairs == [Pair("a", "b,;", 1), Pair("c", "d", 0)]
    assert [pair.place for pair in pairs] == [f"{path}, row 2", f"{path}, row 5"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_may_end_its_lines_in_any_way_and_those_inside_of_quotes_are_kept(tmp_path: Path, end: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes('context,response|"a|b","c ""d"""||e,f|'.replace("|", end).encode())
    assert load_pairs(path) == [Pair(f"a{end}b", 'c "d"'), Pair("e", "f")]


@pytest.mark.parametrize(
    ("roles", "context"),
    [
        (["user"], "m0"),
        (["system"], "m0"),
        (["system", "user"], "System: m0\nUser: m1"),
        (["user", "assistant", "user"], "User: m0\nAssistant: m1\nUser: m2"),
    ],
)
def test_a_conversation_has_a_line_for_each_message_before_the_response(
    tmp_path: Path, roles: list[str], context: str
) -> None:
    messages = [{"role": role, "content": f"m{number}"} for number, role in enumerate(roles)]
    path = write_array(tmp_path, [{"messages": [*messages, {"role": "assistant", "content": "Here."}]}])
    assert load_pairs(path) == [Pair(context, "Here.")]


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl", "pairs.txt", "my\npairs"])
@pytest.mark.parametrize(("before", "between", "after"), [("\ufeff \n[", ",", "]"), ("\ufeff\n", "\n", "")])
def test_the_content_and_not_the_name_tells_an_array_from_jsonl(
    tmp_path: Path, name: str, before: str, between: str, after: str
) -> None:
    path = tmp_path / name
    path.write_text(before + between.join([GOOD, GOOD.replace("Where", r"\ud83d\ude42")]) + after, encoding="utf-8")
    assert load_pairs(path) == [Pair("Where is it?", "Here.", 1), Pair("🙂 is it?", "Here.", 1)]


RELABELLED = {  # file: before, and with a 1 for the context ö
    "a.json": (
        '\ufeff[\n{"prompt":"ö",\n"completion":"b"},{"prompt":"c","completion":"d"}]',
        '[\n{"prompt": "ö", "completion": "b", "high_quality": 1},\n'
        '{"prompt": "c", "completion": "d", "high_quality": 0}\n]\n',
    ),
    "a.jsonl": (
        '{"prompt":"ö","completion":"b","high_quality":0}\r\n\r\n{"high_quality":1,"prompt":"c","completion":"d"}',
        '{"prompt": "ö", "completion": "b", "high_quality": 1}\r\n'
        '{"high_quality": 1, "prompt": "c", "completion": "d"}\r\n',
    ),
    "a.csv": (
        '\ufeffContext;Response\r\nö;"b;\n"\r\n;\r\nc;d',
        '\ufeffContext;Response;high_quality\r\nö;"b;\n";1\r\nc;d;0\r\n',
    ),
    "a.tsv": ("response\tHigh Quality\tcontext\nb\t0\tö", "response\tHigh Quality\tcontext\nb\t1\tö\n"),
}


@pytest.mark.parametrize("name", RELABELLED)
def test_relabelling_keeps_the_layout_and_all_else(tmp_path: Path, name: str) -> None:
    before, after = RELABELLED[name]
    (tmp_path / name).write_bytes(before.encode())
    assert relabel(tmp_path / name, lambda pair: 1 if pair.context == "ö" else None)[0] == 1
    assert (tmp_path / name).read_bytes().decode() == after


# ---------------------------------------------------------------------------------------------------- bad files


def second(old: str, new: str) -> str:
    """An array of two pairs; `old` is replaced in the second."""
    assert old in GOOD
    return f"[{GOOD},\n{GOOD.replace(old, new)}]"


USER, ASSISTANT = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'


def chat(*messages: str) -> str:
    """JSONL of two chats, the second with these messages."""
    return "\n".join(f'{{"messages": [{", ".join(turns)}]}}' for turns in [(USER, ASSISTANT), messages])


TRL = '{"prompt": "a", "completion": "b"}'
LATIN = "größe".encode("latin-1")
BAD_JSON: list[tuple[bytes | str, str]] = [
    # no text, no JSON, or no entries
    ("", "holds no pairs"),
    ("\ufeff", "holds no pairs; name a file that holds some"),
    (GOOD.encode("utf-16"), "is not UTF-8 text (byte 0); save it as UTF-8"),
    (b'["' + LATIN + b'"]', "is not UTF-8 text (byte 4)"),
    ('["grö'.encode()[:-1], "is not UTF-8 text (byte 4)"),
    ("\ufeffgrö".encode()[:-1], "is not UTF-8 text (byte 5)"),
    ("\ufeff\ufeff" + GOOD, "is not JSON: line 1, column 1"),
    (GOOD.replace("Where", "Whe\0e"), "is not JSON: line 1, column 17"),
    ("x" * 10_000_000, "is not JSON: line 1, column 1"),
    (f"[\n{GOOD}\n{GOOD}]", "is not JSON: line 3, column 1: "),
    (f"{GOOD}\n\n{GOOD[:-1]}\n", "is not JSON: line 3, column 67: "),
    (f"{GOOD}\n{GOOD} {GOOD}", "is not JSON: line 2, column 69: "),
    (f"[{GOOD},]", "is not JSON: line 1, column 70"),
    ("a,b\nc,d", "; a file is a JSON array, or one JSON object a line, or CSV with a name that ends in .csv"),
    ('{"context": "a\tb", "response": "b"}', "is not JSON: line 1, column 15: "),
    (f"{GOOD}\n{'[' * 100_000}", "line 2 is nested too deeply"),
    ('[{"a":' * 100_000, "line 1 is nested too deeply"),
    (second("1}", "1" * 5000 + "}"), "digits, so it cannot be pairs"),
    # no object, or other keys
    (f'[{GOOD}, "Where is it?"]', 'pair 2: must be an object, {"key": value, ...}, not "Where is it?"'),
    ("[{}]", 'pair 1: the key "context" is missing; it has no keys; '),
    (second(', "response": "Here."', ""), 'pair 2: the key "response" is missing; it has "context", "high_quality" '),
    (second("}", ', "rating": 5}'), 'pair 2: unknown key "rating"'),
    (TRL.replace("}", ', "text": "c"}'), '"text": remove it; it has "prompt", "completion", "text"; the layouts'),
    ('{"a": "b"}', "context + response; prompt + completion; instruction + output (+ input); messages"),
    ('{"text": "a b"}', 'pair 1: the key "context" is missing; it has "text"; split "text" into "messages", or '),
    (f"{GOOD}\n{TRL}", '"context" is missing; it has "prompt", "completion" where pair 1 has "context", "response", '),
    (second(', "high_quality": 1', ""), 'pair 2: "high_quality" must be in all entries or in none; it has "context", '),
    (f'{{"context": "a", "response": "b"}}\n{GOOD}', 'pair 2: "high_quality" must be in all entries or in none'),
    (second("}", ', "context": "b"}'), 'pair 2: the key "context" is there twice; keep one of them'),
    (second("}", ', "": 1, "": 2}'), 'pair 2: the key "" is there twice'),
    (second("}", r', "\ud83d\n\u2028": 5}'), r'pair 2: unknown key "\ud83d\n\u2028"'),
    (second("}", f', "{"k" * 10_000_000}": 5}}'), 'pair 2: unknown key "kkk'),
    (second("}", "".join(f', "k{n}": 5' for n in range(999)) + "}"), 'unknown key "k0", "k1", "k2": remove it'),
    # values
    (second("Here.", " \\n"), 'pair 2: "response" is empty; fill it in, or remove the entry'),
    (second("Where is it?", ""), 'pair 2: "context" is empty'),
    (second("Where is it?", "\u00a0\u2003"), 'pair 2: "context" is empty'),
    (second('"Here."', "-Infinity"), 'pair 2: "response" must be text, not -Infinity'),
    (second('"Here."', '{"a": "b"}'), 'pair 2: "response" must be text, not an object'),
    (second("Here.", r"Here \ud83d"), 'pair 2: "response" holds half of a character (a lone surrogate); remove it'),
    (second("Where", r"\udc00"), 'pair 2: "context" holds half of a character'),
    (second("1}", "2}"), 'pair 2: "high_quality" must be 0 or 1, not 2'),
    (second("1}", "true}"), 'pair 2: "high_quality" must be 0 or 1, not true'),
    (second("1}", "1.0}"), 'pair 2: "high_quality" must be 0 or 1, not 1.0'),
    (second("1}", '"1"}'), 'pair 2: "high_quality" must be 0 or 1, not "1"'),
    (second("1}", "[" * 500 + "]" * 500 + "}"), 'pair 2: "high_quality" must be 0 or 1, not a list'),
    ('{"instruction": "a", "input": null, "output": "b"}', 'pair 1: "input" must be text, not null'),
    ('{"instruction": " ", "input": "a", "output": "b"}', 'pair 1: "instruction" is empty'),
    (TRL.replace('"a"', f"[{USER}]"), '"prompt" must be text, not a list; a conversation goes into "messages"'),
    # conversations
    ('{"messages": "a"}', '"messages" must be a list of objects {"role", "content"}, in a JSON or JSONL file, not "a"'),
    (chat(), 'pair 2: "messages" must be one message or more'),
    (chat(ASSISTANT), 'pair 2: "messages" must be one message or more'),
    (chat(USER, ASSISTANT, USER), "a last one from the assistant"),
    (chat('"a"', ASSISTANT), "pair 2, message 1: must be an object, "),
    (chat(USER, '{"role": "assistant"}'), 'message 2: the key "content" is missing; it has "role" and must have role'),
    (chat(USER, '{"role": "assistant", "content": "b", "name": "B"}'), 'pair 2, message 2: unknown key "name"'),
    (chat(USER, '{"role": "user", "content": "b", "role": "user"}'), 'message 2: the key "role" is there twice'),
    (chat('{"from": "human", "value": "a"}', ASSISTANT), 'the key "role" is missing; it has "from", "value"'),
    (chat('{"role": "tool", "content": "a"}', ASSISTANT), '"role" must be one of system, user, assistant, not "tool"'),
    (chat('{"role": ["user"], "content": "a"}', ASSISTANT), "must be one of system, user, assistant, not a list"),
    (chat('{"role": "user", "content": [{"type": "text"}]}', ASSISTANT), '"content" must be text, not a list$'),
    (chat('{"role": "user", "content": ""}', ASSISTANT), 'pair 2, message 1: "content" is empty'),
]  # fmt: skip

GOOD_CSV = "context,response,high_quality\nWhere is it?,Here.,1\n"
BAD_CSV: list[tuple[bytes | str, str]] = [
    ("", "holds no pairs"),
    ("context,response\n\n", "holds no pairs"),
    (GOOD, "holds no pairs"),
    (f"{GOOD}\n{GOOD}", 'row 1: the key "context" is missing'),
    (GOOD_CSV.encode("utf-16"), "is not UTF-8 text (byte 0)"),
    (GOOD_CSV + "a,b\n", "row 3: has 2 cells, and the header has 3"),
    (GOOD_CSV + "\r\na,b,1,\n", "row 4: has 4 cells, and the header has 3"),
    ("context;response\na;b;c\n", 'put "quotes" around a cell that holds semicolons'),
    ("context,response,response\na,b,c\n", 'the header is "context", "response", "response"'),
    ("context,response,\na,b,c\n", 'the header is "context", "response", ""'),
    ("Where is it?,Here.\nWhere?,There.\n", 'row 1: the key "context" is missing; it has "Where is it?", "Here."; the'),
    ("\ncontext|response\na|b\n", 'row 2: the key "context" is missing; it has "context|response"; '),
    ("text\na\n", 'split "text" into'),
    ("messages\na\n", "in a JSON or JSONL file"),
    (GOOD_CSV + "a,b,1.0\n", 'row 3: "high_quality" must be 0 or 1, not "1.0"'),
    (GOOD_CSV + "a,b,\n", 'row 3: "high_quality" must be 0 or 1, not ""'),
    (GOOD_CSV + "a, ,0\n", 'row 3: "response" is empty'),
    (GOOD_CSV + 'a,"b"c,0\n', "is not CSV: line 3: "),
    (GOOD_CSV + 'a,"b,0\n', "; look at its quotation marks"),
    (GOOD_CSV + "a,b\0,0\n", "holds a NUL character, so it is not CSV; save it as CSV in UTF-8"),
]


@pytest.mark.parametrize(
    ("name", "contents", "complaint"),
    [pytest.param("pairs.json", *bad, id=f"json {number}") for number, bad in enumerate(BAD_JSON)]
    + [pytest.param("pairs.csv", *bad, id=f"csv {number}") for number, bad in enumerate(BAD_CSV)],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str, contents: bytes | str, complaint: str) -> None:
    path = tmp_path / name
    path.write_bytes(contents if isinstance(contents, bytes) else contents.encode())
    with pytest.raises(UserError) as refused:
        load_pairs(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and complaint in f"{message}$"
    assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 600
    with pytest.raises(UserError):
        relabel(path, lambda pair: 1)
    assert path.stat().st_size == len(contents if isinstance(contents, bytes) else contents.encode())


def test_lines_out_of_a_large_file_are_read_in_its_layout_and_have_its_numbers() -> None:
    path, first_line = Path("large.jsonl"), f"\ufeff{GOOD}".encode()
    pairs = pairs_of_lines(f"{GOOD}\n \n{GOOD}".encode(), 100, 7, first_line, path)
    assert [pair.place for pair in pairs] == ["large.jsonl, line 7", "large.jsonl, line 9"]
    for data, complaint in {
        f"\ufeff{GOOD}".encode(): "is not JSON: line 7, column 1: ",
        b"\n{\xff": "(byte 102)",
        TRL.encode(): 'line 7: the key "context" is missing; it has "prompt", "completion" where pair 1 has "context"',
    }.items():
        with pytest.raises(UserError) as refused:
            pairs_of_lines(data, 100, 7, first_line, path)
        assert complaint in str(refused.value)


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
