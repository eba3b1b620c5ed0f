"""Good files of pairs, in every layout. Bad ones are in test_data_battery."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from part4_sft.dataset import Pair, save_pairs
from part4_sft.formats import load_pairs

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
    "Alpaca, empty input": [{"instruction": c, "input": "", "output": r} for c, r in zip(CONTEXTS, RESPONSES)],
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


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_is_read_as_spreadsheets_leave_it(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "pairs.csv"
    rows = (" Context ", "RESPONSE", "High quality"), ("a", "b,;", "1"), (" ", "", ""), (), ("c", "d", "0")
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    pairs = load_pairs(path)
    assert pairs == [Pair("a", "b,;", 1), Pair("c", "d", 0)]
    assert [pair.place for pair in pairs] == [f"{path}, row 2", f"{path}, row 5"]


def test_what_save_pairs_writes_comes_back(tmp_path: Path) -> None:
    pairs = [Pair('Größe "L"\nfehlt', "Entschuldigung 🙂"), Pair("Where is it?", "Dunno.", 0)]
    save_pairs(tmp_path / "pairs.json", pairs)
    assert load_pairs(tmp_path / "pairs.json") == pairs


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


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl", "pairs.txt", "pairs"])
@pytest.mark.parametrize(("before", "between", "after"), [("\ufeff \n[", ",", "]"), ("\ufeff\n", "\n", "")])
def test_the_content_and_not_the_name_tells_an_array_from_jsonl(
    tmp_path: Path, name: str, before: str, between: str, after: str
) -> None:
    path = tmp_path / name
    path.write_text(before + between.join([GOOD, GOOD]) + after, encoding="utf-8")
    assert load_pairs(path) == [Pair("Where is it?", "Here.", 1)] * 2


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_may_end_its_lines_in_any_way_and_those_inside_of_quotes_are_kept(tmp_path: Path, end: str) -> None:
    path = tmp_path / "pairs.csv"
    path.write_bytes('context,response|"a|b","c ""d"""||e,f|'.replace("|", end).encode())
    assert load_pairs(path) == [Pair(f"a{end}b", 'c "d"'), Pair("e", "f")]
