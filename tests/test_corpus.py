"""The corpus: what it must not hold, what it must hold, and how it becomes batches."""

from __future__ import annotations

import re
from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain import corpus
from part3_pretrain.corpus import CONTINUED, COPY_LENGTH, DOCUMENT_KINDS, IGNORE_INDEX, batches
from part3_pretrain.retail import world
from part3_pretrain.retail.rubric import rate, recognise
from part3_pretrain.retail.world import INTENTS, PRODUCT, Scenario, is_held_out_item
from part4_sft.dataset import Pair
from tests.conftest import tell_tale, wording


@pytest.fixture(scope="module")
def conversations() -> list[str]:
    rng = Random(0)
    return [corpus.draw_conversation(rng) for _ in range(4_000)]


@pytest.fixture(scope="module")
def scenarios(conversations: list[str]) -> dict[str, Scenario]:
    """What is wanted in the conversations whose first message says it."""
    read = {text: recognise(first_message(text)) for text in conversations}
    return {text: scenario for text, scenario in read.items() if scenario}


def first_message(conversation: str) -> str:
    return conversation.partition("\n")[0].removeprefix("Customer: ")


def test_documents_are_of_all_kinds(conversations: list[str]) -> None:
    questions = tuple(question.partition("{")[0] for question in world.CUSTOMER["policy_questions"])
    counts = {
        DOCUMENT_KINDS["restatement"]: sum("Agent:" not in text for text in conversations),
        DOCUMENT_KINDS["policy"]: sum(first_message(text).startswith(questions) for text in conversations),
        DOCUMENT_KINDS["conversation"] * CONTINUED: sum(text.count("Agent:") > 1 for text in conversations),
    }
    assert [count / len(conversations) for count in counts.values()] == pytest.approx([*counts], abs=0.02)


def test_problems_typos_and_ideal_replies_are_as_frequent_as_said(scenarios: dict[str, Scenario]) -> None:
    """The shares are a little below those of all conversations, as a problem that is mistyped is not read back."""
    vocabulary = set(re.findall(r"\w+", str(world.WORLD).lower()))
    invented = re.compile(f"({'|'.join(world.WORLD['products']['syllables'])}){{2,3}}")
    answered = [(text, scenario) for text, scenario in scenarios.items() if "Agent:" in text]
    again = [template.partition("{")[0] for template in world.CUSTOMER["restatements"] + world.CUSTOMER["namings"]]
    counts = [0] * 6
    for text, scenario in answered:
        unknown = set(re.findall("[a-z]+", first_message(text).lower())) - vocabulary
        mistyped = {word for word in unknown if not invented.fullmatch(word)}
        in_item = any(word in scenario.item.lower() for word in mistyped)
        is_ideal = rate(scenario, re.search("Agent: (.*)", text)[1]).is_high_quality
        kinds = [len(scenario.intents) == 2, mistyped != unknown, bool(mistyped), in_item, is_ideal]
        kinds.append(any(words in first_message(text) for words in again))
        counts = [count + of_kind for count, of_kind in zip(counts, kinds)]
    assert [count / len(answered) for count in counts] == pytest.approx([0.47, 0.17, 0.19, 0.07, 0.18, 0.3], abs=0.02)


def test_nobody_speaks_of_a_combination_held_out(conversations: list[str], scenarios: dict[str, Scenario]) -> None:
    """Agents who answer about the wrong item or problem must not give away what the test asks either."""
    spelled_right = [scenario for scenario in scenarios.values() if world.in_catalogue(scenario.item)]
    assert len(spelled_right) > 1_500
    for scenario in spelled_right:
        assert not any(is_held_out_item(intent, scenario.item) for intent in scenario.intents), scenario
    for reply in re.findall(r"^agent: (.*)$", "\n".join(conversations).lower(), re.MULTILINE):
        resolved = [intent for intent in INTENTS if intent.evidence in reply]
        assert not any(is_held_out_item(intent, item) for intent in resolved for item in PRODUCT.findall(reply)), reply


def test_no_wording_that_is_held_out_occurs(conversations: list[str], made: dict[str, list[Pair]]) -> None:
    in_corpus = {wording(first_message(text)) for text in conversations}
    assert len(in_corpus & {wording(pair.context) for pair in made["sft_dataset"]}) > 50  # equal ones are found
    assert not in_corpus & {wording(pair.context) for pair in made["sft_test_unseen_wording"]}


def test_phrases_for_restatements_occur_but_are_never_answered(conversations: list[str]) -> None:
    reserved = {tell_tale(phrase) for intent in INTENTS for phrase in intent.restated_only}
    unanswered = "\n".join(text for text in conversations if "Agent:" not in text).lower()
    answered = "\n".join(text for text in conversations if "Agent:" in text).lower()
    assert sum(phrase in unanswered for phrase in reserved) >= 0.9 * len(reserved)
    assert not [phrase for phrase in reserved if phrase in answered]


def test_a_document_becomes_rows_that_decode_back(tokenizer: Tokenizer, conversations: list[str]) -> None:
    """Only the last row ends in <EOS>, and an <EOS> that spills over is no row: it would have nothing to predict."""
    eos = tokenizer.token_to_id("<EOS>")
    for text in [*conversations[:20], "Write <EOS> or <PAD> if you like. " * 20]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text and eos not in ids
        for block_size in (len(ids) + 1, (len(ids) + 1) // 2 + 1):
            rows = corpus.tokenize([text, "a"], tokenizer, block_size)
            assert torch.cat(rows[:-1]).tolist() == [*ids, eos]
            assert [len(row) for row in rows[:-2]] == [block_size] * (len(rows) - 2)
        assert torch.cat(corpus.tokenize([text], tokenizer, len(ids))).tolist() == ids


def test_batches_hold_every_row_once_and_predict_the_next_token() -> None:
    rng = Random(0)  # every row is told from the others by its first token
    rows = [torch.tensor([index, *rng.choices(range(500), k=rng.randint(1, 60))]) for index in range(200)]
    seen, widths = [], []
    for inputs, targets in batches(rows, 256, Random(0)):
        assert inputs.shape == targets.shape and (inputs.shape[1] + 1) * len(inputs) <= 256
        for row_inputs, row_targets in zip(inputs, targets):
            row = rows[row_inputs[0]]
            end = len(row) - 1
            assert torch.equal(row_inputs[:end], row[:-1]) and torch.equal(row_targets[:end], row[1:])
            assert (row_targets[end:] == IGNORE_INDEX).all()
            seen.append(int(row_inputs[0]))
        widths.append(inputs.shape[1])
    assert sorted(seen) == list(range(200))
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE_INDEX
    assert widths != sorted(widths) and len(widths) < 1.2 * sum(map(len, rows)) / 256  # little is padding


def test_chance_decides_which_rows_of_a_length_share_a_batch_and_a_row_may_exceed_it() -> None:
    rows = [torch.tensor([index, 0, 0]) for index in range(8)]
    drawn = [{frozenset(inputs[:, 0].tolist()) for inputs, _ in batches(rows, 6, Random(seed))} for seed in (0, 1)]
    assert drawn[0] != drawn[1] and {len(batch) for batch in drawn[0]} == {2}
    assert [len(inputs) for inputs, _ in batches(rows, 2, Random(0))] == [1] * 8


def test_copy_batch_asks_for_the_repeats_alone() -> None:
    digits = list(range(490, 500))
    inputs, targets = corpus.copy_batch(500, digits, 60 * COPY_LENGTH + 1, Random(0))
    assert inputs.shape == targets.shape == (60, COPY_LENGTH)
    periods = [row.count(IGNORE_INDEX) + 1 for row in targets.tolist()]
    for period, row, row_targets in zip(periods, inputs.tolist(), targets.tolist()):
        assert row_targets == [IGNORE_INDEX] * (period - 1) + row[: COPY_LENGTH - period + 1]  # one period before
        assert row_targets[period - 1 : -1] == row[period:]  # which is also the next token
    assert min(periods) == 4 and max(periods) == COPY_LENGTH // 3
    assert 0.6 < torch.isin(inputs, torch.tensor(digits)).float().mean() < 0.8
    assert len(inputs[::2].unique()) > 100
