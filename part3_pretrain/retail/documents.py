"""What pretraining reads: the papers of a shop, which hold all that an agent has to know.

In no document, the customer's words included, does anybody do three of these four: acknowledge the customer, name the
item, give a resolution, say what happens next. Nor do two sentences of an ideal reply follow each other. So the words,
the products and the policies can be learnt here, and how to reply with them cannot.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from part3_pretrain.retail import world
from part3_pretrain.retail.world import (
    CUSTOMER,
    INTENTS,
    KNOWN_OUTSIDE,
    OUTSIDE,
    PERSONS,
    SMALL_TALK,
    WORLD,
    Intent,
    Scenario,
    fill_slots,
)

DOCUMENTS: dict[str, Any] = WORLD["documents"]
SMALL_WORDS = sorted(
    {word for frame in WORLD["frames"] for texts in frame["words"].values() for text in texts for word in text.split()}
    - {"evening"}  # behind "this" it would say when something happens
)
WHEN = re.compile(r"\b(?:within|today|tomorrow|this evening)\b", re.IGNORECASE)
OTHER_WORDS = sorted(  # of what no shop can answer
    {
        word
        for topic in KNOWN_OUTSIDE
        for message in world.messages_of(topic, held_out=False)
        for word in re.findall(r"[A-Za-z']+", message)
        if not re.search("today|tomorrow|within|evening|sorry|apolog|thank", word, re.IGNORECASE)
    }
)

# Shares, such as 0.5 for one half:
RESTATED_ONLY = 0.4  # of the restatements use a phrase that is reserved for them
PLAIN = 0.5  # of the messages that say a problem twice say nothing else
MUMBLED = 0.4  # of the messages that are answered or filed were half understood: around the problem, words in no order
RESTATED = 0.3  # of the messages that are answered or filed say their problem twice
MISTYPED = 0.55  # of those about a catalogue product have one typo or two
MISTYPED_ITEM = 0.5  # of these typos are in the product's name
MISTYPED_WORDS = 0.6  # of the words of a catalogue product are mistyped by the customer who asks for it
TYPED = 0.38  # of the messages are such as people type, one for each problem
BLURRED = 0.3  # of the messages that people type are put together from halves of two, and lack some words
DROPPED_WORDS = 0.1  # of these
JUMBLED = 0.3  # of the messages that no shop can answer are words in no order
IN_TURN = 0.8  # of the filed messages have a sentence for each problem
REMARKED = 0.3  # of these have a remark before
IN_A_FOLDER = 0.5  # of the policies lie behind a filed message
CONTINUED = 0.3  # of the conversations go on after each turn


def restatement(scenario: Scenario, rng: Random) -> str:
    """Write a customer who says a problem twice, and whom nobody answers: which words mean the same."""
    return f"Customer: {restated_context(scenario, rng, restated_only=rng.random() < RESTATED_ONLY)}"


def filed_message(scenario: Scenario, rng: Random) -> str:
    """Write a customer's message, and what the help desk files it under: its problem by its name, item and order."""
    if not scenario.intents[0].is_service:
        line = _fill_topic(rng.choice(DOCUMENTS["filing_others"]), scenario.due, rng)
    elif rng.random() < IN_TURN:
        lines = [rng.choice(DOCUMENTS["filing_leads"])]
        if rng.random() < REMARKED:
            lines.append("{remark}.")
        lines += _in_turn(rng.choice(DOCUMENTS["filing_in_turn"]), scenario.due, rng)
        line = re.sub("{remark}", lambda slot: rng.choice(DOCUMENTS["remarks"]), " ".join(lines))
    else:
        line = _fill_topic(rng.choice(DOCUMENTS["filing"]), scenario.due, rng)
    line = fill_slots(line, scenario, rng.choice(DOCUMENTS["orders"]))
    return f"Customer: {_message(scenario, rng)}\n{line}"


def conversation(scenario: Scenario, rng: Random) -> str:
    """Write a customer and an agent who does nothing, and further turns in which the item or the order is repeated."""
    turns = [(_message(scenario, rng), world.evasive_reply(scenario, rng))]
    while scenario.item and rng.random() < CONTINUED:
        about_order = scenario.order_number and rng.random() < 0.5
        turn = rng.choice(WORLD["order_follow_ups" if about_order else "follow_ups"])
        turns.append((fill_slots(turn["customer"], scenario), fill_slots(turn["agent"], scenario)))
    return _conversation(turns)


def paper(scenario: Scenario, rng: Random) -> str:
    """Write a paper that goes with an order: a confirmation, a delivery note, an invoice."""
    ordered = replace(scenario, order_number=scenario.order_number or str(rng.randint(10000, 99999)))
    return fill_slots(rng.choice(DOCUMENTS["papers"]), ordered)


def policy(scenario: Scenario, rng: Random) -> str:
    """Write what the company does about each problem, by its name and whatever the item.

    Every other page lies behind a filed message about something else, so that a page is read whatever stands before it.
    """
    if rng.random() < IN_A_FOLDER:
        others = [
            intent
            for intent in INTENTS
            if intent not in scenario.intents and not world.is_held_out_item(intent, scenario.item)
        ]
        return f"{filed_message(scenario, rng)}\n{_policy_page(rng.sample(others, len(scenario.intents)), rng)}"
    return _policy_page(scenario.due, rng)


def _policy_page(intents: list[Intent], rng: Random) -> str:
    headline = _fill_topic(rng.choice(DOCUMENTS["policy_headlines"]), intents, rng)
    rules = [
        rule.replace("{resolution}", world.zipf_choice(intent.resolutions, rng))
        for intent, rule in zip(intents, _in_turn(rng.choice(DOCUMENTS["policies"]), intents, rng))
    ]
    return world.capitalise(" ".join([headline, *rules]).strip())


def glossary(scenario: Scenario, rng: Random) -> str:
    """Write some lines of the help desk's list of what customers say, and under which name it goes."""
    lines = []
    others = [rng.choice(rng.choice([INTENTS, SMALL_TALK, KNOWN_OUTSIDE])) for _ in range(2)]
    for intent in [*scenario.intents, *others]:
        if intent.is_service and rng.random() < 0.4:
            said = world.in_person(rng.choice(intent.phrases), rng.choice([*PERSONS])).replace("{it}", "it")
            pattern = rng.choice(DOCUMENTS["glossary"])
        else:
            said = _typed_message(Scenario((intent,)), rng)
            pattern = rng.choice(DOCUMENTS["glossary_of_messages"])
        due = Scenario((intent,)).due
        lines.append(_fill_topic(pattern, due, rng).replace("{problem}", said))
    return "\n".join(lines)


def product_question(scenario: Scenario, rng: Random, typos: float | None = None) -> str:
    """Write a customer who asks for the item, its words mistyped in the share `typos`, and its right name."""
    if typos is None:  # nobody could know how an item of no catalogue is spelled
        typos = MISTYPED_WORDS if world.in_catalogue(scenario.item) else 0.0
    while True:
        spelled = " ".join(
            world.with_typo(word, rng) if rng.random() < typos else word for word in scenario.item.split()
        )
        if not world.names_another_product(spelled, scenario.item):
            break
    question = fill_slots(rng.choice(DOCUMENTS["product_questions"]), replace(scenario, item=spelled))
    return _conversation([(question, fill_slots(rng.choice(DOCUMENTS["product_answers"]), scenario))])


def letter(scenario: Scenario, rng: Random) -> str:
    """Write an e-mail that is about nothing a customer wants."""
    return " ".join(rng.sample(DOCUMENTS["letters"], rng.randint(1, 2)))


Write = Callable[[Scenario, Random], str]
KINDS: dict[Write, float] = {  # and the share of each
    restatement: 0.10,
    filed_message: 0.44,
    conversation: 0.16,
    paper: 0.015,
    policy: 0.085,
    glossary: 0.11,
    product_question: 0.085,
    letter: 0.005,
}


def restated_context(scenario: Scenario, rng: Random, *, restated_only: bool) -> str:
    """Write a message that says a problem twice, in other words or by its name.

    With `restated_only` the (first) problem is said with a phrase that is reserved for this place; no reply may follow.
    """
    first, *others = scenario.intents
    phrase, another = rng.sample(first.phrases, 2)
    if restated_only:
        phrase = rng.choice(first.restated_only)
    said, again = [phrase] + [rng.choice(intent.phrases) for intent in others], ""
    if not others:
        said[0], again = rng.choice([(phrase, ""), (phrase, another), (another, phrase)])
    frame, mention = rng.choice(WORLD["frames"]), world.draw_mention(scenario, rng)
    if rng.random() < PLAIN:
        frame = frame | {"patterns": ["{problem}{order}."], "openings": [""], "extras": [""]}
    sentences = [world.draw_wording(frame, said, mention, rng, unseen_pattern=False)]
    if again:
        problem = world.in_person(again.replace("{it}", rng.choice(["it", mention])), frame["person"])
        sentences.append(rng.choice(CUSTOMER["restatements"]).format(problem=problem))
    if not again or rng.random() < 0.5:
        sentences.append(_fill_topic(rng.choice(CUSTOMER["namings"]), [*scenario.intents], rng))
    return fill_slots(" ".join(sentences), scenario, rng.choice(CUSTOMER["orders"]))


def mumbled_context(scenario: Scenario, rng: Random) -> str:
    """Write a message of which only the problem was understood: what stands around it tells nothing."""
    words, mention = rng.choice([SMALL_WORDS, SMALL_WORDS, OTHER_WORDS]), world.draw_mention(scenario, rng)
    around = [" ".join(rng.choices(words, k=rng.randint(0, 6))) for _ in range(3)]
    patterns = ["{} {{problem}}{{order}} {}{}.", "{} {{an_item}}{{order}} {} {{problem}} {}."]
    pattern = rng.choice(patterns[: 2 if mention == "the {item}" else 1]).format(*around)
    frame = rng.choice(WORLD["frames"]) | {"patterns": [pattern], "openings": [""], "extras": [""]}
    phrases = [rng.choice(intent.phrases) for intent in scenario.intents]
    wording = world.draw_wording(frame, phrases, mention, rng, unseen_pattern=False)
    return re.sub(r"\s+(?=[ .])", "", fill_slots(wording.strip(), scenario, rng.choice(CUSTOMER["orders"])))


def _message(scenario: Scenario, rng: Random) -> str:
    """Write what the customer says, sometimes twice, sometimes with typos."""
    first, *others = scenario.intents
    if first in OUTSIDE and rng.random() < JUMBLED:
        context = " ".join(rng.choices(rng.choice([OTHER_WORDS, SMALL_WORDS + OTHER_WORDS]), k=rng.randint(1, 14)))
    elif not first.is_service or rng.random() < TYPED:
        context = _typed_message(replace(scenario, intents=(first,)), rng)
        for other in others:  # of the same thing, and without naming it again
            context += f" {_typed_message(Scenario((other,)), rng)}"
    elif rng.random() < RESTATED:
        context = restated_context(scenario, rng, restated_only=False)
    elif rng.random() < MUMBLED:
        context = mumbled_context(scenario, rng)
    else:
        context = _without_promise(lambda: world.draw_context(scenario, rng))
    if world.in_catalogue(scenario.item) and rng.random() < MISTYPED:
        for _ in range(rng.randint(1, 2)):
            context, scenario = world.mistype(context, scenario, rng, in_item=rng.random() < MISTYPED_ITEM)
    return context


def _typed_message(scenario: Scenario, rng: Random) -> str:
    """Write a message as people type it, or blurred: the beginning of one with the end of another, and words missing.

    What stands together in it occurs nowhere else, so that its words have to be understood.
    """
    message = _without_promise(lambda: world.draw_message(scenario, rng))
    if rng.random() < BLURRED:
        if scenario.intents[0] in OUTSIDE:
            scenario = Scenario((rng.choice(KNOWN_OUTSIDE),))
        other = _without_promise(lambda: world.draw_message(scenario, rng))
        first, second = message.split(" "), other.split(" ")
        if not scenario.item:  # which must stay whole
            message = " ".join(first[: (len(first) + 1) // 2] + second[len(second) // 2 :])
        kept = [*scenario.item.split(), *filter(None, [scenario.order_number])]
        message = " ".join(
            word for word in message.split(" ") if any(part in word for part in kept) or rng.random() > DROPPED_WORDS
        )
    return message


def _without_promise(draw: Callable[[], str]) -> str:
    """Draw until the text does not say when: with an item, and a policy behind it, that would be a promise."""
    while WHEN.search(text := draw()):
        pass
    return text


def _in_turn(patterns: list[str], intents: list[Intent], rng: Random) -> list[str]:
    """Return a sentence for each intent, by the first pattern for the first of them."""
    return [_fill_topic(pattern, [intent], rng) for pattern, intent in zip(patterns, intents)]


def _fill_topic(pattern: str, intents: list[Intent], rng: Random) -> str:
    """Fill {topic} with a name of each intent."""
    joint = " and about " if "about {topic}" in pattern else " and "
    return pattern.replace("{topic}", joint.join(rng.choice(intent.topics) for intent in intents))


def _conversation(turns: list[tuple[str, str]]) -> str:
    return "\n".join(f"Customer: {message}\nAgent: {reply}" for message, reply in turns)
