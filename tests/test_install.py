"""What pyproject.toml and the requirements declare is what the code imports; `pip install .` works from anywhere."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from part4_sft.config import EXTRAS
from tests.conftest import ROOT, FinishedRun

PACKAGES = ("part3_pretrain", "part4_sft")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = {name: list(map(Requirement, required)) for name, required in PROJECT["optional-dependencies"].items()}
REQUIRED = list(map(Requirement, PROJECT["dependencies"]))
COMMANDS = ("sft", "chat", "label", "compare", "walkthrough")


def pinned(path: Path) -> dict[str, str]:
    """The versions in a file of requirements and in those that it names, by package."""
    versions: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            versions |= pinned(ROOT / line[3:])
        elif line and not line.startswith("#"):
            name, _, version = line.partition("==")
            versions[canonicalize_name(name)] = version
    return versions


def test_what_the_code_imports_is_declared_and_nothing_else() -> None:
    imported = set()
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            imported |= {"tensorboard" if "tensorboard" in name else name.partition(".")[0] for name in names}
    third_party = {canonicalize_name(name) for name in imported - sys.stdlib_module_names - {*PACKAGES}}
    declared = {canonicalize_name(one.name) for one in sum(OPTIONAL.values(), REQUIRED)}
    assert third_party == declared


def test_todays_pins_are_in_the_ranges() -> None:
    needed, everything = pinned(ROOT / "part4_sft" / "requirements.txt"), pinned(ROOT / "requirements.txt")
    brought = {"jinja2", "filelock", "numpy"}  # by torch and by nltk
    assert {canonicalize_name(one.name) for one in REQUIRED} == needed.keys() | brought
    for requirement in sum(OPTIONAL.values(), REQUIRED):
        if requirement.name not in brought:
            assert requirement.specifier.contains(everything[canonicalize_name(requirement.name)]), requirement
    for pin in EXTRAS.values():  # what a message tells to install
        name, _, version = pin.partition("==")
        assert everything[name] == version


@pytest.mark.slow
def test_an_installed_package_works_from_any_folder(finished_run: FinishedRun, tmp_path: Path) -> None:
    """In a virtual environment that finds the packages of this one, but not this project."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    outside.mkdir()
    for package in PACKAGES:  # copies, for a build leaves files beside what it builds
        shutil.copytree(ROOT / package, source / package)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    venv.create(tmp_path / "venv", symlinks=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "-q"]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, str(source)], check=True)

    def run(*arguments: object) -> str:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [python, "-m", *map(str, arguments)]
        done = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for name in COMMANDS:
        assert f"usage: python -m part4_sft.{name} " in run(f"part4_sft.{name}", "--help")
    assert run("part4_sft.sft", *finished_run.options).endswith(finished_run.printed[-200:])
    reply = json.loads(run("part4_sft.chat", "--context", "Where is my desk?", "--json", "--max-new-tokens", "2"))
    assert reply["context"] == "Where is my desk?"
    assert "nobody has voted on outputs/replies.json yet" in run("part4_sft.compare", "--report")
    assert "is rated yet" in run("part4_sft.label", "outputs/sft_dataset.json", "--report")
    run("part3_pretrain.convert", "to-hf", "checkpoints/sft_model.pt", "folder")
    assert sorted(path.name for path in outside.iterdir()) == ["checkpoints", "folder", "outputs"]
