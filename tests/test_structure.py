"""The shape of the house: data flows one way, links lead somewhere, nothing grows out of one's sight."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = [path for package in ("part3_pretrain", "part4_sft") for path in (ROOT / package).rglob("*.py")]
COMMANDS = {"pretrain.py", "convert.py", "sft.py", "chat.py", "label.py", "compare.py", "check.py", "walkthrough.py"}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
OPTIONAL = {"peft", "gguf", "torch.utils.tensorboard"}  # packages that may be missing
SLOW = {"matplotlib.figure", "matplotlib.ticker"}  # to import, and of no use before there is something to draw


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of this project that a module imports, wherever the import stands."""
    modules = set(map(module_name, SOURCES))
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return (found & modules) - {module_name(path), "part3_pretrain", "part4_sft"}


def test_no_module_is_imported_by_what_it_imports_and_part_3_knows_nothing_of_part_4() -> None:
    graph = {module_name(path): imports(path) for path in SOURCES}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises CycleError where there is a circle
    assert not [name for name, needed in graph.items() if name.startswith("part3") and "part4" in "".join(needed)]


def test_imports_stand_at_the_top_but_for_those_that_are_optional_or_slow() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            late = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
            if not (path.name in COMMANDS and function.name == "main") and function.name != "__getattr__":
                assert {getattr(node, "module", "") for node in late} <= OPTIONAL | SLOW, (path, function.name)


def test_no_function_is_longer_than_60_lines() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (path, node.name)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
