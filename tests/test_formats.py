"""People's files of pairs: every layout in every kind of file is read, and what is no pair is refused by its place."""

from __future__ import annotations

import csv
import json
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from part3_pretrain.runtime.cli import UserError
from part4_sft.dataset import Pair, save_pairs
from part4_sft.formats import load_pairs, pairs_of_lines, relabel

NAMES = ["pairs.json", "pairs.jsonl", "pairs.CSV"]
Entries = list[dict[str, Any]]


def write(path: Path, entries: Entries) -> Path:
    """As others do: JSONL with blank lines and ends of Windows, CSV with a byte order mark and cells left empty."""
    if path.suffix == ".CSV":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, sorted(set().union(*entries)))
            writer.writeheader()
            writer.writerows(entries)
    elif path.suffix == ".jsonl":
        path.write_bytes("\n  \n".join(json.dumps(entry, ensure_ascii=False) + "\r\n" for entry in entries).encode())
    else:
        path.write_text(json.dumps(entries, ensure_ascii=False, indent=1), encoding="utf-8")
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
    "Bitext": [
        {"flags": "BQ", "instruction": c, "category": "ORDER", "intent": "track_order", "response": r}
        for c, r in zip(CONTEXTS, RESPONSES)
    ],
    "Alpaca with an id, its text and empty system messages": [
        {"id": "7", "instruction": c, "output": r, "text": f"{c} {r}", "system": " "}
        for c, r in zip(CONTEXTS, RESPONSES)
    ],
    "ShareGPT": [
        {"id": "a_0", "conversations": [{"from": "human", "value": c}, {"from": "gpt", "value": r, "markdown": None}]}
        for c, r in zip(CONTEXTS, RESPONSES)
    ],
    "conversational TRL": [
        {"prompt": [{"role": "user", "content": c}], "completion": [{"role": "assistant", "content": r}]}
        for c, r in zip(CONTEXTS, RESPONSES)
    ],
}
NO_CSV = {"chat", "ShareGPT", "conversational TRL"}  # whose cells cannot be lists


@pytest.mark.parametrize("ratings", [None, [0, 1]], ids=["unrated", "rated"])
@pytest.mark.parametrize(("layout", "name"), sorted({*product(LAYOUTS, NAMES)} - {*product(NO_CSV, NAMES[2:])}))
def test_every_layout_gives_the_same_pairs_from_every_kind_of_file(
    tmp_path: Path, layout: str, name: str, ratings: list[int] | None
) -> None:
    entries = LAYOUTS[layout]
    if ratings:
        entries = [entry | {"high_quality": rating} for entry, rating in zip(entries, ratings)]
    path = write(tmp_path / name, entries)
    pairs = load_pairs(path)
    assert pairs == [Pair(*texts) for texts in zip(CONTEXTS, RESPONSES, ratings or [1, 1])]
    places = ("row 2", "row 3") if name == "pairs.CSV" else ("pair 1", "pair 2")  # the header is row 1
    assert [pair.place for pair in pairs] == [f"{path}, {place}" for place in places]

    assert relabel(path, lambda pair: None if pair == pairs[0] else 0) == [0, 0]
    assert load_pairs(path) == [Pair(pair.context, pair.response, 0) for pair in pairs]


TEXTS = st.text(min_size=1).filter(str.strip)  # any characters, but no half of one


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.lists(st.tuples(TEXTS, TEXTS, st.integers(0, 1)), min_size=1, max_size=6), st.sampled_from(NAMES))
def test_any_text_comes_back_from_any_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]], name: str
) -> None:
    assume(
        name != "pairs.CSV" or not any("\0" in text for *texts, _ in rows for text in texts)
    )  # it has no place there
    entries = [dict(zip(("context", "response", "high_quality"), row)) for row in rows]
    assert load_pairs(write(tmp_path_factory.getbasetemp() / name, entries)) == [Pair(*row) for row in rows]


@pytest.mark.parametrize(("delimiter", "end"), [(",", "\n"), (";", "\r\n"), ("\t", "\r")])
def test_csv_is_read_as_spreadsheets_leave_it(tmp_path: Path, delimiter: str, end: str) -> None:
    path, text = tmp_path / "pairs.csv", f'a{end}"b",;'
    rows = [(" Context ", "RESPONSE", "High quality"), (text, "b", "1"), (" ", "", ""), (), ("c", "d", "0")]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter, lineterminator=end).writerows(rows)
    pairs = load_pairs(path)
    assert pairs == [Pair(text, "b", 1), Pair("c", "d", 0)]
    assert [pair.place for pair in pairs] == [f"{path}, row 2", f"{path}, row 5"]


def test_the_header_alone_tells_the_delimiter_where_lines_end_as_on_an_old_mac(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_bytes(b"context;response\ra, b, c;d\r")
    assert load_pairs(tmp_path / "pairs.csv") == [Pair("a, b, c", "d")]


def test_a_conversation_has_a_line_for_each_message_before_the_response(tmp_path: Path) -> None:
    roles = ["user", "assistant", "user", "assistant"]
    turns = [{"role": role, "content": f"m{number}"} for number, role in enumerate(roles)]
    entries = [{"messages": turns}, {"messages": [{"role": "system", "content": "s"}, *turns[:2]]}]
    pairs = load_pairs(write(tmp_path / "pairs.json", entries))
    assert pairs == [Pair("User: m0\nAssistant: m1\nUser: m2", "m3"), Pair("System: s\nUser: m0", "m1")]


def test_a_conversation_keeps_its_turns_and_is_saved_so_that_it_can_be_read_again(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")]
    entries = [{"messages": some} for some in (turns, turns[1:], turns[1:3], turns[:1] + turns[2:3])]
    pairs = load_pairs(write(tmp_path / "chats.json", entries))
    u, a, s = ("user", "u"), ("assistant", "a"), ("system", "s")
    assert [pair.turns for pair in pairs] == [(s, u, a, u), (u, a, u), (u,), (s,)]
    save_pairs(tmp_path / "again.json", pairs)
    again = load_pairs(tmp_path / "again.json")
    assert again == pairs and [pair.turns for pair in again] == [pair.turns for pair in pairs]

    single = load_pairs(write(tmp_path / "single.json", [{"messages": turns[1:3]}]))
    assert single[0].turns == ()
    save_pairs(tmp_path / "single again.json", single)
    assert json.loads((tmp_path / "single again.json").read_text()) == [
        {"context": "u", "response": "a", "high_quality": 1}
    ]


HUMAN, GPT = {"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}
SAYS_U, SAYS_A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
CONVERSATIONS: dict[str, dict[str, Any]] = {
    "ShareGPT": {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT, HUMAN, GPT]},
    "ShareGPT, its system apart": {"system": "s", "conversations": [HUMAN, GPT, HUMAN, GPT], "tools": "[]"},
    "other names": {
        "conversations": [{"role": role, "content": role[-1]} for role in ("developer", "user", "assistant")]
    },
    "a prompt and a completion": {"prompt": [SAYS_U, SAYS_A, SAYS_U], "completion": [SAYS_A], "system": "s"},
    "from and value in messages": {"messages": [{"from": "System", "value": "s"}, HUMAN, GPT, HUMAN, GPT]},
    "a redundant prompt": {
        "prompt": "u",
        "prompt_id": "1",
        "messages": [SAYS_U, SAYS_A, SAYS_U, SAYS_A],
        "system": "s",
    },
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_of_all_layouts_have_the_same_turns(tmp_path: Path, name: str) -> None:
    u, a, s = ("user", "u"), ("assistant", "a"), ("system", "s")
    (pair,) = load_pairs(write(tmp_path / "chats.json", [CONVERSATIONS[name]]))
    if name == "other names":
        assert (pair.context, pair.response, pair.turns) == (
            "System: r\nUser: r",
            "t",
            (("system", "r"), ("user", "r")),
        )
    else:
        assert pair == Pair("System: s\nUser: u\nAssistant: a\nUser: u", "a") and pair.turns == (s, u, a, u)


def test_a_system_message_of_alpaca_is_a_turn_and_so_is_the_question_of_an_entry_without(tmp_path: Path) -> None:
    asked = {"instruction": "i", "input": "n", "output": "o"}
    pairs = load_pairs(write(tmp_path / "a.json", [asked | {"system": "s"}, asked | {"system": ""}]))
    assert pairs == [Pair("System: s\nUser: i\nn", "o"), Pair("i\nn", "o")]
    assert [pair.turns for pair in pairs] == [(("system", "s"), ("user", "i\nn")), (("user", "i\nn"),)]


def test_what_is_left_out_is_noted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_pairs(write(tmp_path / "pairs.CSV", LAYOUTS["Bitext"]))
    load_pairs(write(tmp_path / "pairs.json", [CONVERSATIONS["ShareGPT"] | {"id": n, "a\x1b": n} for n in range(9)]))
    said = [SAYS_U | {"name": "Anna"}, SAYS_A | {"tool_calls": None, "markdown": ""}]
    load_pairs(write(tmp_path / "named.jsonl", [{"messages": said}] * 2))
    load_pairs(write(tmp_path / "ours.json", LAYOUTS["ours"]))
    assert capsys.readouterr().err.replace(f"{tmp_path}/", "").splitlines() == [
        'note: pairs.CSV is read as instruction + response; left out: "category", "flags", "intent"',
        'note: pairs.json is read as conversations; left out: "id", "a\\u001b"',
        'note: named.jsonl is read as messages; left out: "name of messages"',
    ]


def test_the_numbers_of_rows_that_pandas_writes_are_left_out_and_kept_when_labelled(tmp_path: Path) -> None:
    path = tmp_path / "frame.csv"
    path.write_text(",context,response\n0,a,b\n1,c,d\n")
    assert load_pairs(path) == [Pair("a", "b"), Pair("c", "d")]
    relabel(path, lambda pair: 1)
    assert path.read_text() == ",context,response,high_quality\n0,a,b,1\n1,c,d,1\n"


@pytest.mark.parametrize("name", NAMES)
def test_columns_are_read_by_the_names_that_are_given(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = [{"Frage": c, "Antwort": r, "gut": n, "context": "?"} for n, (c, r) in enumerate(zip("ab", "cd"))]
    path = write(tmp_path / name, entries)
    columns = ["context=Frage", "response=Antwort", "high_quality=gut"]
    assert load_pairs(path, columns) == [Pair("a", "c", 0), Pair("b", "d", 1)]
    told = 'context ("Frage") + response ("Antwort") + high_quality ("gut"); left out: "context"'
    assert capsys.readouterr().err == f"note: {path} is read as {told}\n"
    assert relabel(path, lambda pair: 1, columns) == [1, 1]
    assert load_pairs(path, columns) == [Pair("a", "c", 1), Pair("b", "d", 1)]
    assert [pair.context for pair in load_pairs(path, ["response=Antwort"])] == ["?", "?"]


def test_columns_of_csv_are_named_as_spreadsheets_show_them(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("Die Frage ;Antwort\na;b\n")
    assert load_pairs(tmp_path / "a.csv", ["context=die frage", "response=antwort"]) == [Pair("a", "b")]


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (["context"], '--columns must be KEY=NAME, such as context=Question, not "context"; the keys are completion, '),
        (["question=a"], "--columns must be KEY=NAME"),
        (["context="], "--columns must be KEY=NAME"),
        (["context=prompt", "context=completion"], "--columns gives one key or one name twice"),
        (["context=prompt", "response=prompt"], "--columns gives one key or one name twice"),
        (["context=Frage"], 'pair 1: there is no "Frage", which --columns names; it has "prompt", "completion"'),
    ],
)
def test_columns_that_cannot_be_meant_are_refused(tmp_path: Path, columns: list[str], complaint: str) -> None:
    (tmp_path / "pairs.json").write_text(TRL)
    with pytest.raises(UserError) as refused:
        load_pairs(tmp_path / "pairs.json", columns)
    assert complaint in str(refused.value)


def test_all_entries_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    rows = "".join(f"a{n},{'' if n % 3 else 'b'}\n" for n in range(24))
    (tmp_path / "pairs.csv").write_text(f"context,response\n{rows}")
    with pytest.raises(UserError) as refused:
        load_pairs(tmp_path / "pairs.csv")
    message = str(refused.value).replace(f"{tmp_path}/", "")
    assert message.startswith(
        'pairs.csv, row 3: "response" is empty; fill it in, or remove the entry; nor can be read: '
    )
    assert message.endswith(": row 4, row 6, row 7, row 9, row 10, row 12, row 13, row 15, row 16, row 18, 5 more")


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl", "my\npairs"])
def test_the_content_and_not_the_name_tells_an_array_from_jsonl(tmp_path: Path, name: str) -> None:
    smile = GOOD.replace("Where", r"\ud83d\ude42")
    for text in (f"\ufeff \n[{GOOD},{smile}]", f"\ufeff\n{GOOD}\n{smile}"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert load_pairs(tmp_path / name) == [Pair("Where is it?", "Here.", 1), Pair("🙂 is it?", "Here.", 1)]


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


def test_a_cell_with_a_lone_carriage_return_can_be_read_after_relabelling(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes(b'context,response,high_quality\n"a\rb",c,1\n')
    assert relabel(path, lambda pair: 0) == [0]
    assert load_pairs(path) == [Pair("a\rb", "c", 0)]


def second(old: str, new: str) -> str:
    """An array of two pairs; `old` is replaced in the second."""
    assert old in GOOD
    return f"[{GOOD},\n{GOOD.replace(old, new)}]"


USER, ASSISTANT = '{"role": "user", "content": "a"}', '{"role": "assistant", "content": "b"}'


def chat(*messages: str) -> str:
    """JSONL of two chats, the second with these messages."""
    return "\n".join(f'{{"messages": [{", ".join(turns)}]}}' for turns in [(USER, ASSISTANT), messages])


TRL = '{"prompt": "a", "completion": "b"}'
BAD_JSON: list[tuple[bytes | str, str]] = [
    ("\ufeff", "holds no pairs; name a file that holds some"),
    (GOOD.encode("utf-16"), "is not UTF-8 text (byte 0); save it as UTF-8"),
    ("\ufeffgrö".encode()[:-1], "is not UTF-8 text (byte 5)"),
    (f"[\n{GOOD}\n{GOOD}]", "is not JSON: line 3, column 1: "),
    (f"{GOOD}\n\n{GOOD[:-1]}\n", "is not JSON: line 3, column 67: "),
    ("a,b\nc,d", "; a file is a JSON array, or one JSON object a line, or CSV with a name that ends in .csv"),
    (f"{GOOD}\n{'[' * 100_000}", "line 2 is nested too deeply"),
    (second("1}", "1" * 5000 + "}"), "digits, so it cannot be pairs"),
    (f'[{GOOD}, "Where is it?"]', 'pair 2: must be an object, {"key": value, ...}, not "Where is it?"'),
    ("[{}]", '"context" is missing; it has no keys; the layouts, one for a whole file: context + response; prompt + '),
    (second(', "response": "Here."', ""), 'pair 2: the key "response" is missing; it has "context", "high_quality" '),
    (GOOD.replace("context", "contxt"), 'the key "context" is missing (is it "contxt", misspelt?); it has "'),
    (GOOD.replace("response", "responce"), '"response" is missing (is it "responce", misspelt?); it has '),
    (GOOD.replace("high_quality", "high_qualty"), 'unknown key "high_qualty" (is it "high_quality", misspelt?): rena'),
    (GOOD.replace("high_quality", "High-Quality"), 'unknown key "High-Quality" (is it "high_quality", misspelt?)'),
    (second("high_quality", "highquality"), 'pair 2: "high_quality" must be in all entries or in none'),
    ('{"instruction": "a", "inputs": "b", "output": "c"}', 'unknown key "inputs" (is it "input", misspelt?)'),
    ('{"message": "a", "reply": "b"}', 'the key "context" is missing; it has "message", "reply"; the layouts'),
    ('{"message": [], "id": "b"}', 'the key "messages" is missing (is it "message", misspelt?); it has'),
    ('{"instruction": "a", "context": "b", "response": "c"}', 'of several layouts, "instruction", "context", "respo'),
    (TRL.replace("}", ', "context": "c"}'), 'several layouts, "prompt", "completion", "context"; say which are '),
    ('{"text": "a b"}', 'pair 1: the key "context" is missing; it has "text"; split "text" into "prompt" and "comp'),
    (f"{GOOD}\n{TRL}", '"context" is missing; it has "prompt", "completion" where pair 1 has "context", "response", '),
    (second(', "high_quality": 1', ""), 'pair 2: "high_quality" must be in all entries or in none; it has "context", '),
    (f'{{"context": "a", "response": "b"}}\n{GOOD}', 'pair 2: "high_quality" must be in all entries or in none'),
    (second("}", ', "context": "b"}'), 'pair 2: the key "context" is there twice; keep one of them'),
    ("{" + ", ".join(f'"k{n * 10**999}": 5' for n in range(999)) + "}", '"context" is missing; it has "k0", "k100'),
    (second("Here.", " \\n"), 'pair 2: "response" is empty; fill it in, or remove the entry'),
    (second('"Here."', '{"a": "b"}'), 'pair 2: "response" must be text, not an object'),
    (second("Here.", r"Here \ud83d"), 'pair 2: "response" holds half of a character (a lone surrogate); remove it'),
    (second("1}", "2}"), 'pair 2: "high_quality" must be 0 or 1, not 2'),
    (second("1}", "true}"), 'pair 2: "high_quality" must be 0 or 1, not true'),
    (second("1}", "[" * 500 + "]" * 500 + "}"), 'pair 2: "high_quality" must be 0 or 1, not a list'),
    ('{"instruction": "a", "input": null, "output": "b"}', 'pair 1: "input" must be text, not null'),
    ('{"instruction": " ", "input": "a", "output": "b"}', 'pair 1: "instruction" is empty'),
    (TRL.replace('"a"', f"[{USER}]"), '"completion" must be a list of objects {"role", "content"}, in a JSON or '),
    (second('"Here."', f"[{USER}]"), 'pair 2: "response" must be text, not a list; a conversation goes into "me'),
    (chat(USER, '{"role": "tool", "content": "a"}', ASSISTANT), 'message 2: "tool" belongs to a call of a tool, which'),
    (chat(USER, '{"role": "assistant", "content": null, "tool_calls": [{}]}'), '"tool_calls" belongs to a call of a t'),
    ('{"conversations": [{"from": "observation", "value": "a"}]}', '"observation" belongs to a call of a tool'),
    ('{"messages": [{"function_call": {"name": "f"}, "role": "assistant"}]}', '"function_call" belongs to a call'),
    (f'{{"messages": [{USER}, {ASSISTANT}], "tools": [{{}}]}}', 'pair 1: "tools" belongs to a call of a tool'),
    ('{"messages": "a"}', '"messages" must be a list of objects {"role", "content"}, in a JSON or JSONL file, not "a"'),
    (chat(ASSISTANT), 'pair 2: "messages" must be one message or more'),
    (chat(USER, ASSISTANT, USER), "a last one from the assistant"),
    (chat('"a"', ASSISTANT), "pair 2, message 1: must be an object, "),
    (chat(USER, '{"role": "assistant"}'), 'message 2: the key "content" is missing; it has "role" and must have role'),
    (chat('{"role": ["user"], "content": "a"}', ASSISTANT), "must be one of system, user, assistant, not a list"),
    (chat('{"role": "user", "content": [{"type": "text"}]}', ASSISTANT), '"content" must be text, not a list$'),
]  # fmt: skip

GOOD_CSV = "context,response,high_quality\nWhere is it?,Here.,1\n"
BAD_CSV: list[tuple[bytes | str, str]] = [
    ("context,response\n\n", "holds no pairs"),
    (GOOD_CSV + "\r\na,b,1,\n", "row 4: has 4 cells, and the header has 3"),
    (GOOD_CSV + "a,b\nc,d,1\ne\n", "row 3: has 2 cells, and the header has 3; others: row 5 (1); put"),
    (
        "context;response\na\n",
        'row 2: has 1 cells, and the header has 2; put "quotes" around a cell that holds semicolons',
    ),
    ("context,response,response\na,b,c\n", 'the header is "context", "response", "response"'),
    ("context,response,\na,b,c\n", 'the header is "context", "response", ""'),
    ("Where is it?,Here.\nWhere?,There.\n", 'row 1: the key "context" is missing; it has "Where is it?", "Here."; the'),
    (
        "context,response,high_qualty\na,b,0\nc,d,0\n",
        'row 1: unknown key "high_qualty" (is it "high_quality", misspelt?)',
    ),
    ("message,reply\na,b\n", 'row 1: the key "context" is missing; it has "message", "reply"'),
    ("\ncontext|response\na|b\n", 'row 2: the key "context" is missing; it has "context|response"; '),
    ("messages\na\n", "in a JSON or JSONL file"),
    (GOOD_CSV + "a,b,1.0\n", 'row 3: "high_quality" must be 0 or 1, not "1.0"'),
    (GOOD_CSV + "a, ,0\n", 'row 3: "response" is empty'),
    (GOOD_CSV + 'a,"b"c,0\n', "is not CSV: line 3: "),
    (GOOD_CSV + 'a,"b,0\n', "; look at its quotation marks"),
    (GOOD_CSV + "a,b\0,0\n", "holds a NUL character, so it is not CSV; save it as CSV in UTF-8"),
]


@pytest.mark.parametrize(
    ("name", "contents", "complaint"),
    [("pairs.json", *bad) for bad in BAD_JSON] + [("pairs.csv", *bad) for bad in BAD_CSV],
    ids=range(len(BAD_JSON + BAD_CSV)),
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, name: str, contents: bytes | str, complaint: str) -> None:
    path, data = tmp_path / name, contents if isinstance(contents, bytes) else contents.encode()
    path.write_bytes(data)
    with pytest.raises(UserError) as refused:
        load_pairs(path)
    message = str(refused.value)
    assert message.startswith(str(path)) and complaint in f"{message}$"
    assert len(message.splitlines()) == 1 and len(message) < len(str(path)) + 600
    with pytest.raises(UserError):
        relabel(path, lambda pair: 1)
    assert path.read_bytes() == data


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
    rng, path, refused = Random(0), tmp_path / name, 0
    for _ in range(150):
        damaged = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            debris = rng.choice([b"", b'"', b"[", b"{", b",", b"\0", b"\n", b"\\u", b"\xff"])
            damaged[at : at + rng.randint(0, 3)] = debris
        path.write_bytes(damaged)
        try:
            assert all(pair.context.strip() and pair.response.strip() for pair in load_pairs(path))
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 50
