"""A model's own chat template: found in its settings, and rendered in a process that bounds its time and memory."""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

from part3_pretrain.huggingface.config import Settings
from part3_pretrain.runtime.cli import UserError
from part4_sft.dataset import Turns

OTHERWISE = "use --chat-template none"  # with a --prompt-template or without


class Rendered(NamedTuple):
    """A text, and where in it what each `{% generation %}` of the template encloses begins and ends."""

    text: str
    generations: list[tuple[int, int]]


@dataclass(frozen=True)
class ChatTemplate:
    """A template of Jinja, and the control tokens that it knows by names: `bos_token` and the like."""

    source: str
    variables: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, settings: Settings) -> ChatTemplate | None:
        """Return the template in the settings files of a model's folder, or None; of several the default one."""
        config = settings.get("tokenizer_config.json", {})
        source = settings.get("chat_template.jinja", config.get("chat_template"))
        if isinstance(source, list):
            named = [one for one in source if isinstance(one, dict) and one.get("name") == "default"]
            source = named[0].get("template") if named else None
        if not isinstance(source, str):
            return None
        variables = {}
        for name, token in {**config, **settings.get("special_tokens_map.json", {})}.items():
            text = token.get("content") if isinstance(token, dict) else token
            if name.endswith("_token") and isinstance(text, str):
                variables[name] = text
        return cls(source, tuple(variables.items()))

    def render(self, turns: Turns, marks: str, is_prompt: bool) -> Rendered:
        """Return what the template makes of the turns, and for a prompt what begins the assistant's next one.

        `marks` are two characters that neither template nor turns hold. Raises UserError where the template fails, or
        takes too much time or memory.
        """
        messages = [{"role": role, "content": content} for role, content in turns]
        request = {"messages": messages, "add_generation_prompt": is_prompt, "marks": marks}
        parts = re.split(f"[{marks}]", _ask(_start(self, os.getpid()), request))
        generations, place = [], 0
        for outside, inside in zip(parts[::2], parts[1::2]):
            generations.append((place + len(outside), place + len(outside + inside)))
            place += len(outside + inside)
        return Rendered("".join(parts), generations)


@cache
def _start(template: ChatTemplate, owner: int) -> Popen[str]:
    """Start the process that renders the template for the process `owner`, with which it ends."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("jinja_sandbox.py"))]
    process = Popen(command, stdin=PIPE, stdout=PIPE, encoding="utf-8")
    _ask(process, {"source": template.source, "variables": dict(template.variables)})
    return process


def _ask(process: Popen[str], request: dict[str, Any]) -> str:
    assert process.stdin and process.stdout
    line = ""
    with suppress(BrokenPipeError):  # it was killed before
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    answer = json.loads(line) if line else {"error": "it takes too much time or memory"}
    if "error" in answer:
        raise UserError(f"the chat template fails: {answer['error']:.300}", f"change the messages, or {OTHERWISE}")
    return str(answer["text"])
