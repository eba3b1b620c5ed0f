"""At run time: no network, and nothing that would run what a file says."""

from __future__ import annotations

import ast
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs

ROOT = Path(__file__).parents[1]
Command = Callable[..., tuple[int | str | None, str, str]]


def test_the_main_command_runs_where_sockets_are_forbidden(
    run_main: Command,
    tiny_checkpoint: Path,
    made: dict[str, list[Pair]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*arguments: object, **keywords: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, forbidden)
    monkeypatch.chdir(tmp_path)
    save_pairs(tmp_path / "pairs.json", made["sft_dataset"][:6])
    save_pairs(tmp_path / "others.json", made["sft_test"][:6])
    given = ["--model", tiny_checkpoint, "--data", "pairs.json", "--epochs", "1", "--max-new-tokens", "1"]
    given += ["--validation-data", "others.json", "--test-data", "others.json"]
    assert run_main(sft.main, *given, "--samples-per-context", "1")[0] == 0
    assert (tmp_path / "outputs" / "evaluation.json").is_file()


def called(tree: ast.AST) -> set[str]:
    """The dotted names of what a module imports or calls."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            names.add(ast.unparse(node.func))
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("package", ["part3_pretrain", "part4_sft"])
def test_no_code_is_made_of_texts_and_no_shell_is_called(package: str) -> None:
    forbidden = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
    modules = {"pickle", "subprocess", "marshal", "shelve", "dill", "socket", "urllib", "requests", "http"}
    for path in (ROOT / package).rglob("*.py"):
        names = called(ast.parse(path.read_text(encoding="utf-8")))
        assert not names & forbidden, path
        assert not {name.split(".")[0] for name in names} & modules, path


def test_checkpoints_are_read_without_running_them() -> None:
    """`weights_only=True` wherever torch reads a file."""
    found = 0
    for package in ("part3_pretrain", "part4_sft"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert "weights_only=True" in map(ast.unparse, node.keywords), path
                    found += 1
    assert found
