"""Change the code in small ways, one at a time and in a copy, and see whether the tests notice.

    python tests/mutants.py --count 100 --seed 1 [--module part4_sft/training.py] [--wide]

A mutant has one comparison, condition, constant, keyword argument, operator, answer or slice changed. It is caught
where a test fails or takes too long. A survivor shows what no test checks, or means the same as before.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from random import Random
from shutil import copytree, ignore_patterns
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LEFT_OUT = ignore_patterns(".*", "__pycache__", "checkpoints", "outputs")
SECONDS = 300  # for each test file
CORE = """part3_pretrain: checkpoint config corpus model retail/rubric retail/world run runtime/training_state
part4_sft: config dataset encoding evaluation formats generation metrics preparation run training"""
SPOKEN = {"UserError", "ValueError", "error", "log", "note", "print", "tqdm"}  # calls that only say something
UNSEEN = {"help", "metavar", "description", "example", "encoding"}  # keyword arguments that change no result
SWAPS = "Lt LtE, Gt GtE, Eq NotEq, Is IsNot, In NotIn, And Or, Add Sub, Mult Div, FloorDiv Mod"
PAIRS = [[getattr(ast, name) for name in pair.split()] for pair in SWAPS.split(", ")]
OTHER = {one: other for pair in PAIRS for one, other in (pair, reversed(pair))}


class Mutant(NamedTuple):
    module: str
    old: Any  # a node with a place in the source
    new: ast.AST

    def __str__(self) -> str:
        return f"{self.module}:{self.old.lineno}  {ast.unparse(self.old)}  ->  {ast.unparse(self.new)}"

    def write(self, root: Path) -> None:
        """Put the new code in the place of the old one."""
        source = (root / self.module).read_bytes()  # ast counts columns in bytes
        starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
        before = source[: starts[self.old.lineno - 1] + self.old.col_offset]
        behind = source[starts[self.old.end_lineno - 1] + self.old.end_col_offset :]
        new = ast.unparse(self.new) if isinstance(self.new, ast.stmt) else f"({ast.unparse(self.new)})"
        (root / self.module).write_bytes(before + new.encode() + behind)


def changes(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield what can be changed in a node, and into what. Types, decorators and messages stay as they are."""
    match node:
        case ast.JoinedStr() | ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in SPOKEN:
            return
        case ast.Constant(value=bool(value)):
            yield node, ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield node, ast.Constant(value + 1)
        case ast.Compare(left, operators, values):
            for place, operator in enumerate(operators):
                swapped = [*operators[:place], OTHER[type(operator)](), *operators[place + 1 :]]
                yield node, ast.Compare(left, swapped, values)
        case ast.BoolOp(op=operator) | ast.BinOp(op=operator) | ast.AugAssign(op=operator) if type(operator) in OTHER:
            yield node, type(node)(**{**vars(node), "op": OTHER[type(operator)]()})
        case ast.Call(function, arguments, keywords):
            for dropped in keywords:
                if dropped.arg and dropped.arg not in UNSEEN:
                    yield node, ast.Call(function, arguments, [other for other in keywords if other is not dropped])
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) | ast.comprehension(ifs=[test]):
            yield test, ast.UnaryOp(ast.Not(), test)
        case ast.FunctionDef(returns=ast.Name(id="bool"), body=[*_, ast.Return(value=ast.expr() as answer)]):
            yield answer, ast.UnaryOp(ast.Not(), answer)
        case ast.Slice(upper=ast.expr() as bound) | ast.Slice(lower=ast.expr() as bound):
            yield bound, ast.BinOp(bound, ast.Add(), ast.Constant(1))
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and field not in ("annotation", "returns", "decorator_list"):
                yield from changes(child)


def tests_of(module: str, wide: bool) -> list[str]:
    """Return the test file that is named after a module; else, or behind it, all that import it; else all there are."""
    path = Path(module).with_suffix("")
    mention = re.compile(rf"{'.'.join(path.parts)}\b|from {'.'.join(path.parts[:-1])} import .*\b{path.name}\b")
    files = {f"tests/{file.name}": file.read_text(encoding="utf-8") for file in sorted(ROOT.glob("tests/test_*.py"))}
    importing = [name for name, text in files.items() if mention.search(text)]
    own = [name for name in importing if name == f"tests/test_{path.name}.py"]
    return list(dict.fromkeys(own + importing if wide else own or importing)) or list(files)


def outcome(tests: list[str], original: Path, mutant: Mutant | None = None) -> str:
    """Run tests in a copy that holds the mutant: it is caught, it survived, or they took too long."""
    with TemporaryDirectory() as folder:
        copy = copytree(original, Path(folder, "copy"))
        if mutant:
            mutant.write(copy)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.Popen(command, cwd=copy, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            return "caught" if run.wait(SECONDS * len(tests)) else "survived"
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)  # with what the tests have started
            return "timeout"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many mutants are drawn")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--module", action="append", help="draw them from this module only; may be given several times")
    parser.add_argument("--wide", action="store_true", help="also run the tests of other modules that mention it")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at the same time")
    given = parser.parse_args()
    packages = (line.split(": ") for line in CORE.splitlines())
    core = [f"{package}/{name}.py" for package, names in packages for name in names.split()]
    with TemporaryDirectory() as folder, ThreadPoolExecutor(given.jobs) as pool:
        original = copytree(ROOT, Path(folder, "original"), ignore=LEFT_OUT)
        trees = {module: ast.parse((original / module).read_bytes()) for module in given.module or core}
        mutants = [Mutant(module, *change) for module, tree in trees.items() for change in changes(tree)]
        drawn = Random(given.seed).sample(mutants, min(given.count, len(mutants)))
        tests = {module: tests_of(module, given.wide) for module in {mutant.module for mutant in drawn}}
        for module, names in tests.items():
            if outcome(names, original) != "survived":
                sys.exit(f"without any change the tests of {module} fail: {' '.join(names)}")
        counts: Counter[str] = Counter()
        for mutant, result in zip(drawn, pool.map(lambda each: outcome(tests[each.module], original, each), drawn)):
            print(f"{result:8}  {mutant}", flush=True)
            counts[result] += 1
        print(", ".join(f"{count} {result}" for result, count in counts.items()))


if __name__ == "__main__":
    main()
