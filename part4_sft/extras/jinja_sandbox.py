"""Render a chat template: the program of a process of its own, since templates are code that came with a model.

Jinja's sandbox keeps a template from everything but its messages. What a sandbox cannot do, this process does: it is
killed where a rendering takes too long, and gets no more memory than a limit (on Linux). The environment is that of
transformers, whose `apply_chat_template` the templates were written for.

A line of the input is a JSON object. The first holds `source` and `variables`; each further one `messages`,
`add_generation_prompt` and `marks`, two characters to be put around what `{% generation %}` encloses. It is answered by
a line with `text` or `error`.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SECONDS = 5  # of processor time
MAX_BYTES = 2**30  # of memory
MAX_CHARACTERS = 2**24  # of what is rendered


class Generation(Extension):
    """The tag `{% generation %}`, by which a template tells what the assistant wrote."""

    tags = {"generation"}  # noqa: RUF012, jinja2 has it so
    marks = "", ""

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("enclose"), [], [], body).set_lineno(line)

    def enclose(self, caller: Any) -> str:
        begin, end = Generation.marks
        return f"{begin}{caller()}{end}"


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own filter would escape the characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    with suppress(OSError, ValueError):  # macOS knows no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }
    template = None
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # its signal kills, wherever the processor is
        try:
            template = template or environment.from_string(request["source"], request["variables"])
            Generation.marks = request.pop("marks", Generation.marks)
            text = template.render(request, tools=None, documents=None) if "messages" in request else ""
            if len(text) > MAX_CHARACTERS:
                raise TemplateError("what it writes is too long")
            text.encode()  # raises where a character is but half of one
            answer = {"text": text}
        except Exception as error:  # those of jinja2, and whatever an expression raises
            answer = {"error": (str(error) or type(error).__name__).partition("\n")[0]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
