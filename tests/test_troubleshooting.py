"""docs/troubleshooting.md lists every message that a command can end or warn with, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).parents[1]
TELLING = {"UserError", "ValueError", "ArgumentTypeError", "SystemExit", "type(error)", "error", "note", "_tell"}
PUNCTUATION = " ,:;()"  # at the ends of texts, where parts of a message are joined
FOR_PROGRAMMERS = {  # commands see to it that these cannot happen
    "induction heads need two layers and as many key-value heads as heads",
    "a prompt must have 1 to … tokens, so that … new ones fit",
    "… predictions and … references cannot be compared",
    "no token of its context fits",
}


def test_the_page_lists_every_message_and_no_other() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    headings = {" ".join(heading.split()) for heading in re.findall(r"\*\*`(.+?)`\*\*", page, re.DOTALL)}
    pieces = {piece.strip(PUNCTUATION) for heading in headings for piece in re.split("…|; |note: ", heading)}
    files = (file for package in ("part3_pretrain", "part4_sft") for file in (ROOT / package).rglob("*.py"))
    modules = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    told = {text for module in modules for text in literal_texts(telling_nodes(module))}
    literals = "\n".join(literal_texts(modules))
    assert told >= FOR_PROGRAMMERS
    assert not {text for text in told - FOR_PROGRAMMERS if not any(is_part(text, heading) for heading in headings)}
    assert not {piece for piece in pieces if " " in piece and not is_told(piece, literals)}


def is_part(text: str, heading: str) -> bool:
    return re.search(".*".join(map(re.escape, text.split("…"))), heading) is not None


def is_told(piece: str, literals: str) -> bool:
    """Return whether a piece of the page is a text of the source, or several that names join around a long one."""
    cuts = [cut.start() for cut in re.finditer("^| |$", piece)]
    for start, end in combinations(cuts, 2):
        parts = [part.strip(PUNCTUATION) for part in (piece[start:end], piece[:start], piece[end:])]
        if all(part in literals for part in parts) and (parts[0] == piece or parts[0].count(" ") > 2):
            return True
    return False


def telling_nodes(module: ast.Module) -> Iterator[ast.AST]:
    """Yield the calls that tell of something, and the assignments and returns that give the names in them a value."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        telling = [call for call in calls if ast.unparse(call.func).rpartition(".")[2] in TELLING]
        names = names_in(argument for call in telling for argument in call.args)
        assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign)]
        assignments = [node for node in assignments if names & names_in(node.targets)]
        names |= names_in(node.value for node in assignments)
        helpers = [helper for helper in functions if helper.name in names]
        yield from telling
        yield from assignments
        yield from (node for helper in helpers for node in ast.walk(helper) if isinstance(node, ast.Return))


def names_in(nodes: Iterable[ast.AST]) -> set[str]:
    return {inner.id for node in nodes for inner in ast.walk(node) if isinstance(inner, ast.Name)}


def literal_texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the texts of two words or more but docstrings; in those of f-strings `…` stands for a value."""
    below = [inner for node in nodes for inner in ast.walk(node)]
    owners = (node for node in below if isinstance(node, ast.JoinedStr | ast.Expr))  # of parts and docstrings
    owned = {child for owner in owners for child in ast.iter_child_nodes(owner)}
    for node in below:
        match node:
            case ast.JoinedStr(values=parts):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)
            case ast.Constant(value=str(text)) if node not in owned:
                pass
            case _:
                continue
        text = " ".join(text.split()).strip(PUNCTUATION)
        if " " in text:
            yield text
