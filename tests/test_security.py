"""At run time: no network, and nothing that would run what a file says (see also test_damaged_checkpoints)."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

from part4_sft import sft
from part4_sft.dataset import Pair, save_pairs
from tests.conftest import Command

ROOT = Path(__file__).parents[1]
SOURCES = [path for package in ("part3_pretrain", "part4_sft") for path in sorted((ROOT / package).rglob("*.py"))]
FORBIDDEN_MODULES = {"pickle", "subprocess", "marshal", "shelve", "dill", "socket", "urllib", "requests", "http", "pty"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "importlib.import_module", "os.system", "os.popen"}


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
    options = ["--model", tiny_checkpoint, "--data", "pairs.json", "--epochs", "1", "--max-new-tokens", "1"]
    options += ["--validation-data", "others.json", "--test-data", "others.json", "--samples-per-context", "1"]
    assert run_main(sft.main, *options)[0] == 0
    assert (tmp_path / "outputs" / "evaluation.json").is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_can_run_what_a_file_says(path: Path) -> None:
    """No code is made of texts, no shell is called, and torch reads files with `weights_only=True`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = set()
        if isinstance(node, ast.Call):
            names = {ast.unparse(node.func)}
            keywords = [ast.unparse(keyword) for keyword in node.keywords]
            assert "torch.load" not in names or "weights_only=True" in keywords
            assert not {"allow_pickle=True", "shell=True", "trust_remote_code=True"} & set(keywords)
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            assert "torch.load" not in names  # by its whole name only, so that the line above sees it
        assert not names & FORBIDDEN_NAMES
        assert not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES


def test_files_of_torch_are_read_in_one_place() -> None:
    readers = [path.name for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert readers == ["safe_load.py"]
