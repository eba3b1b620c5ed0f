"""At run time: no network, and nothing that would run what a file says (see also test_damaged_checkpoints)."""

from __future__ import annotations

import ast
import socket
from pathlib import Path

import pytest

from part4_sft import sft
from tests.conftest import ROOT, Command, in_folder
from tests.processes import small_sft

SOURCES = [path for package in ("part3_pretrain", "part4_sft") for path in (ROOT / package).rglob("*.py")]
FORBIDDEN_MODULES = {"pickle", "subprocess", "marshal", "shelve", "dill", "socket", "urllib", "requests", "http", "pty"}
FORBIDDEN_NAMES = {"eval", "exec", "compile", "__import__", "importlib.import_module", "os.system", "os.popen"}


def test_the_main_command_runs_where_sockets_are_forbidden(
    run_main: Command, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, pytest.fail)
    assert run_main(sft.main, *small_sft(tmp_path, tiny_checkpoint), *in_folder(tmp_path))[0] == 0


def test_no_module_can_run_what_a_file_says() -> None:
    """No code is made of texts, no shell is called, and torch reads files in one place, with `weights_only=True`."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = set()
            if isinstance(node, ast.Call):
                names = {ast.unparse(node.func)}
                keywords = {ast.unparse(keyword) for keyword in node.keywords}
                assert "torch.load" not in names or (path.name == "safe_load.py" and "weights_only=True" in keywords)
                assert not {"allow_pickle=True", "shell=True", "trust_remote_code=True"} & keywords, path
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                assert "torch.load" not in names, path  # by its whole name only, so that the line above sees it
            if path.name == "chat_template.py":  # which keeps a template in a process of its own
                names -= {"subprocess.PIPE", "subprocess.Popen"}
            assert not names & FORBIDDEN_NAMES and not {name.split(".")[0] for name in names} & FORBIDDEN_MODULES, path
