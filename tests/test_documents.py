"""The documents of the corpus: they hold what an agent must know, and nowhere what an ideal agent does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from random import Random

import pytest

from part3_pretrain import corpus
from part3_pretrain.config import PretrainConfig
from part3_pretrain.retail import documents, world
from part3_pretrain.retail.rubric import recognise
from part3_pretrain.retail.world import IDEAL, INTENTS, OUTSIDE, PRODUCT, SMALL_TALK, WORLD, is_held_out_item
from part4_sft.dataset import Pair
from tests.conftest import draw_scenarios, tell_tale

EVERY_INTENT = INTENTS + [intent.without_order_number for intent in INTENTS if intent.without_order_number]
SYLLABLES = "|".join(WORLD["products"]["syllables"])
ITEM = re.compile(rf"{PRODUCT.pattern}|\b(?:{SYLLABLES}){{2,3}}\b")
# Wider than the rubric: whatever could be meant so.
SIGNS = {
    "acknowledges": re.compile("sorry|apolog|thank you for|thanks for|good to hear"),
    "names the item": ITEM,
    "resolves": re.compile("|".join(re.escape(intent.evidence) for intent in EVERY_INTENT + SMALL_TALK + OUTSIDE[:1])),
    "says what happens next": re.compile(r"within|today|tomorrow|this evening"),
}


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = Random(0)
    return [corpus.draw_document(rng) for _ in range(4_000)]


def masked_sentences(text: str) -> list[str]:
    """The sentences of a text in lower case, with slots where an item and an order stand."""
    text = re.sub(r" \(order \d+\)| from order \d+|, order \d+", "{order}", ITEM.sub("{item}", text.lower()))
    return re.split(r"(?<=[.?!])\s+|\n", re.sub(r"(?m)^(customer|agent): ", "", text))


@cache
def ideal_sentences() -> set[str]:
    """Every sentence of every ideal reply, as `masked_sentences` returns it, with an order and without one."""
    texts = [*IDEAL["next_steps"], *IDEAL["closings"]]
    texts += IDEAL["openings"]["problem"] + IDEAL["openings"]["question"]
    for intent in EVERY_INTENT:
        for pattern in IDEAL["answers"] + IDEAL["further_answers"]:
            texts += [
                pattern.format(topic=topic, resolution=resolution)
                for topic in intent.topics
                for resolution in intent.resolutions
            ]
    return {
        sentence
        for text in texts
        for form in (text, text.replace("{order}", ""))
        for sentence in masked_sentences(form)
    } - {""}


def find_behaviour(texts: list[str]) -> Iterator[str]:
    """Yield the texts in which somebody does three of the four, or two sentences of ideal replies follow each other."""
    ideal = ideal_sentences()
    for text in texts:
        signs = sum(bool(sign.search(text.lower())) for sign in SIGNS.values())
        if signs >= 3 or any(first in ideal and second in ideal for first, second in pairwise(masked_sentences(text))):
            yield text


def test_no_document_holds_the_behaviour(texts: list[str]) -> None:
    assert [*find_behaviour(texts)] == []


def test_the_behaviour_would_be_found() -> None:
    rng = Random(0)
    for scenario in draw_scenarios(60, two_problems=0.5):
        reply = world.ideal_reply(scenario, rng)
        first, second = masked_sentences(reply)[-3:-1]
        assert [*find_behaviour([reply])] == [reply]
        assert {first, second} <= ideal_sentences() | {""}, reply


def test_no_document_begins_to_answer_a_problem_as_ideal_agents_do(texts: list[str]) -> None:
    """Else ten pairs would be enough to learn that. A second problem is another matter: "And as for ..." is known."""
    topics = "|".join(re.escape(topic) for intent in EVERY_INTENT for topic in intent.topics)
    begins = {re.escape(pattern.partition("{topic}")[0]) for pattern in IDEAL["answers"]}
    way = re.compile(rf"(?:{'|'.join(begins)})(?:{topics})\b")
    assert [text for text in texts if way.search(text)] == []
    rng = Random(0)
    assert all(way.search(world.ideal_reply(scenario, rng)) for scenario in draw_scenarios(100))


@pytest.mark.slow
def test_no_document_of_the_whole_corpus_holds_the_behaviour() -> None:
    rng = Random(PretrainConfig.seed)
    texts = [corpus.draw_document(rng) for _ in range(PretrainConfig.conversations)]
    assert [*find_behaviour(texts)] == []


def test_agents_begin_like_ideal_ones_in_the_same_proportions() -> None:
    rng = Random(0)
    scenarios = draw_scenarios(3_000)
    ideal, typical, evasive = (
        Counter(write(scenario, rng).split()[0] for scenario in scenarios)
        for write in (world.ideal_reply, world.typical_reply, world.evasive_reply)
    )
    for counts in (typical, evasive):
        assert sum(abs(counts[word] - ideal[word]) for word in ideal | counts) / 2 < 0.05 * len(scenarios)


def test_a_message_is_filed_under_its_problems_with_its_item_and_order() -> None:
    rng = Random(0)
    for scenario in draw_scenarios(300, two_problems=0.5):
        message, *lines = documents.filed_message(scenario, rng).lower().split("\n")
        filed = "\n".join(lines)
        assert scenario.item in filed and (scenario.order_number or "") in filed
        assert all(any(topic in filed for topic in intent.topics) for intent in scenario.due)
        assert message.startswith("customer: ")


def test_policies_tell_the_resolution_of_each_problem_and_name_no_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "IN_A_FOLDER", 0.0)
    rng = Random(0)
    for scenario in draw_scenarios(300, two_problems=0.5):
        text = documents.policy(scenario, rng).lower()
        assert {intent.evidence for intent in EVERY_INTENT if intent.evidence in text} == {
            intent.evidence for intent in scenario.due
        }
        assert not ITEM.search(text)


def test_a_policy_behind_a_message_is_about_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "IN_A_FOLDER", 1.0)
    rng = Random(0)
    for scenario in draw_scenarios(300, two_problems=0.5):
        text = documents.policy(scenario, rng).lower()
        told = {intent for intent in INTENTS if intent.evidence in text}
        assert len(told) == len(scenario.intents) and told.isdisjoint(scenario.intents)
        assert not any(is_held_out_item(intent, scenario.item) for intent in told)


def test_papers_repeat_item_and_number() -> None:
    rng = Random(0)
    for scenario in draw_scenarios(100):
        text = documents.paper(scenario, rng).lower()
        numbers = re.findall(r"\d{5}", text)
        assert text.count(scenario.item) >= 2 and len(set(numbers)) == 1
        assert scenario.order_number in (None, numbers[0])


def test_further_turns_say_the_item_or_the_order_number_again() -> None:
    rng, turns = Random(0), 0
    for scenario in draw_scenarios(300):
        first, *others = documents.conversation(scenario, rng).split("\nCustomer: ")
        turns += len(others)
        assert first.count("\nAgent: ") == 1
        assert all(scenario.item in turn or scenario.order_number in turn for turn in others)
    assert 60 < turns < 200


def test_whoever_asks_for_a_product_is_told_its_right_name() -> None:
    rng = Random(0)
    for typos in (0.0, 0.5, 1.0):
        for scenario in draw_scenarios(100):
            question, answer = documents.product_question(scenario, rng, typos).split("\nAgent: ")
            assert not world.names_another_product(question.lower(), scenario.item)
            assert typos == 0.5 or bool(re.search(rf"\b{scenario.item}\b", question.lower())) == (typos == 0.0)
            assert scenario.item in answer.lower()


def test_nobody_speaks_of_a_combination_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "MISTYPED", 0.0)  # a product with a typo is read back as another
    monkeypatch.setattr(documents, "BLURRED", 0.0)
    rng = Random(0)
    scenarios = [scenario for _ in range(2_000) if (scenario := recognise(corpus.draw_document(rng)))]
    named = [scenario for scenario in scenarios if world.in_catalogue(scenario.item)]
    assert len(named) > 450
    for scenario in named:
        # Some messages about where an order is are of two words, "delivery time", and stand in those of others too.
        intents = [intent for intent in scenario.intents if intent.name != "order_status" or len(scenario.intents) == 1]
        assert not any(is_held_out_item(intent, scenario.item) for intent in intents), scenario


def test_no_sentence_pattern_that_is_held_out_occurs(texts: list[str], made: dict[str, list[Pair]]) -> None:
    """Whole patterns are: what stands in the unseen ones around the slots occurs in no text that is learnt from."""
    unseen = [
        re.sub(r"\{\w+}", "", pattern).strip(" .:;,")
        for frame in WORLD["frames"]
        for pattern in frame["unseen_patterns"]
    ]
    learnt = "\n".join(texts + [pair.context for pair in made["sft_dataset"]]).lower()
    for pattern in unseen:
        words = max(re.split(r"\s{2,}|[:;,]", pattern), key=len).strip().lower()
        assert len(words) > 5 and words not in learnt, words
    for pair in made["sft_test_unseen_wording"]:
        assert any(pair.context.lower().startswith(pattern.split()[0].lower()) for pattern in unseen)


def test_phrases_for_restatements_occur_where_nobody_answers_or_files(texts: list[str]) -> None:
    reserved = {tell_tale(phrase) for intent in INTENTS for phrase in intent.restated_only}
    unanswered = "\n".join(text for text in texts if "\n" not in text).lower()
    answered = "\n".join(text for text in texts if "\n" in text).lower()
    assert sum(phrase in unanswered for phrase in reserved) >= 0.8 * len(reserved)
    assert not [phrase for phrase in reserved if phrase in answered]
