"""Conversations by the model's chat template: the ids of transformers, and labels for the turns of the assistant."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from part3_pretrain.checkpoint import Checkpoint
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.runtime.cli import UserError
from part4_sft.dataset import Pair, Turns
from part4_sft.extras import chat_template
from part4_sft.extras.chat_template import ChatTemplate
from part4_sft.extras.conversations import ChatEncoder, choose_template, make_encoder
from tests.chat_templates import FAMILIES, GENERATION, Family

SYSTEM = ("system", "  You are kind. ")
USER, ASSISTANT = ("user", "My desk is late (order 48213)?\n"), ("assistant", " I am sorry. It is on its way.\n")
CONVERSATIONS: dict[str, Turns] = {
    "two": (USER, ASSISTANT),
    "four": (USER, ASSISTANT, ("user", "größer, and 申し訳 "), ("assistant", "\n\nNo!  It is <b>bold</b>.")),
    "system": (SYSTEM, USER, ASSISTANT),
    "system and six": (SYSTEM, USER, ASSISTANT, ("user", "a"), ("assistant", "b"), ("user", "<"), ("assistant", ">")),
    "two users": (USER, USER, ASSISTANT),
    "assistant first": (ASSISTANT, USER, ASSISTANT),
}


def checkpoint_of(family: Family, byte_level: Tokenizer, positions: int = 512) -> Checkpoint:
    tokenizer = family.tokenizer(byte_level)
    shape = ModelConfig(
        tokenizer.get_vocab_size(),
        32,
        64,
        1,
        2,
        2,
        max_positions=positions,
        eos_ids=(tokenizer.token_to_id(family.eos),),
    )
    return Checkpoint(Transformer(shape), tokenizer, {}, family.settings)


def encoder_of(checkpoint: Checkpoint, max_length: int = 512, train_on_turns: str = "all") -> ChatEncoder:
    template = choose_template(checkpoint, None, None)
    encoder = make_encoder(checkpoint, template, max_length, 20, train_on_turns)
    assert isinstance(encoder, ChatEncoder)
    return encoder


def messages(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("turns", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_transformers(name: str, turns: Turns, tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(FAMILIES[name], tokenizer)
    encoder, theirs = encoder_of(checkpoint), FAMILIES[name].theirs(checkpoint.tokenizer)

    def ids(turns: Turns, prompt: bool) -> list[int]:
        return theirs.apply_chat_template(messages(turns), add_generation_prompt=prompt, return_dict=False)

    try:
        prompt, whole = ids(turns[:-1], True), ids(turns, False)
    except jinja2.TemplateError as error:
        with pytest.raises(UserError, match=r"^the chat template fails: .*; change the messages"):
            encoder.encode_prompt("", 500, turns[:-1])
        assert str(error)
        return
    assert encoder.encode_prompt("", 500, turns[:-1]) == prompt
    if name == "mistral" and turns[0] == SYSTEM:  # then transformers leaves the system message out
        with pytest.raises(UserError, match="in another way once the reply is there; leave the system message out"):
            encoder.encode_conversation(turns)
        return
    example = encoder.encode_conversation(turns)
    assert example.ids == whole[: len(example.ids)] and example.ids[: len(prompt) - 1] == prompt[:-1]
    assert encoder.eos_id == checkpoint.tokenizer.token_to_id(FAMILIES[name].end_of_turn)
    assert encoder.eos_id not in whole[len(example.ids) :]
    learnt: list[list[int]] = [[]]
    for label in example.labels:
        learnt[-1] += [label] * (label != -100)
        if label == encoder.eos_id:
            learnt.append([])
    *replies, behind = (checkpoint.tokenizer.decode(reply, skip_special_tokens=False) for reply in learnt)
    said = [content for place, (role, content) in enumerate(turns) if role == "assistant" and place]
    assert behind == "" and len(replies) == len(said)
    for reply, content in zip(replies, said):
        assert (
            reply.replace("<think>\n\n</think>\n\n", "").removesuffix(FAMILIES[name].end_of_turn).strip()
            == content.strip()
        )


def test_the_chosen_template_is_in_the_jinja_file_or_the_tokenizers_settings(tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(FAMILIES["chatml"], tokenizer)
    several = [{"name": "tool_use", "template": "b"}, {"name": "default", "template": "a"}]
    cases: list[tuple[Any, str | None]] = [
        ({"tokenizer_config.json": {"chat_template": "a"}, "chat_template.jinja": "c"}, "c"),
        ({"tokenizer_config.json": {"chat_template": several}}, "a"),
        ({"tokenizer_config.json": {"chat_template": several[:1]}}, None),
        ({"tokenizer_config.json": {"chat_template": None}}, None),
        ({}, None),
    ]
    for files, expected in cases:
        chosen = choose_template(replace(checkpoint, hugging_face=files), None, None)
        assert chosen == (ChatTemplate(expected, ()) if expected else r"Customer: {context}\nAgent:")
    named = {"bos_token": {"content": "<s>"}, "eos_token": None, "model_max_length": 3, "chat_template": "a"}
    assert ChatTemplate.of({"tokenizer_config.json": named}) == ChatTemplate("a", (("bos_token", "<s>"),))
    for own, how, prompt_template, template in [
        (True, None, "Q: {context}", "Q: {context}"),
        (True, "none", None, r"Customer: {context}\nAgent:"),
        (True, "model", None, ChatTemplate.of(checkpoint.hugging_face)),
        (False, "none", "Q: {context}", "Q: {context}"),
    ]:
        files = checkpoint.hugging_face if own else {}
        assert choose_template(replace(checkpoint, hugging_face=files), how, prompt_template) == template
    with pytest.raises(UserError, match="--chat-template model: this model has none; leave it out"):
        choose_template(replace(checkpoint, hugging_face={}), "model", None)


# What could be taken for a control token, wherever it is cut, and a character that marks them.
PIECES = [
    "<|im_end|>",
    "<|im_start|>",
    "<|eot_id|>",
    "<|end|>",
    "<EOS>",
    "</s>",
    "<",
    "|im_end|>",
    "<|im_",
    "end|>",
    " ",
]
PIECES += ["\n", "\U000f0000", "[/INST]", "desk", "<|im_<|im_end|>end|>", "system\n", "{{ bos_token }}"]
CONTENTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), min_size=1, max_size=6).map("".join)


@pytest.mark.parametrize("name", ["chatml", "llama3", "phi3", "mistral", "llama2"])
def test_control_tokens_come_from_the_template_alone(name: str, tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(FAMILIES[name], tokenizer)
    encoder = encoder_of(checkpoint)
    control = encoder.control.texts.values()

    def commands(*contents: str) -> list[int]:
        roles = ("user", "assistant", "user", "assistant")
        ids = encoder.encode_conversation(tuple(zip(roles, contents))).ids
        return [id for id in ids if id in control and id != checkpoint.tokenizer.token_to_id("<unk>")]

    usual = commands("a", "b", "c", "d")

    @settings(derandomize=True, deadline=None, max_examples=60)
    @given(CONTENTS, CONTENTS, CONTENTS, CONTENTS)
    def hold(asked: str, answered: str, asked_again: str, answered_again: str) -> None:
        assert commands(asked, answered, asked_again, answered_again) == usual

    hold()


def test_no_letter_of_a_message_is_lost_where_control_tokens_are_text(tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(FAMILIES["chatml"], tokenizer)
    encoder = encoder_of(checkpoint)
    whole = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

    @settings(derandomize=True, deadline=None, max_examples=60)
    @given(CONTENTS)
    def hold(content: str) -> None:
        ids = encoder.encode_prompt(content, 500)
        assert checkpoint.tokenizer.decode(ids, skip_special_tokens=False) == whole.format(content)

    hold()
    apart = encoder.tokenizer.encode("a<|im_end|>b", add_special_tokens=False).ids  # as text
    ids = encoder.encode_prompt("a<|im_end|>b", 500)
    assert any(ids[place : place + len(apart)] == apart for place in range(len(ids)))


def test_what_a_template_writes_is_text_in_a_message_though_it_is_not_special_unless_the_assistant_says_it(
    tokenizer: Tokenizer,
) -> None:
    """So do <think> and <tool_call> stand in vocabularies. Of others, such as line breaks, nothing changes."""
    source = "<|header|>".join(FAMILIES["chatml"].source.split("<|im_start|>"))
    checkpoint = checkpoint_of(replace(FAMILIES["chatml"], source=source), tokenizer)
    checkpoint.tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("<|header|>", "<b>", "\n")])
    model = Transformer(replace(checkpoint.model.config, vocab_size=checkpoint.tokenizer.get_vocab_size()))
    encoder = encoder_of(replace(checkpoint, model=model))
    header, bold = map(checkpoint.tokenizer.token_to_id, ("<|header|>", "<b>"))
    theirs = FAMILIES["chatml"].theirs(checkpoint.tokenizer)
    theirs.chat_template = source

    for again in (encoder, pickle.loads(pickle.dumps(encoder))):  # the second as it goes to the workers of --stream
        again.tokenizer.encode_special_tokens = True
        for said in ("<|header|>system\n<b>No.", "a<|hea", "<b><|header|>"):
            turns: Turns = (("system", said), ("user", said), ("assistant", "\n<b> no"), ("user", said + "der|>"))
            ids = again.encode_prompt("", 500, turns)
            assert ids.count(header) == 5 and ids.count(bold) == 1 + 3 * ("<b>" in said)
            assert theirs.decode(ids) == theirs.apply_chat_template(
                messages(turns), tokenize=False, add_generation_prompt=True
            )
    turns = (("user", "Why?"), ("assistant", "<|header|>thought\nSo."), ("user", "<b>\n"))
    assert encoder.encode_prompt("", 500, turns) == theirs.apply_chat_template(
        messages(turns), add_generation_prompt=True, return_dict=False
    )


FOUR = CONVERSATIONS["four"]


@pytest.mark.parametrize("source", [FAMILIES["chatml"].source, GENERATION], ids=["derived", "told by the template"])
def test_labels_are_the_turns_of_the_assistant_all_or_the_last(source: str, tokenizer: Tokenizer) -> None:
    family = replace(FAMILIES["chatml"], source=source)
    checkpoint = checkpoint_of(family, tokenizer)
    theirs = replace(family, source=GENERATION).theirs(checkpoint.tokenizer)
    told = theirs.apply_chat_template(messages(FOUR), return_dict=True, return_assistant_tokens_mask=True)
    expected = [id if told else -100 for id, told in zip(told["input_ids"], told["assistant_masks"])]
    example = encoder_of(checkpoint).encode_conversation(FOUR)
    assert example.labels == expected[: len(example.labels)] and set(expected[len(example.labels) :]) == {-100}
    last = encoder_of(checkpoint, train_on_turns="last").encode_conversation(FOUR)
    begin = len(encoder_of(checkpoint).encode_prompt("", 500, FOUR[:-1]))
    assert last.ids == example.ids and last.labels == [-100] * begin + example.labels[begin:]


def test_the_end_of_a_turn_is_learnt_though_the_template_leaves_it_out(tokenizer: Tokenizer) -> None:
    without = GENERATION.replace("'<|im_end|>' }}{% endgeneration %}", "'' }}{% endgeneration %}{{ '<|im_end|>' }}")
    family, both = FAMILIES["chatml"], []
    for source in (GENERATION, without):
        both.append(encoder_of(checkpoint_of(replace(family, source=source), tokenizer)).encode_conversation(FOUR))
    assert both[0] == both[1]


def test_pairs_are_conversations_of_two_messages(tokenizer: Tokenizer) -> None:
    encoder = encoder_of(checkpoint_of(FAMILIES["qwen2.5"], tokenizer))
    assert encoder.encode(Pair("Where?", "Here.")) == encoder.encode_conversation(
        (("user", "Where?"), ("assistant", "Here."))
    )
    pair = Pair("User: a\nAssistant: b\nUser: c", "d", turns=(("user", "a"), ("assistant", "b"), ("user", "c")))
    assert encoder.encode(pair) == encoder.encode_conversation((*pair.turns, ("assistant", "d")))
    assert encoder.encode_prompt("c", 500) == encoder.encode_prompt("", 500, (("user", "c"),))
    assert encoder.encode(Pair("Where?", "Here.", place="a.csv, row 2")).place == "a.csv, row 2"
    again = pickle.loads(pickle.dumps(encoder))  # as it goes to the workers of --stream
    again.tokenizer.encode_special_tokens = True
    assert again.encode(pair) == encoder.encode(pair)


def test_too_long_a_conversation_loses_its_oldest_turns_and_never_the_response(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = checkpoint_of(FAMILIES["chatml"], tokenizer)
    encoder = encoder_of(checkpoint)
    turns: Turns = (("system", "Be kind."), ("user", "one " * 9), ("assistant", "two " * 9), ("user", "é three " * 9))
    reply = ("assistant", "four " * 5)
    pair = Pair("", reply[1], turns=turns)
    whole, shorter = encoder.encode(pair), encoder.encode_conversation((*turns[:1], *turns[3:], reply))
    assert encoder.encode_all([pair]) == [whole] and capsys.readouterr().err == ""
    for length in (len(whole.ids) - 1, len(shorter.ids)):
        assert replace(encoder, max_length=length).encode_all([pair]) == [shorter]
        assert "note: 1 of 1 contexts of the training set are too long" in capsys.readouterr().err
    response = [label for label in shorter.labels if label != -100]
    for missing in range(1, 20):
        cut = replace(encoder, max_length=len(shorter.ids) - missing).encode(pair)
        assert len(shorter.ids) - missing - 4 <= len(cut.ids) <= len(shorter.ids) - missing
        assert [label for label in cut.labels if label != -100] == response
        text = checkpoint.tokenizer.decode(cut.ids, skip_special_tokens=False)
        assert (
            text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n") and "three <|im_end|>" in text
        )
        prompt = encoder.encode_prompt("", len(encoder.encode_prompt("", 500, turns)) - 40 - missing, turns)
        assert checkpoint.tokenizer.decode(prompt[-6:]).endswith("assistant\n")
    with pytest.raises(UserError, match=r"^pair 1: its response has \d+ tokens with system message and chat"):
        replace(encoder, max_length=len(response) + 9).encode(pair)
    with pytest.raises(UserError, match=r"^the chat template makes \d+ tokens of the messages, with room for 20;"):
        encoder.encode_prompt("", 20, (("system", "Be kind. " * 20), ("user", "a")))


SPEAKERLESS = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ raise_exception('No,\nnever') }}", "the chat template fails: No,; change the messages, or use --chat-te"),
        ("{% if %}", "the chat template fails: Expected an expression, got 'end of statement block'"),
        ("{{ messages[7].content.x.y }}", "the chat template fails: list object has no element 7" ),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails: access to attribute '__class__' of 'str' object"),
        ("{{ 'a' * 10 ** 10 }}", "the chat template fails: MemoryError"),
        ("{{ 'a' * 10 ** 8 }}", "the chat template fails: what it writes is too long"),
        ("{{ '\\ud800' }}", "the chat template fails: 'utf-8' codec can't encode"),
        ("{{ messages | tojson }}", "the chat template puts no control token behind a reply, so nothing"),
        ("{{ messages | length }}" + SPEAKERLESS + "<EOS>", "writes what a reply answers in another way once"),
        (SPEAKERLESS + "{% if messages[-1].role != 'user' %}<EOS>{% endif %}", "puts no <EOS> behind a turn of the"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_told(source: str, complaint: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError) as refused:
        encoder_of(checkpoint_of(replace(FAMILIES["chatml"], source=source), tokenizer)).encode_conversation(FOUR)
    assert complaint in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set n = namespace(t='a') %}{% for a in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
        "{{ 9 ** (9 ** 9) % 2 }}",
    ],
)
def test_a_template_that_never_ends_does_not_hang(source: str, tokenizer: Tokenizer) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=r"the chat template fails: (it takes too much time or memory|MemoryError)"):
            encoder_of(checkpoint_of(replace(FAMILIES["chatml"], source=source), tokenizer))


def test_a_process_that_was_killed_is_told(tokenizer: Tokenizer) -> None:
    encoder = encoder_of(checkpoint_of(replace(FAMILIES["chatml"], source=FAMILIES["chatml"].source + " "), tokenizer))
    process = chat_template._start(encoder.chat, os.getpid())
    process.kill()
    process.wait()
    with pytest.raises(UserError, match="the chat template fails: it takes too much time or memory"):
        encoder.encode_prompt("a", 100)


def test_a_template_that_leaves_no_room_is_told(tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(FAMILIES["qwen2.5"], tokenizer, positions=40)
    with pytest.raises(UserError, match=r"^the chat template makes \d+ tokens of one letter, and .* model 20 of"):
        encoder_of(checkpoint)


def test_replies_end_where_the_template_says(tokenizer: Tokenizer) -> None:
    checkpoint = checkpoint_of(FAMILIES["chatml"], tokenizer)
    model, end = checkpoint.model, checkpoint.tokenizer.token_to_id("<|im_end|>")
    model.config = replace(model.config, pad_id=end)
    for _ in range(2):
        encoder_of(checkpoint)
        assert (list(model.config.eos_ids), model.config.pad_id) == ([end, 1], None)
