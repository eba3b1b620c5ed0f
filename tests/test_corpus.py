"""The corpus: what it must not hold, what it must hold, and how it becomes batches."""

from __future__ import annotations

import re
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain.corpus import COPY_LENGTH, IGNORE_INDEX, batches, copy_batch, draw_conversation, tokenize
from part3_pretrain.model import ModelConfig, Transformer
from part3_pretrain.retail import rubric, world
from part3_pretrain.retail.rubric import HIGH_QUALITY
from part3_pretrain.retail.world import INTENTS, WORLD, Scenario
from part3_pretrain.run import next_token_loss
from part3_pretrain.tokenizer import train_tokenizer

SHELVES = WORLD["departments"].values()
ITEMS = {f"{modifier} {noun}" for shelf in SHELVES for modifier in shelf["modifiers"] for noun in shelf["nouns"]}
ITEMS |= {f"{adjective} {item}" for adjective in WORLD["products"]["adjectives"] for item in ITEMS}


@pytest.fixture(scope="module")
def conversations() -> list[str]:
    rng = Random(0)
    return [draw_conversation(rng) for _ in range(4_000)]


@pytest.fixture(scope="module")
def recognised(conversations: list[str]) -> list[tuple[str, Scenario]]:
    """The conversations whose first message is about an item of the catalogue, with what it says."""
    read = [(text, rubric.recognise(first_message(text))) for text in conversations]
    return [(text, scenario) for text, scenario in read if scenario and scenario.item in ITEMS]


@pytest.fixture(scope="module")
def tokenizer(conversations: list[str]) -> Tokenizer:
    return train_tokenizer(conversations[:300], 500)


def first_message(conversation: str) -> str:
    return conversation.partition("\n")[0].removeprefix("Customer: ")


def agent_turns(conversation: str) -> list[str]:
    return re.findall(r"^Agent: (.*)$", conversation, re.MULTILINE)


def items_in(text: str) -> list[str]:
    """The items of the catalogue that are named, each as fully as it is named."""
    words = re.findall(r"[\w-]+", text.lower())
    found = {}
    for length in (2, 3, 4, 5):
        for start in range(len(words) - length + 1):
            if (item := " ".join(words[start : start + length])) in ITEMS:
                found[start + length] = item
    return list(found.values())


# ---------------------------------------------------------------------------------------------------- held out


def test_no_customer_has_a_combination_of_intent_and_item_that_is_held_out(
    recognised: list[tuple[str, Scenario]],
) -> None:
    assert len(recognised) > 1_500
    for text, scenario in recognised:
        assert not any(world.held_out_item(intent, scenario.item) for intent in scenario.intents), text


def test_no_agent_resolves_a_combination_of_intent_and_item_that_is_held_out(conversations: list[str]) -> None:
    """Agents who answer about the wrong item or problem must not give away what the test asks either."""
    leaks = [
        (intent.name, item)
        for text in conversations
        for reply in agent_turns(text)
        for intent in INTENTS
        if intent.evidence in reply.lower()
        for item in items_in(reply)
        if world.held_out_item(intent, item)
    ]
    assert leaks == [], f"{len(leaks)} replies"


def wording(message: str) -> str:
    """The sentence pattern of a message without a restatement: the item and the order number are left open."""
    for order in WORLD["customer"]["orders"]:
        message = re.sub(re.escape(order).replace(r"\{number\}", r"\d+"), "", message)
    for template in WORLD["customer"]["restatements"] + WORLD["customer"]["namings"]:
        message = message.partition(" " + template.partition("{")[0])[0]
    for item in sorted(items_in(message), key=len, reverse=True):
        message = re.sub(rf"\b(?:an? )?{item}\b", "ITEM", message)
    return message


def test_no_wording_that_is_held_out_occurs(conversations: list[str]) -> None:
    rng = Random(1)

    def draw(held_out: bool) -> set[str]:
        drawn = [world.draw_scenario(rng, held_out=True, two_problems=0.0) for _ in range(4_000)]
        return {wording(world.draw_context(scenario, rng, held_out=held_out)) for scenario in drawn}

    in_corpus = {wording(first_message(text)) for text in conversations}
    assert len(in_corpus & draw(held_out=False)) > 100  # so equal wordings would be found
    assert in_corpus & draw(held_out=True) == set()


def test_phrases_for_restatements_occur_but_are_never_answered(conversations: list[str]) -> None:
    def found_in(texts: list[str]) -> list[str]:
        everything = "\n".join(texts).lower()
        tell_tales = [max(re.split(r"\{\w+}", phrase), key=len) for i in INTENTS for phrase in i.restated_only]
        return [words for words in tell_tales if words.lower() in everything]

    unanswered = [text for text in conversations if "Agent:" not in text]
    assert len(found_in(unanswered)) >= 0.9 * sum(len(intent.restated_only) for intent in INTENTS)
    assert found_in([text for text in conversations if "Agent:" in text]) == []


def test_no_invented_name_that_is_reserved_for_tests_occurs(conversations: list[str]) -> None:
    rng = Random(0)
    reserved = {world.invent_item(rng, held_out=True) for _ in range(2_000)}
    words = {word for text in conversations for word in re.findall(r"\w+", text)}
    ours = {world.invent_item(rng, held_out=False) for _ in range(10_000)}
    assert words & ours and not words & reserved


def test_at_most_a_fifth_of_the_agents_replies_is_ideal(recognised: list[tuple[str, Scenario]]) -> None:
    ratings = [rubric.rate(scenario, reply).score for text, scenario in recognised for reply in agent_turns(text)]
    assert 0.05 < sum(score >= HIGH_QUALITY for score in ratings) / len(ratings) <= 0.2


# ---------------------------------------------------------------------------------------------------- rows


def test_a_document_becomes_rows_that_decode_back(tokenizer: Tokenizer, conversations: list[str]) -> None:
    """The last row ends in <EOS>, no other row holds one, and no row is too long."""
    eos = tokenizer.token_to_id("<EOS>")
    for text in [*conversations[:20], "Write <EOS> or <PAD> if you like. " * 20]:
        length = len(tokenizer.encode(text).ids)
        for block_size in (length + 1, length // 3 + 2):
            rows = tokenize([text], tokenizer, block_size)
            ids = torch.cat(rows).tolist()
            assert ids.index(eos) == len(ids) - 1
            assert max(map(len, rows)) <= block_size
            assert tokenizer.decode(ids[:-1]) == text


def test_batches_hold_every_row_once_and_predict_the_next_token() -> None:
    rng = Random(0)
    # Every row is told from the others by its first token.
    rows = [torch.tensor([index, *rng.choices(range(500), k=rng.randint(1, 60))]) for index in range(200)]
    seen = []
    for inputs, targets in batches(rows, 256, Random(0)):
        assert inputs.shape == targets.shape
        assert (inputs.shape[1] + 1) * len(inputs) <= 256
        for row_inputs, row_targets in zip(inputs, targets, strict=True):
            row = rows[row_inputs[0]]
            end = len(row) - 1
            assert torch.equal(row_inputs[:end], row[:-1])
            assert torch.equal(row_targets[:end], row[1:])
            assert (row_targets[end:] == IGNORE_INDEX).all()
            seen.append(int(row_inputs[0]))
    assert sorted(seen) == list(range(200))
    assert seen != sorted(seen)


def test_a_document_just_longer_than_a_row_leaves_no_batch_without_a_target(tokenizer: Tokenizer) -> None:
    """The <EOS> that spills over has nothing before it; a batch of it alone would have a loss of nan."""
    text = "a" * 200
    length = len(tokenizer.encode(text).ids)
    model = Transformer(ModelConfig(tokenizer.get_vocab_size(), 16, 16, 1, 1, 1))
    for inputs, targets in batches(tokenize([text], tokenizer, length), length, Random(0)):
        assert next_token_loss(model, inputs, targets).isfinite()


def test_copy_batch_asks_for_the_repeats_alone() -> None:
    digits = list(range(490, 500))
    inputs, targets = copy_batch(500, digits, 60 * COPY_LENGTH, Random(0))
    assert inputs.shape == targets.shape == (60, COPY_LENGTH)
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        period = wanted.count(IGNORE_INDEX) + 1
        assert wanted[: period - 1] == [IGNORE_INDEX] * (period - 1)
        assert wanted[period - 1 :] == row[: COPY_LENGTH - period + 1]  # what came one period before
        assert wanted[period - 1 : -1] == row[period:]  # which is also the next token
    assert 0.6 < torch.isin(inputs, torch.tensor(digits)).float().mean() < 0.8
    assert len(set(inputs[::2].flatten().tolist())) > 100
