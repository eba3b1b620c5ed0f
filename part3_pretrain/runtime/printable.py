"""Texts of others that go to a terminal, which would take some of their characters for commands."""

from __future__ import annotations

import json
import re
from typing import Any

# Control characters but the line break, marks that reverse the direction of writing, and halves of characters.
STEERING = re.compile("[\0-\t\v-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Show what could steer the terminal as a question mark, and spaces of all widths, but line breaks, as spaces."""
    return STEERING.sub("?", re.sub(r"[^\S\n]", " ", text))


def printable_json(value: Any) -> str:
    """Return JSON in one line whose texts stay what they are: what could steer the terminal is escaped."""
    return STEERING.sub(lambda letter: rf"\u{ord(letter[0]):04x}", json.dumps(value, ensure_ascii=False))
