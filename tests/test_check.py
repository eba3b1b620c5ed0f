"""`python -m part4_sft.check`: every fault that was planted is found in its row, and nothing in rows without any."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from part3_pretrain.checkpoint import save_checkpoint
from part3_pretrain.runtime.printable import STEERING
from part4_sft import check
from part4_sft.data_files import personal
from part4_sft.data_files.findings import fold
from part4_sft.dataset import Pair, save_pairs
from part4_sft.encoding import PairEncoder
from part4_sft.terminal.screen import columns_of
from tests.chat_templates import FAMILIES
from tests.conftest import ROOT, Command, assert_refused
from tests.test_conversations import checkpoint_of

Rows = list[dict[str, str]]
Report = dict[str, Any]

VERBS = ["cancel", "change", "track", "return", "open", "close", "insure", "pay", "follow", "rate"]
KINDS = ["red", "small", "wooden", "latest", "second", "broken", "spare", "monthly", "quiet", "foreign"]
THINGS = ["order", "account", "parcel", "invoice", "chair", "lamp", "voucher", "address", "subscription", "refund"]
DECOYS = [  # what no finding should be: orders, dates, amounts, markup, and words of closing formulas
    "Your order 4111111111111112 is on its way, tracking 1Z999AA10123456784.",
    "It was sent on 05-03-2021 at 12:30, or 2024-05-03, for $1,299.00 and 10 000 000 points.",
    "Order no. 114-1234567-1234567, invoice 0012-345678 and order #555-123-4567 are the same.",
    "See [our page](https://shop.example/a_b), <b>in bold</b>, he said [sic], size XXL {1, 2} and [1].",
    "Write to us as @shop on the web, logo@2x.png; the code is 02110-1301, 3.14159265358979.",
    "Thank you, Anna!",
    "We remain with the best of wishes for you, with regards to the team, and say cheers to that.",
    "A fee of $5 is 50%daily, for $AAPL too; __init__ is Python, and -- Anna says -- that is bold: __so__.",
    "The IMEI 490154203237518 and item 0171 2345678 belong to it.",
]


def clean_rows() -> Rows:
    """1,000 rows as in Bitext's file, no two of them alike."""
    rows = []
    for number, (verb, kind, thing) in enumerate(product(VERBS, KINDS, THINGS)):
        decoy = DECOYS[number % len(DECOYS)]
        rows.append(
            {
                "flags": "BQ",
                "instruction": f"How can I {verb} the {kind} {thing}, number {number + 10000}?",
                "category": thing.upper(),
                "intent": f"{verb}_{thing}",
                "response": f"To {verb} the {kind} {thing}, open your account and choose {thing}. {decoy}",
                "id": str(number),
            }
        )
    return rows


def plant(rows: Rows, share: float = 0.03) -> dict[str, set[int]]:
    """Put each kind of fault into so many rows; return the rows of each as a spreadsheet counts them."""
    rng = Random(0)
    free = rng.sample(range(len(rows)), len(rows))
    planted: dict[str, set[int]] = {}

    def rows_for(key: str) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
        """Yield a row to spoil, and a clean one that stands before it."""
        for _ in range(round(share * len(rows))):
            earlier, later = sorted((free.pop(), free.pop()))
            planted.setdefault(key, set()).add(later + 2)
            if key == "contradictions":
                planted[key].add(earlier + 2)
            yield rows[later], rows[earlier]

    for later, earlier in rows_for("duplicates"):
        later |= {key: earlier[key] for key in ("instruction", "response")}
    for later, earlier in rows_for("near_duplicates"):
        later["instruction"] = earlier["instruction"].upper().replace("?", " ...!").replace("NUMBER 1", "NUMBER 77")
        later["response"] = earlier["response"].replace(",", "").replace(".", "!")
    for number, (later, earlier) in enumerate(rows_for("contradictions")):
        later["instruction"] = earlier["instruction"].lower().replace("?", "")
        if number % 2:
            later["response"] = "That cannot be done, " + later["response"]
        else:  # the same but for a number, so that it is a near duplicate as well
            later["response"], earlier["response"] = (f"You have {days} days to do so." for days in (30, 14))
    planted["near_duplicates"] |= {place + 2 for place, row in enumerate(rows) if "30 days" in row["response"]}
    for key, texts in FOUND.items():
        for number, (later, _) in enumerate(rows_for(key)):
            column = "response" if key == "signatures" or number % 3 else "instruction"
            later[column] += f" {texts[number % len(texts)]}"
    for later, _ in rows_for("short_responses"):
        later["response"] = "Yes."
    return planted


FOUND: dict[str, list[str]] = {
    "placeholders": [
        *(
            "about {{Order Number}} now",
            "Dear [NAME],",
            "Dear [Your Name],",
            "<your name>",
            "<CUSTOMER_NAME>",
            "XXX-XXX",
        ),
        *(
            "{customer_name}",
            "[insert date here]",
            "%ORDER_ID%",
            "<Order ID>",
            "${orderNumber}",
            "[Bestellnummer]",
            "xxxx",
            "by TBD",
            "Hi ____,",
            "Dear {0},",
            "for %(date)s",
            "<<PLATE>>",
            "#FIRST_NAME#",
            "TODO: add the price",
            "Dear %s,",
            "$name",
            "__CUSTOMER__",
        ),
    ],
    "email_addresses": [
        *("anna@example.com", "a.b+c@mail.example.co.uk.", "<x_y@firma.de>", "mailto:info@shop.io", "jürgen@müller.de"),
        *("anna (at) example.com", "a.b [at] mail [dot] example [dot] com"),
    ],
    "phone_numbers": [
        *("(555) 123-4567", "+1 555 123 4567", "+49 (0) 30 1234567", "1-800-555-0199", "555.123.4567", "030 1234567"),
        *(
            "call us at 5551234567.",
            "phone: 555-1234",
            "+33 1 23 45 67 89",
            "my number is 07700900123",
            "0800 123 4567",
            "1 800 555 0199",
            "01 23 45 67 89",
        ),
    ],
    "card_numbers": [
        *(
            "4111 1111 1111 1111",
            "4242424242424242",
            "5500-0000-0000-0004",
            "3782 822463 10005",
            "6011 1111 1111 1117 123",
            "4111.1111.1111.1111",
            "4111\xa01111\xa01111\xa01111",
            "6212345678901232",
            "6212345678901234569",
        ),
    ],
    "signatures": [
        *("Best regards, Anna", "\n\nKind regards,\nThe Support Team", "Sincerely, John Smith", "\n-- \nAnna"),
        *("Cheers, Tom", "\nMit freundlichen Grüßen\nIhr Team", "\nThanks,\nAnna", "\nYour ACME Team", "Kind regards"),
        "Yours sincerely, the ACME crew",
        *("BR, Lena", "It is on its way. \u2014 Anna", "Rgds, the Support Team"),
        "Warm regards,\nAnna Miller\nCustomer Support\nACME Inc.",
    ],
}
NOT_LOOKED_FOR = {"too_long", "cut", "shared_with_test"}  # without a model, and without test data


def write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def report(run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Report]:
    """What the command says in JSON, started where there is no checkpoint."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Report:
        status, printed, told = run_main(check.main, *arguments, "--json")
        assert status == 0 and not told and printed.count("\n") == 1
        return json.loads(printed)

    return call


def test_every_planted_fault_is_found_in_its_row_and_nothing_elsewhere(
    report: Callable[..., Report], tmp_path: Path
) -> None:
    rows = clean_rows()
    planted = plant(rows)
    found = report(write_csv(tmp_path / "pairs.csv", rows))
    assert (found["layout"], found["pairs"]) == ("instruction + response", 1000)
    assert found["left_out"] == ["flags", "category", "intent", "id"]
    assert set(planted) == {*FOUND, "duplicates", "near_duplicates", "contradictions", "short_responses"}
    for key, places in planted.items():
        assert found[key] == sorted(places), key
    groups = found["groups"]
    assert {later for _, *others in groups["duplicates"] for later in others} == planted["duplicates"]
    assert sorted(row for rows in groups["contradictions"] for row in rows) == found["contradictions"]
    assert all(rows[first - 2]["response"] == rows[later - 2]["response"] for first, later in groups["duplicates"])
    assert not found["unreadable"] and not NOT_LOOKED_FOR & {*found}


@pytest.mark.parametrize(("broken", "found_rows"), [(3, [1, 2, 3]), (10, [])])
def test_responses_that_break_off_are_found_unless_many_do(
    broken: int, found_rows: list[int], report: Callable[..., Report], tmp_path: Path
) -> None:
    ends = [" and then we", " because,", " (see"] * 4
    responses = [f"Number {n} comes{ends[n] if n < broken else ' tomorrow.'}" for n in range(40)]
    save_pairs(tmp_path / "pairs.json", [Pair(f"question {n}?", text) for n, text in enumerate(responses)])
    assert report(tmp_path / "pairs.json")["unfinished_responses"] == found_rows


def test_clean_rows_have_no_finding(report: Callable[..., Report], tmp_path: Path) -> None:
    found = report(write_csv(tmp_path / "pairs.csv", clean_rows()))
    assert not any(found[key] for key in (*FOUND, "unreadable", "duplicates", "near_duplicates", "contradictions"))


def test_retail_pairs_hold_no_personal_data_and_what_is_alike_in_them_is(
    report: Callable[..., Report], tmp_path: Path, made: dict[str, list[Pair]]
) -> None:
    pairs = made["sft_dataset"]
    save_pairs(tmp_path / "pairs.json", pairs)
    found = report(tmp_path / "pairs.json")
    assert found["high_quality"] == {"1": 500, "0": 4500}
    assert not any(found[key] for key in (*FOUND, "unreadable", "duplicates"))
    assert len(found["near_duplicates"]) < 0.01 * len(pairs) and len(found["contradictions"]) < 0.03 * len(pairs)
    by_context: dict[str, set[str]] = {}
    for pair in pairs:
        by_context.setdefault(fold(pair.context), set()).add(fold(pair.response))
    assert {fold(pairs[row - 1].context) for row in found["contradictions"]} == {
        context for context, responses in by_context.items() if len(responses) > 1
    }


MISSED = {  # by design, or for want of a rule that would not take other texts for one
    "placeholders": ["[XX]", "N/A", "???", "(your name here)", "Dear Mr. X,"],
    "email_addresses": ["anna at example dot com", "anna@localhost"],
    "phone_numbers": ["1-800-FLOWERS", "5551234567"],
    "card_numbers": ["4111 1111 1111", "4111111111111112"],
    "signatures": ["ok. - Anna", "Love, Anna", "Have a nice day!\nAnna from ACME"],
}


@pytest.mark.parametrize("key", FOUND)
def test_each_form_alone_is_found_and_decoys_are_not(key: str) -> None:
    find = getattr(personal, key)
    assert [text for text in FOUND[key] if not list(find(text))] == []
    assert [text for text in (*DECOYS, *MISSED[key]) if list(find(text))] == []


@pytest.mark.parametrize("text", ["a" * 300_000, "{[<%" * 50_000, "1 " * 100_000, "+1" * 100_000, "a.a@" * 50_000])
def test_no_text_takes_long(text: str) -> None:  # it would be minutes, were any pattern not linear
    for key in FOUND:
        list(getattr(personal, key)(text))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
def test_any_text_makes_a_page_of_80_columns(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    lines = [json.dumps({"context": f"a {context}", "response": f"b {response}"}) for context, response in texts]
    path.write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda line, **_: printed.append(line))
        patch.setattr(sys, "argv", ["check", str(path), "--max-length", "64"])
        patch.chdir(path.parent)
        check.main()
    assert all(columns_of(line) <= 80 and not STEERING.search(line) for line in printed)


def test_the_page_says_which_rows_shows_one_and_what_to_do(
    run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = clean_rows()
    planted = plant(rows)
    rows[0]["response"] += "\x1b[2J" + "w " * 10_000
    write_csv(Path("pairs.csv"), rows)
    status, page, told = run_main(check.main, "pairs.csv")
    lines = page.splitlines()
    assert (status, told) == (0, "")
    assert max(map(columns_of, lines)) <= 80 and len(lines) < 90 and "\x1b" not in page
    assert lines[0] == "pairs.csv: 1,000 pairs, read as instruction + response"
    assert lines[1] == 'left out: "flags", "category", "intent", "id"'
    assert "  read   | Customer: How can I cancel the red order, number 10000?\\nAgent:" in lines
    assert "Rows are counted as in a spreadsheet: the header is row 1." in lines
    first_rows = ", ".join(map(str, sorted(planted["placeholders"])[:10]))
    place = lines.index("Placeholders: 30 (nobody has filled them in)")
    assert lines[place + 1].startswith("  rows ") and " and 20 more" in " ".join(lines[place + 1 : place + 3])
    assert first_rows in " ".join(line.strip() for line in lines[place + 1 : place + 3])
    assert "Fill them in" in "".join(lines[place : place + 5])


def test_a_file_that_cannot_train_is_shown_as_far_as_it_can_be_read(
    run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = clean_rows()[:20]
    rows[3]["response"], rows[8]["response"] = "", " "
    outcome = run_main(check.main, write_csv(tmp_path / "pairs.csv", rows), "--json")
    assert_refused(outcome, 'row 5: "response" is empty; fill it in, or remove the entry; nor can be read: row 10')
    found = json.loads(outcome[1])
    assert (found["unreadable"], found["pairs"]) == ([5, 10], 18)


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ("", "holds no pairs"),
        ("[]", "holds no pairs"),
        ('[{"context": "", "response": "a"}]', 'pair 1: "context" is empty'),
        ('{"question": "a"}', "or name the columns: --columns context=NAME response=NAME"),
        ("\udcff", "is not UTF-8 text"),
    ],
)
def test_what_is_no_file_of_pairs_ends_in_one_line(
    run_main: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: str, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.json").write_text(contents, errors="surrogateescape")
    for more in ([], ["--json"]):
        outcome = run_main(check.main, "pairs.json", *more)
        assert_refused(outcome, complaint)
        assert outcome[1] == ""


def test_columns_and_contexts_that_the_test_data_have_too(
    report: Callable[..., Report], tmp_path: Path, run_main: Command
) -> None:
    def theirs(name: str, contexts: list[str]) -> Path:
        (tmp_path / name).write_text(json.dumps([{"Frage": text, "Antwort": f"To {text}"} for text in contexts]))
        return tmp_path / name

    file, test = theirs("a.json", ["Where is it?", "When?", "Why?"]), theirs("b.json", ["Who?", "WHERE, is it?", "why"])
    found = report(file, "--columns", "context=Frage", "response=Antwort", "--test-data", test)
    assert found["layout"] == 'context ("Frage") + response ("Antwort")'
    assert found["shared_with_test"] == [1, 3]


def test_tokens_are_those_of_the_training(
    report: Callable[..., Report],
    run_main: Command,
    tmp_path: Path,
    tiny_checkpoint: Path,
    encoder: PairEncoder,
    made: dict[str, list[Pair]],
) -> None:
    pairs = [*made["sft_dataset"][:20], Pair("Why? " * 300, "So."), Pair("Why?", "So. " * 300)]
    save_pairs(tmp_path / "pairs.json", pairs)
    found = report(tmp_path / "pairs.json", "--model", tiny_checkpoint, "--max-length", 300)
    lengths = [len(replace(encoder, max_length=4000).encode(pair).ids) for pair in pairs]
    assert (found["cut"], found["too_long"]) == ([21], [22])
    assert found["lengths"]["unit"] == "tokens" and found["lengths"]["longest"] == max(lengths)
    assert found["lengths"]["at_most"]["128"] == sum(64 < length <= 128 for length in lengths)
    assert found["first_pair"] == [
        {"learnt": False, "text": f"Customer: {pairs[0].context}\nAgent:"},
        {"learnt": True, "text": f" {pairs[0].response}<EOS>"},
    ]
    _, page, _ = run_main(
        check.main, tmp_path / "pairs.json", "--model", tiny_checkpoint, "--prompt-template", "{context}:"
    )
    assert (
        f"as {tiny_checkpoint} reads it:" in page.replace("\n", " ") and "  read   | " + pairs[0].context[:40] in page
    )


def test_a_conversation_is_shown_as_the_models_own_template_has_it(
    report: Callable[..., Report], run_main: Command, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    save_checkpoint(tmp_path / "chat.pt", checkpoint_of(FAMILIES["chatml"], tokenizer))
    said = [("system", "s"), ("human", "u <|im_end|>"), ("gpt", "a"), ("human", "u"), ("gpt", "b")]
    entry = {"conversations": [{"from": role, "value": value} for role, value in said]}
    (tmp_path / "chats.json").write_text(json.dumps([entry]))
    found = report(tmp_path / "chats.json", "--model", tmp_path / "chat.pt")
    assert [(run["learnt"], run["text"]) for run in found["first_pair"]] == [
        (False, "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu <|im_end|><|im_end|>\n<|im_start|>assistant\n"),
        (True, "a<|im_end|>"),
        (False, "\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"),
        (True, "b<|im_end|>"),
    ]
    _, page, _ = run_main(check.main, tmp_path / "chats.json", "--model", tmp_path / "chat.pt")
    assert "  learnt | a<|im_end|>" in page.splitlines()

    own = checkpoint_of(FAMILIES["chatml"], tokenizer)
    source = (
        FAMILIES["chatml"].source + "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    )
    settings = {**own.hugging_face, "chat_template.jinja": source}
    save_checkpoint(tmp_path / "refusing.pt", replace(own, hugging_face=settings))
    outcome = run_main(check.main, tmp_path / "chats.json", "--model", tmp_path / "refusing.pt")
    assert_refused(outcome, "pair 1: the chat template fails: no system")
    assert "read as conversations" in outcome[1]


def test_without_a_model_torch_is_not_imported_and_lengths_are_in_words(tmp_path: Path) -> None:
    save_pairs(tmp_path / "pairs.json", [Pair("Where is it?", "It is here.")])
    code = "import sys; from part4_sft import check; check.main(); assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "pairs.json", "--prompt-template", "{context} >"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "Words a pair: 6 (median), at most 6" in done.stdout and "--model counts in tokens" in done.stdout
    assert "  read   | Where is it? >\n  learnt |  It is here.\n" in done.stdout
