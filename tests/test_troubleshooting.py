"""docs/troubleshooting.md lists every message that the program can end or warn with, and no other.

Both sides are compared as templates, in which `…` stands for what varies. Those of the program are read from its
source: the texts that `TELLS` is called with, in which names of literal texts are replaced by these.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Errors, reasons that go into errors, what an interruption says, and what is printed: that only if it is a note.
TELLS = {"UserError", "ArgumentTypeError", "parser.error", "self.error", "ValueError", "type(error)", "print", "_tell"}
NOTES = ("note: ", "nothing to resume: ", "interrupted: ")
FOR_PROGRAMMERS = {  # commands see to it that these cannot happen
    "induction heads need two layers and as many key-value heads as heads",
    "a prompt must have 1 to … tokens, so that … new ones fit",
    "… predictions and … references cannot be compared",
    "no token of its context fits",
    "its response has …, too many for … tokens",
}
Texts = dict[str, set[str]]  # what names may stand for


def test_the_page_lists_every_message_and_no_other() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    explained = {normalised(text) for text in re.findall(r"\*\*`(.+?)`\*\*", page, re.DOTALL)}
    sources = (path for package in ("part3_pretrain", "part4_sft") for path in (ROOT / package).rglob("*.py"))
    told = {text for path in sources for text in messages(path.read_text(encoding="utf-8"))}
    assert told >= FOR_PROGRAMMERS
    assert not (missing := told - FOR_PROGRAMMERS - explained), "\n".join(["to be explained:", *sorted(missing)])
    assert not (stale := explained - told), "\n".join(["no longer a message:", *sorted(stale)])


def test_names_of_literal_texts_are_replaced_by_them() -> None:
    source = """
def check(path, kind):
    if path:
        advice = "name " "another"
        raise UserError(f"{path!r:.20} {path}: {advice}")
    advice = "make room"
    fault = kind.fault
    if kind == 2:
        fault = f"{kind} is odd"
    print(f"note: {fault}"), print("done")
    return UserError(f"{fault}; {advice}")
def fault_of(kind):
    return f"{kind} is   wrong; " if kind else ""
"""
    assert messages(source) == {"… …: name another", "…; make room", "note: …", "… is odd", "… is wrong"}


# ---------------------------------------------------------------------------------------------------- the source


def messages(source: str) -> set[str]:
    """The templates of what a module tells; where a part of one has several texts, these come by themselves."""
    tree = ast.parse(source)
    found = list(told_by(tree.body, {}))
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and "fault_of" in function.name:
            found += (text for node in ast.walk(function) if isinstance(node, ast.Return) for text in texts(node.value))
    return {normalised(text) for text in found if re.search(r"\w", text)}


def told_by(statements: Sequence[ast.AST], known: Texts) -> Iterator[str]:
    """What the statements of a block tell, in which these names are known; adds those that they assign."""
    for statement in statements:
        is_scope = isinstance(statement, ast.FunctionDef | ast.ClassDef)
        blocks = [getattr(statement, field, []) for field in ("body", "handlers", "orelse", "finalbody")]
        for block in blocks:
            within: Texts = {} if is_scope else dict(known)
            yield from told_by(block, within)
            known |= {} if is_scope else {name: known.get(name, set()) | within[name] for name in within}
        if any(blocks):
            continue
        for call in ast.walk(statement):
            if isinstance(call, ast.Call) and call.args and (function := ast.unparse(call.func)) in TELLS:
                found = texts(call.args[0], known)
                if function not in ("print", "_tell") or min(found).startswith(NOTES):
                    parts = (part for part in ast.walk(call.args[0]) if isinstance(part, ast.FormattedValue))
                    alternatives = [texts(part, known) for part in parts]
                    yield from found.union(*(several for several in alternatives if len(several) > 1))
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            known[statement.targets[0].id] = texts(statement.value, known)


def texts(node: ast.AST | None, known: Texts | None = None) -> set[str]:
    """What an expression may come to."""
    known = known or {}
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.Name(id=name):
            return known.get(name, {"…"})
        case ast.FormattedValue(value=value):
            return texts(value, known)
        case ast.IfExp(body=one, orelse=other) | ast.BoolOp(op=ast.Or(), values=[one, other]):
            return texts(one, known) | texts(other, known)
        case ast.JoinedStr(values=parts):
            alternatives = [texts(part, known) for part in parts]
            return {"".join("…" if len(several) > 1 else min(several) for several in alternatives)}
    return {"…"}


def normalised(text: str) -> str:
    return re.sub("…+", "…", " ".join(text.split())).strip("; ")
