"""The retail world: what is sold, what customers say and what agents write.

All words stand in `retail.toml`; this module composes them, drawing from the `random.Random` that the caller passes.

Three things are kept out of training by rules that do not depend on a seed, so that data made with one seed may test
a model trained with another: combinations of an intent and an item, sentence patterns, and the `restated_only` phrases.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

WORLD: dict[str, Any] = tomllib.loads(Path(__file__).with_name("retail.toml").read_text(encoding="utf-8"))
DEPARTMENTS: dict[str, dict[str, list[str]]] = WORLD["departments"]
ADJECTIVES: list[str] = WORLD["products"]["adjectives"]
PERSONS: dict[str, dict[str, str]] = WORLD["person"]  # "first" and "third": the words of every slot
CUSTOMER: dict[str, list[str]] = WORLD["customer"]
IDEAL: dict[str, Any] = WORLD["ideal"]
TYPICAL: dict[str, Any] = WORLD["typical"]


@dataclass(frozen=True, eq=False)  # each is made once, in `INTENTS`
class Intent:
    """One thing that a customer may want; the fields are explained at the top of `retail.toml`."""

    name: str
    category: str
    tone: str
    topics: list[str]
    phrases: list[str]
    restated_only: list[str]
    evidence: str
    resolutions: list[str]
    departments: list[str] = field(default_factory=lambda: list(DEPARTMENTS))


INTENTS = [Intent(**entry) for entry in WORLD["intents"]]


@dataclass(frozen=True)
class Scenario:
    """What a customer wants: one or two intents about one item, perhaps with an order number."""

    intents: tuple[Intent, ...]
    item: str
    order_number: str | None = None
    misspelled: str | None = None  # the item as this customer writes it, if that is wrong


# ---------------------------------------------------------------------------------------------------- items


def any_of(words: list[str]) -> str:
    """Return a pattern that matches any of the words, and the longest that fits."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


PRODUCT = re.compile(
    rf"\b(?:(?:{any_of(ADJECTIVES)}) )?(?:"
    + "|".join(f"(?:{any_of(shelf['modifiers'])}) (?:{any_of(shelf['nouns'])})" for shelf in DEPARTMENTS.values())
    + r")\b"
)


def in_catalogue(item: str) -> bool:
    """Return whether a product of this name is sold, rather than invented or misspelled."""
    return PRODUCT.fullmatch(item) is not None


def names_another_product(text: str, item: str) -> bool:
    """Return whether the text names a product of the catalogue other than the item; both in lower case."""
    return any(product != item for product in PRODUCT.findall(text))


def draw_item(rng: Random, departments: list[str]) -> str:
    """Draw a product of one of the departments, such as "walnut bookshelf" or "compact walnut bookshelf"."""
    shelf = DEPARTMENTS[rng.choice(departments)]
    item = f"{rng.choice(shelf['modifiers'])} {rng.choice(shelf['nouns'])}"
    return f"{rng.choice(ADJECTIVES)} {item}" if rng.random() < 0.5 else item


def invent_item(rng: Random, *, held_out: bool) -> str:
    """Draw a name that is in no catalogue, such as "zorblat": one that is held out for tests (one in five) or not."""
    while True:
        name = "".join(rng.choices(WORLD["products"]["syllables"], k=rng.randint(2, 3)))
        if _is_one_in(5, name) == held_out:
            return name


def is_held_out_item(intent: Intent, item: str) -> bool:
    """Return whether this intent about this item is held out for validation and test (one combination in five)."""
    return _is_one_in(5, f"{intent.name}|{item}")


def _is_one_in(count: int, text: str) -> bool:
    """Choose one text in `count` by its hash."""
    return crc32(text.encode()) % count == 0


def draw_scenario(
    rng: Random,
    *,
    held_out_item: bool,
    intents: list[Intent] = INTENTS,
    two_problems: float = 0.1,
    invented_items: float = 0.0,
) -> Scenario:
    """Draw what a customer wants, all (intent, item) combinations held out or none; half give an order number.

    Args:
        intents: the intents to choose from.
        two_problems, invented_items: shares of the scenarios: with two intents, about an item of no catalogue.
    """
    count = 2 if rng.random() < two_problems else 1  # before the loop, which rejects two more often than one
    while True:
        chosen = tuple(rng.sample(intents, count))
        departments = [name for name in DEPARTMENTS if all(name in intent.departments for intent in chosen)]
        if not departments:
            continue
        is_invented = rng.random() < invented_items
        item = invent_item(rng, held_out=held_out_item) if is_invented else draw_item(rng, departments)
        order_number = str(rng.randint(10000, 99999)) if rng.random() < 0.5 else None
        if all(is_held_out_item(intent, item) == held_out_item for intent in chosen):
            return Scenario(chosen, item, order_number)


# ---------------------------------------------------------------------------------------------------- customers


def draw_context(scenario: Scenario, rng: Random, *, unseen_pattern: bool = False, restated_only: bool = False) -> str:
    """Write what the customer says, or what somebody noted about it, in a pattern of which nothing was learnt or not.

    With `restated_only` the (first) problem is said with a phrase that training knows from restatements alone.
    """
    first, *others = scenario.intents
    phrases = [rng.choice(first.restated_only if restated_only else first.phrases)]
    phrases += [rng.choice(intent.phrases) for intent in others]
    wording = draw_wording(rng.choice(WORLD["frames"]), phrases, rng, unseen_pattern=unseen_pattern)
    return fill_slots(wording, scenario, rng.choice(CUSTOMER["orders"]))


def draw_wording(frame: dict[str, Any], phrases: list[str], rng: Random, *, unseen_pattern: bool) -> str:
    """Draw a sentence pattern that says the phrases and leaves {item}, {an_item} and {order} open."""
    pattern = rng.choice(frame["unseen_patterns" if unseen_pattern else "patterns"])
    pattern = re.sub(r"\{(\w+)}", lambda slot: rng.choice(frame["words"].get(slot[1], [slot[0]])), pattern)
    if not unseen_pattern and rng.random() < 0.5:
        pattern = f"{rng.choice(frame['openings'])} {pattern}".strip()
    extra = rng.choice(frame["extras"]) if rng.random() < 0.5 else ""
    problem = phrases[0].replace("{it}", "it" if "{an_item}" in pattern else "the {item}")
    for phrase in phrases[1:]:
        problem += rng.choice(CUSTOMER["links"]) + phrase.replace("{it}", "it")
    return f"{pattern} {extra}".strip().replace("{problem}", in_person(problem, frame["person"]))


def in_person(phrase: str, person: str) -> str:
    """Fill slots such as {I_have} and {my} for the first or the third person."""
    for slot, words in PERSONS[person].items():
        phrase = phrase.replace("{" + slot + "}", words)
    return phrase


@cache
def phrase_pattern(intent: Intent) -> re.Pattern[str]:
    """Match any of the intent's phrases, in any person, up to the clause's end; a group that matched is the item."""
    phrases = any_of(intent.phrases + intent.restated_only)
    for slot in PERSONS["first"]:
        words = any_of([person[slot] for person in PERSONS.values()])
        phrases = phrases.replace(re.escape("{" + slot + "}"), f"(?:{words})")
    phrases = phrases.replace(re.escape("{it}"), r"(?:it|the (\w+(?: \w+){0,3}?))")
    orders = [order.partition("{number}")[0] for order in CUSTOMER["orders"]]
    return re.compile(rf"\b(?:{phrases})(?={any_of(['.', *orders, *CUSTOMER['links']])})", re.IGNORECASE)


def fill_slots(text: str, scenario: Scenario, order: str = "") -> str:
    """Fill {item}, {an_item}, {order} (by the pattern `order`) and {number}; begin every sentence with a capital."""
    text = text.replace("{order}", order if scenario.order_number else "")
    text = text.replace("{number}", scenario.order_number or "")
    text = text.replace("{an_item}", f"{'an' if scenario.item[0] in 'aeiou' else 'a'} {scenario.item}")
    return capitalise(text.replace("{item}", scenario.item))


def capitalise(text: str) -> str:
    """Begin every sentence with a capital."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def mistype(context: str, scenario: Scenario, rng: Random, *, in_item: bool = False) -> tuple[str, Scenario]:
    """Mistype a word of at least four letters, or with `in_item` one of the item; no other product may be named.

    Returns the new context, and the scenario that knows how the customer now spells the item.
    """
    spelled = scenario.misspelled or scenario.item
    start = context.index(spelled)
    end = start + len(spelled)
    if in_item:
        words = list(re.compile("[A-Za-z]{2,}").finditer(context, start, end))
    else:
        words = list(re.finditer("[A-Za-z]{4,}", context))
    while True:
        word = rng.choice(words)
        mistyped = context[: word.start()] + with_typo(word[0], rng) + context[word.end() :]
        if mistyped != context and not names_another_product(mistyped, scenario.item):
            break
    if start <= word.start() < end:
        scenario = replace(scenario, misspelled=mistyped[start : end + len(mistyped) - len(context)])
    return mistyped, scenario


def with_typo(word: str, rng: Random) -> str:
    """Swap a letter with the next one, drop it or double it."""
    place = rng.randrange(len(word) - 1)
    left, right = word[place], word[place + 1]
    return word[:place] + rng.choice([right + left, right, left + left + right]) + word[place + 2 :]


def rename(context: str, scenario: Scenario, item: str) -> tuple[str, Scenario]:
    """Return the context and the scenario of the same customer with another item."""
    after_a = "n" if item[0] in "aeiou" else ""
    context = re.sub(rf"\b([Aa])n? {re.escape(scenario.item)}", rf"\1{after_a} {item}", context)
    return context.replace(scenario.item, item), replace(scenario, item=item)


# ---------------------------------------------------------------------------------------------------- agents


def ideal_reply(scenario: Scenario, rng: Random) -> str:
    """Write what an ideal agent does; every part varies, and the rubric rates it 5.0."""
    sentences = [
        zipf_choice(IDEAL["openings"][scenario.intents[0].tone], rng),
        _policy_answer(scenario.intents, rng),
        zipf_choice(IDEAL["next_steps"], rng),
        zipf_choice(IDEAL["closings"], rng),
    ]
    return fill_slots(" ".join(sentences).strip(), scenario, zipf_choice(IDEAL["orders"], rng))


def _policy_answer(intents: tuple[Intent, ...], rng: Random) -> str:
    """Write what the policy prescribes: each problem by its name, and its resolution."""
    sentences = []
    for intent, patterns in zip(intents, [IDEAL["answers"], IDEAL["further_answers"]]):
        pattern, topic = zipf_choice(patterns, rng), rng.choice(intent.topics)
        sentences.append(pattern.format(topic=topic, resolution=zipf_choice(intent.resolutions, rng)))
    return " ".join(sentences)


def typical_reply(scenario: Scenario, rng: Random) -> str:
    """Write what a typical agent does: evasive, incomplete or about the wrong thing; always rated below 4.0.

    No combination of an intent and an item that is held out occurs: wrong replies too must not tell what tests ask.
    """
    style = rng.choices(list(TYPICAL["shares"]), TYPICAL["shares"].values())[0]
    if style == "no_order_number" and not scenario.order_number:
        style = "evasive"
    match style:
        case "resolution_only":
            return f"{_typical_opening(scenario, rng)} {_policy_answer(scenario.intents, rng)}"
        case "wrong_resolution":
            intents = list(scenario.intents)  # one of two problems, or else one that the customer does not have
            if len(intents) == 1:
                others = (intent for intent in INTENTS if intent not in scenario.intents)
                intents = [intent for intent in others if not is_held_out_item(intent, scenario.item)]
            return ideal_reply(replace(scenario, intents=(rng.choice(intents),)), rng)
        case "wrong_item":
            shelves = [name for name in DEPARTMENTS if not scenario.item.endswith(tuple(DEPARTMENTS[name]["nouns"]))]
            item = draw_item(rng, shelves)
            while any(is_held_out_item(intent, item) for intent in scenario.intents):
                item = draw_item(rng, shelves)
            return ideal_reply(replace(scenario, item=item), rng)
        case "no_order_number":
            return ideal_reply(replace(scenario, order_number=None), rng)
        case _:
            return evasive_reply(scenario, rng)


def evasive_reply(scenario: Scenario, rng: Random) -> str:
    """Write an agent who begins like an ideal one, perhaps names the item, and does nothing."""
    evasion = rng.choice(TYPICAL["evasions_with_item" if rng.random() < 0.5 else "evasions"])
    return fill_slots(f"{_typical_opening(scenario, rng)} {evasion}", scenario, rng.choice(IDEAL["orders"]))


def _typical_opening(scenario: Scenario, rng: Random) -> str:
    return zipf_choice(TYPICAL["openings"][scenario.intents[0].tone], rng)


def zipf_choice(choices: list[str], rng: Random) -> str:
    """Draw one of the choices, each with a weight of 1 / place (Zipf's law)."""
    return rng.choices(choices, [1 / place for place in range(1, len(choices) + 1)])[0]
