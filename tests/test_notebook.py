"""The package as a notebook uses it: one function with the options of the command, and exceptions instead of exits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from doctest import DocTestParser
from pathlib import Path
from typing import Any

import pytest

from part3_pretrain import convert
from part3_pretrain.runtime.locks import locked
from part4_sft import UserError, fine_tune, sft
from tests.conftest import ROOT, Command, in_folder
from tests.processes import small_sft

PAIRS = [{"context": f"What is {n} and {n}?", "response": f"It is {2 * n}."} for n in range(12)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_importing_the_package_needs_no_other() -> None:
    code = "import part4_sft; part4_sft.UserError; assert not hasattr(part4_sft, 'fine_tuned')"
    subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, check=True)
    code = (
        "import sys, part4_sft; assert 'torch' not in sys.modules; part4_sft.fine_tune; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_training_needs_no_module_that_windows_lacks() -> None:
    missing = "dict.fromkeys(('fcntl', 'termios', 'tty', 'resource', 'readline'))"  # None: Python says there is none
    code = f"import sys; sys.modules.update({missing}); import part4_sft; part4_sft.fine_tune"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_example_of_its_docstring_works(run_main: Command, tiny_checkpoint: Path, folder: Path) -> None:
    assert run_main(convert.main, "to-hf", tiny_checkpoint, "models/SmolLM2-135M")[0] == 0
    names: dict[str, Any] = {}
    examples = DocTestParser().get_examples(fine_tune.__doc__)
    assert [bool(example.want) for example in examples] == [False, False, False, True, True]
    for example in examples:
        if example.want:
            assert repr(eval(example.source, names)) == example.want.strip()
        else:
            exec(example.source, names)
    assert names["evaluation"] == json.loads(Path("outputs/sums/evaluation.json").read_text())
    assert Path("checkpoints/sums/sft_model/model.safetensors").exists()


def test_it_does_what_the_command_does(run_main: Command, tiny_checkpoint: Path, folder: Path) -> None:
    options = small_sft(folder, tiny_checkpoint)
    status, _, complained = run_main(sft.main, *options, *in_folder(folder))
    assert status == 0, complained
    named = {name.removeprefix("--").replace("-", "_"): value for name, value in zip(options[::2], options[1::2])}
    lists = {name: json.loads(Path(named[name]).read_text()) for name in ("data", "validation_data", "test_data")}
    numbers = {"epochs": 2, "batch_size": 3, "max_new_tokens": 3, "samples_per_context": 1, "learning_rate": 0.001}
    places = {"out_dir": Path("mine"), "checkpoint_dir": Path("mine"), "model": tiny_checkpoint}
    checkpoint, evaluation = fine_tune(**lists, **numbers, **places, resume=False, top_p=1.0, evaluate=None)
    by_command = json.loads((folder / "outputs" / "evaluation.json").read_text())
    assert {key: evaluation[key] for key in ("steps", "by_epoch", "sft")} == {
        key: by_command[key] for key in ("steps", "by_epoch", "sft")
    }
    assert checkpoint == Path("mine/sft_model.pt") and checkpoint.exists()
    assert [pair["response"] for pair in json.loads(Path("mine/sft_test.json").read_text())] == [
        pair["response"] for pair in lists["test_data"]
    ]


def test_an_option_of_several_values_is_a_list(tiny_checkpoint: Path, folder: Path) -> None:
    pairs = [{"Q": pair["context"], "A": pair["response"]} for pair in PAIRS]
    options: dict[str, Any] = {"model": tiny_checkpoint, "epochs": 1, "evaluate": "none"}
    _, evaluation = fine_tune(data=pairs, columns=["context=Q", "response=A"], **options)
    assert evaluation["dataset"]["trained_on"] == 10


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"epoch": 3}, "there is no option epoch; there are model, data, "),
        ({"epochs": 0}, "--epochs must be 1 or more, not 0; see "),
        ({"epochs": 2.5}, "--epochs: invalid int value: '2.5'"),
        ({"epochs": None}, "--epochs: invalid int value: 'None'"),
        ({"epochs": False}, "--epochs: invalid int value: 'False'"),
        ({"resume": "yes"}, "--resume: ignored explicit argument 'yes'"),
        ({"keep": "first"}, "--keep: invalid choice: 'first'"),
        ({"moments_dtype": "bfloat16"}, "--moments-dtype bfloat16 needs --dtype bfloat16 too"),
        ({"data": "missing.json"}, "cannot read missing.json: No such file or directory"),
        ({"data": []}, "data holds no pairs"),
        ({"data": [*PAIRS, {"context": "a"}]}, "data, pair 13: "),
        ({"data": [{"context": "a", "response": {1, 2}}]}, "data holds what JSON does not: Object of type set is not"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_used_is_an_exception(
    options: dict[str, Any], complaint: str, tiny_checkpoint: Path, folder: Path
) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        fine_tune(**{"model": tiny_checkpoint, "data": PAIRS} | options)
    assert not list(folder.iterdir())


def test_a_folder_that_a_run_writes_to_is_refused(tiny_checkpoint: Path, folder: Path) -> None:
    with locked(folder / "outputs"), pytest.raises(UserError, match="another run is writing to "):
        fine_tune(model=tiny_checkpoint, data=PAIRS)
