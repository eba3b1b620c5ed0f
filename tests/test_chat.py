"""Both models reply to messages, for a person in a terminal and for programs."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyte
import pytest

from part3_pretrain.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from part3_pretrain.model import Transformer
from part3_pretrain.retail.invention import invented
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.printable import printable
from part4_sft import chat, hand_over
from part4_sft.terminal.conversation import Reply, load_models, read_messages, show_side_by_side
from part4_sft.terminal.screen import columns_of
from tests.conftest import Command, FinishedRun, Terminal, assert_refused

REPLY_KEYS = ["text", "draft", "stops_by_itself", "handed_over", "invented"]
CONTEXT = "The tiered planter has a large crack (order 48213)."
Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(run_main: Command, finished_run: FinishedRun) -> Ask:
    """Both models of a run reply to a message, as JSON; replies have as many tokens as in the run."""

    def call(context: str, *options: object) -> dict[str, Any]:
        fixed = ["--model", finished_run.checkpoint, "--context", context, "--json", "--max-new-tokens", 12]
        status, printed, complained = run_main(chat.main, *fixed, *options)
        assert (status, complained) == (0, "")
        return json.loads(printed)

    return call


def test_models_reply_as_in_the_evaluation(ask: Ask, finished_run: FinishedRun) -> None:
    for entry in finished_run.read("replies.json")[:2]:
        said = ask(entry["context"], "--hand-over", 0)
        assert said.pop("context") == entry["context"]
        for name, reply in said.items():
            assert reply.items() >= entry["samples"][name][0].items()
            assert (reply["draft"], reply["handed_over"]) == (reply["text"], False)
            assert reply["invented"] == invented(entry["context"], reply["text"])
        assert list(said["sft"]) == [*REPLY_KEYS, "rating", "faults"]
    assert list(ask("Xyzzy qwertz")["sft"]) == REPLY_KEYS  # is not of the retail world


def test_what_the_fine_tuned_model_is_not_sure_of_is_handed_over_unless_the_temperature_is_0(ask: Ask) -> None:
    draft = ask(CONTEXT, "--hand-over", 0)["sft"]["text"]
    unsure = ask(CONTEXT, "--hand-over", 1, "--temperature", 5)
    assert unsure["sft"]["text"] == hand_over.REPLY != unsure["sft"]["draft"]
    assert unsure["sft"]["handed_over"] and not unsure["pretrained"]["handed_over"]
    assert list(unsure["sft"]) == REPLY_KEYS  # the rubric rates a model's own words
    assert unsure["sft"]["draft"] == ask(CONTEXT, "--hand-over", 0, "--temperature", 5)["sft"]["text"] != draft
    assert not ask(CONTEXT, "--temperature", 0)["sft"]["handed_over"]


def test_options_of_sampling_count(ask: Ask) -> None:
    def reply(*options: object) -> str:
        return str(ask(CONTEXT, *options)["sft"]["text"])

    assert reply() == reply() and len({reply(), reply("--seed", 1), reply("--temperature", 5)}) == 3
    assert reply("--temperature", 0) == reply("--top-k", 1) == reply("--top-p", 0.001) != reply()
    assert reply("--max-new-tokens", 5) != reply() and reply().startswith(reply("--max-new-tokens", 5))


def test_every_line_of_a_program_is_answered(
    run_main: Command, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", finished_run.checkpoint, "--max-new-tokens", 12]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{CONTEXT}\n \n How are you? é\n{CONTEXT}\n"))
    status, printed, _ = run_main(chat.main, *options, "--json")
    first, other, again = [json.loads(line) for line in printed.splitlines()]
    assert (status, first["context"], other["context"]) == (0, CONTEXT, " How are you? é") and "é" in printed
    assert first["sft"]["text"] != again["sft"]["text"]  # asked once more, it draws other words

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{CONTEXT}\nHello\n"))
    status, printed, _ = run_main(chat.main, *options)
    asked, pretrained, sft, blank, hello, *_, end = printed.split("\n")
    assert (status, asked, blank, hello, end) == (0, f"customer: {CONTEXT}", "", "customer: Hello", "")
    rated = f"(rated {first['sft']['rating']:.1f}; {'; '.join(first['sft']['faults'])})"
    assert sft == f"fine-tuned: {printable(first['sft']['text'])} {rated}" and pretrained.startswith("pretrained: ")


def test_a_model_of_another_shop_is_not_judged_by_ours(
    run_main: Command, finished_run: FinishedRun, tmp_path: Path
) -> None:
    checkpoint, path = load_checkpoint(finished_run.checkpoint), tmp_path / "other.pt"
    del checkpoint.made_by["results"]["sft"]["rating"]
    save_checkpoint(path, checkpoint)
    options = ["--model", path, "--max-new-tokens", 12, "--context", CONTEXT]
    _, printed, _ = run_main(chat.main, *options)
    assert "(rated" not in printed and "(invented" not in printed
    _, printed, _ = run_main(chat.main, *options, "--json")
    reply = json.loads(printed)["sft"]
    assert reply["invented"] == [] and not {"rating", "faults"} & reply.keys()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_is_piped_in_is_utf_8_in_every_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(data: bytes) -> list[str]:
        stdin = io.TextIOWrapper(io.BytesIO(data), encoding, errors="surrogateescape", newline="\n")
        monkeypatch.setattr("sys.stdin", stdin)
        return list(read_messages())

    assert read("\ufeffgrößer\r\n\r\n x\n".encode()) == ["größer", " x"]
    with pytest.raises(UserError, match=r"^the input is not utf-8 text; convert it with iconv$"):
        read("größer\n".encode("latin-1"))


def test_json_holds_the_same_text_and_cannot_steer_the_terminal(
    run_main: Command, finished_run: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'Größe "\x1b[2J \x7f \x9b2J \u202e'
    monkeypatch.setattr("sys.stdin", io.StringIO(text + "\n"))
    _, printed, _ = run_main(chat.main, "--model", finished_run.checkpoint, "--max-new-tokens", 12, "--json")
    assert json.loads(printed)["context"] == text
    assert "Größe" in printed and not set("\x1b\x7f\x9b\u202e") & set(printed)


def test_what_models_read_is_that_of_the_fine_tuning_unless_it_is_named(
    tiny_checkpoint: Path, tiny_model: Transformer, tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "sft_model.pt"
    settings = {"prompt_template": r"Question: {context}\nAnswer:", "max_length": 40}
    save_checkpoint(path, Checkpoint(tiny_model, tokenizer, {"from": str(tiny_checkpoint), "settings": settings}))
    for sft, base, named, template, max_length in [
        (path, None, None, "Question: {context}\nAnswer:", 40),
        (path, path, "Q: {context}", "Q: {context}", 40),
        (tiny_checkpoint, path, None, "Customer: {context}\nAgent:", 512),  # which tells of no settings
    ]:
        for _, encoder in load_models(sft, base, named, 20, "cpu")[0].values():
            assert (encoder.template, encoder.max_length) == (template, max_length)
    save_checkpoint(path, Checkpoint(tiny_model, tokenizer, {"from": "a converted folder"}))
    with pytest.raises(UserError, match="does not tell what it was fine-tuned from; name that with --base"):
        load_models(path, None, None, 20, "cpu")


def test_mistakes_end_in_one_line(
    run_main: Command, finished_run: FinishedRun, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing, sft = tmp_path / "missing.pt", finished_run.checkpoint
    for options, complaint in {
        ("--model", missing): f"there is no {missing}; python -m part4_sft.sft makes it",
        ("--model", tiny_checkpoint): "does not tell what it was fine-tuned from; name that with --base",
        ("--model", sft, "--base", missing): f"there is no file {missing}",
        ("--model", sft, "--prompt-template", "nothing"): "{context} in it, once",
        ("--model", sft, "--max-new-tokens", 1000): "--max-new-tokens leaves the model",
        ("--model", sft, "--temperature", -1): "--temperature must be",
        ("--model", sft, "--context", " "): "--context must be a text that is not blank",
    }.items():
        assert_refused(run_main(chat.main, "--context", "Hello", *options), complaint)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("größer\n".encode("latin-1")), encoding="utf-8"))
    assert_refused(run_main(chat.main, "--model", sft), "the input is not utf-8 text; convert it with iconv")


def test_replies_grow_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"word{number}" for number in range(200)]  # in a column of 37, more lines than the screen has
    growing = [Reply(" ".join(words[:count]), " ".join(words[:count])) for count in range(0, 201, 20)]
    show_side_by_side(CONTEXT, {"pretrained": iter(growing), "sft": iter([Reply("I am sorry.", "I am sorry.")])})
    frames = capsys.readouterr().out.split("\r")
    assert len(frames) == 1 + len(growing) + 1  # the heading, the replies as they grow, and with their ratings
    screen = pyte.HistoryScreen(80, 24, history=1000)
    screen.set_mode(pyte.modes.LNM)  # a new line begins at the left, as terminals make it
    pyte.Stream(screen).feed("\r".join(frames[:3]))
    assert [line.rstrip() for line in screen.display[:2]] == [
        f"{'pretrained':40}fine-tuned",
        f"{'word0 word1 word2 word3 word4 word5':40}I am sorry.",
    ]
    pyte.Stream(screen).feed("\r" + "\r".join(frames[3:]))
    lines = ["".join(line[column].data for column in range(80)) for line in screen.history.top] + screen.display
    left, right = "\n".join(line[:40] for line in lines), " ".join(line[40:].rstrip() for line in lines)
    assert re.findall(r"word\d+", left) == words and left.startswith("pretrained")  # nothing is there twice
    assert left.count("(rated 1.0;") == 1 and right.startswith("fine-tuned I am sorry. (rated 1.6; does not name")


def test_columns_stand_where_they_should_beside_letters_that_are_wide(capsys: pytest.CaptureFixture[str]) -> None:
    replies = [Reply(text, text, True) for text in ("申し訳ございません。" * 6, "I am sorry.")]
    show_side_by_side(CONTEXT, {"pretrained": iter(replies[:1]), "sft": iter(replies[1:])})
    rows = capsys.readouterr().out.rpartition("\x1b[J")[2].splitlines()
    assert max(map(columns_of, rows)) < 80 and rows[1].startswith("ん。申し訳ございません。")
    assert columns_of(rows[0].partition("I am sorry.")[0]) == 40


def test_a_base_that_is_another_than_in_the_fine_tuning_is_told(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, path = load_checkpoint(finished_run.checkpoint), tmp_path / "sft.pt"
    checkpoint.made_by["digest"] = "of another"
    save_checkpoint(path, checkpoint)
    for model in (finished_run.checkpoint, path):
        load_models(model, None, None, 12, "cpu")
        assert ("has been changed since" in capsys.readouterr().err) == (model == path)


@pytest.mark.slow
def test_lines_can_be_edited_and_recalled(
    terminal: Callable[..., Terminal], finished_run: FinishedRun, tmp_path: Path
) -> None:
    history = tmp_path / ".part4_sft_history"
    history.write_text("What I asked yesterday\n")
    options = ["--model", finished_run.checkpoint, "--max-new-tokens", 60, "--temperature", 0]
    talking = terminal("part4_sft.chat", *options, HOME=str(tmp_path))
    talking.wait_for("\n>")
    talking.press("\x1b[A")  # the line before
    talking.wait_for("> What I asked yesterday")
    talking.press("\x15Hallo\x7f\x7f\x7f\x7fello\r")  # Ctrl-U deletes the line
    talking.wait_for("fine-tuned")
    talking.wait_for("\n>\n")
    assert f"> Hello\n{'pretrained':40}fine-tuned\n" in talking.text
    talking.press("x\x04\x15\x04")  # Ctrl-D does nothing in a line; it is deleted, then Ctrl-D ends
    assert talking.end() == 0
    assert history.read_text() == "What I asked yesterday\nHello\n"
