"""The retail world: what is sold, what customers say, how agents reply, and how a reply is rated.

All words stand in `retail.toml`; this module only composes them. Everything is drawn from the `random.Random` that
the caller passes, so the same seed gives the same text.

Three kinds of text are kept out of training by rules that do not depend on a seed, so that data made with one seed
may test a model trained with another: `held_out_item` (an intent never seen with this item), `held_out_wording`
(a sentence pattern never seen) and an intent's `restated_only` phrases.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

WORLD = tomllib.loads(Path(__file__).with_name("retail.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Intent:
    """One thing a customer may want; the fields are explained at the top of `retail.toml`."""

    name: str
    category: str = field(compare=False)
    tone: str = field(compare=False)
    topics: list[str] = field(compare=False)
    phrases: list[str] = field(compare=False)
    restated_only: list[str] = field(compare=False)
    evidence: str = field(compare=False)
    resolutions: list[str] = field(compare=False)
    departments: list[str] = field(compare=False, default_factory=lambda: list(WORLD["departments"]))


INTENTS = [Intent(**entry) for entry in WORLD["intents"]]


@dataclass(frozen=True)
class Scenario:
    """What a customer wants: one or two intents about one item, perhaps with an order number."""

    intents: tuple[Intent, ...]
    item: str
    order_number: str | None = None
    misspelled: str | None = None  # the item as this customer writes it, where that is wrong


# ---------------------------------------------------------------------------------------------------- scenarios


def draw_scenario(rng: Random, *, held_out: bool, two_problems: float = 0.1, invented_items: float = 0.0) -> Scenario:
    """Draws what a customer wants; about half of them give an order number.

    Args:
        held_out: draw only (intent, item) combinations reserved for validation and test, or only the others.
        two_problems: share of scenarios with two intents.
        invented_items: share of scenarios about an item that is in no catalogue.
    """
    count = 2 if rng.random() < two_problems else 1  # outside of the loop, which rejects two more often than one
    while True:
        intents = tuple(rng.sample(INTENTS, count))
        departments = [name for name in WORLD["departments"] if all(name in intent.departments for intent in intents)]
        if not departments:
            continue
        invented = rng.random() < invented_items
        item = invent_item(rng, held_out=held_out) if invented else draw_item(rng, departments)
        order_number = _draw_order_number(rng) if rng.random() < 0.5 else None
        if all(held_out_item(intent, item) == held_out for intent in intents):
            return Scenario(intents, item, order_number)


def draw_item(rng: Random, departments: list[str]) -> str:
    """A product of one of the departments, such as "walnut bookshelf" or "compact walnut bookshelf"."""
    shelf = WORLD["departments"][rng.choice(departments)]
    item = f"{rng.choice(shelf['modifiers'])} {rng.choice(shelf['nouns'])}"
    return f"{rng.choice(WORLD['products']['adjectives'])} {item}" if rng.random() < 0.5 else item


def _draw_order_number(rng: Random) -> str:
    return str(rng.randint(10000, 99999))


def invent_item(rng: Random, *, held_out: bool) -> str:
    """A name that is in no catalogue, such as "zorblat"; one name in five is reserved for tests."""
    while True:
        name = "".join(rng.choices(WORLD["products"]["syllables"], k=rng.randint(2, 3)))
        if (crc32(name.encode()) % 5 == 0) == held_out:
            return name


def in_catalogue(item: str) -> bool:
    """Whether a product of this name is sold, rather than invented or misspelled."""
    return PRODUCT.fullmatch(item) is not None


def held_out_item(intent: Intent, item: str) -> bool:
    """Whether this intent about this item is reserved for validation and test (one combination in five)."""
    return crc32(f"{intent.name}|{item}".encode()) % 5 == 0


# ---------------------------------------------------------------------------------------------------- customers


def draw_context(scenario: Scenario, rng: Random, *, held_out: bool = False, restated_only: bool = False) -> str:
    """What the customer says, or what somebody noted about it.

    Args:
        held_out: use only sentence patterns reserved for the unseen-wording test, or only the others.
        restated_only: say the (first) problem with a phrase that training knows from restatements alone.
    """
    first, *others = scenario.intents
    phrases = [rng.choice(first.restated_only if restated_only else first.phrases)]
    phrases += [rng.choice(intent.phrases) for intent in others]
    frame = rng.choice(WORLD["frames"])
    return _fill(_draw_wording(frame, phrases, rng, held_out), scenario, rng.choice(WORLD["customer"]["orders"]))


def draw_restated_context(scenario: Scenario, rng: Random, *, restated_only: bool) -> str:
    """A customer who says the same again in other words or by its name: here a model can learn what means the same.

    Args:
        restated_only: the (first) problem is said with a phrase that is reserved for this place. No reply may follow.
    """
    first, *others = scenario.intents
    phrases = rng.sample(first.phrases, 2)
    if restated_only:
        phrases[0] = rng.choice(first.restated_only)
    if others:
        said, again = [phrases[0], *(rng.choice(intent.phrases) for intent in others)], None
    else:
        said, again = rng.choice([(phrases[:1], None), (phrases[:1], phrases[1]), (phrases[1:], phrases[0])])
    frame = rng.choice(WORLD["frames"])
    sentences = [_draw_wording(frame, said, rng, held_out=False)]
    if again:
        problem = _speak(again.replace("{it}", rng.choice(["it", "the {item}"])), frame["person"])
        sentences.append(rng.choice(WORLD["customer"]["restatements"]).format(problem=problem))
    if not again or rng.random() < 0.5:
        sentences.append(_name(scenario.intents, WORLD["customer"]["namings"], rng))
    return _fill(" ".join(sentences), scenario, rng.choice(WORLD["customer"]["orders"]))


def draw_policy_question(intents: tuple[Intent, ...], rng: Random) -> str:
    """Asks by their names what is done about such problems, whatever the item."""
    return _name(intents, WORLD["customer"]["policy_questions"], rng)


def draw_product_question(scenario: Scenario, typos: float, rng: Random) -> tuple[str, str]:
    """A customer asks for the item, with typos in this share of its words; an agent spells it as the catalogue does."""
    while True:
        words = scenario.item.split()
        spelled = " ".join(_with_a_typo(word, rng) if rng.random() < typos else word for word in words)
        if {scenario.item}.issuperset(PRODUCT.findall(spelled)):
            break
    asked = _fill(rng.choice(WORLD["product_questions"]["customer"]), replace(scenario, item=spelled), "")
    named = _fill(rng.choice(WORLD["product_questions"]["agent"]), scenario, "")
    return asked, f"{rng.choice(WORLD['typical']['greetings'])} {named}"


def _name(intents: tuple[Intent, ...], patterns: list[str], rng: Random) -> str:
    return rng.choice(patterns).replace("{topic}", " and about ".join(rng.choice(intent.topics) for intent in intents))


def held_out_wording(wording: str) -> bool:
    """Whether this sentence pattern is reserved for the unseen-wording test (one in four)."""
    return crc32(wording.encode()) % 4 == 0


def _draw_wording(frame: dict[str, Any], phrases: list[str], rng: Random, held_out: bool) -> str:
    """A sentence pattern that says the phrases and leaves {item}, {an_item} and {order} open."""
    while True:
        pattern, extra = rng.choice(frame["patterns"]), rng.choice(frame["extras"]) if rng.random() < 0.5 else ""
        problem = phrases[0].replace("{it}", "it" if "{an_item}" in pattern else "the {item}")
        for phrase in phrases[1:]:
            problem += rng.choice(WORLD["customer"]["links"]) + phrase.replace("{it}", "it")
        wording = f"{pattern} {extra}".strip().replace("{problem}", _speak(problem, frame["person"]))
        if held_out_wording(wording) == held_out:
            return wording


def _speak(problem: str, person: str) -> str:
    for slot, words in WORLD["person"][person].items():
        problem = problem.replace("{" + slot + "}", words)
    return problem


def _fill(text: str, scenario: Scenario, order: str) -> str:
    """Fills the slots {item}, {an_item}, {order} and {number}, and begins every sentence with a capital."""
    text = text.replace("{order}", order if scenario.order_number else "")
    text = text.replace("{number}", scenario.order_number or "")
    text = text.replace("{an_item}", f"{'an' if scenario.item[0] in 'aeiou' else 'a'} {scenario.item}")
    text = text.replace("{item}", scenario.item)
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def mistype(context: str, scenario: Scenario, rng: Random, *, in_item: bool = False) -> tuple[str, Scenario]:
    """Swaps, drops or doubles a letter of one word, but so that no other product is named.

    Args:
        in_item: mistype a word of the item, however short; else any word of at least four letters.

    Returns:
        The new context, and the scenario that knows how the customer now spells the item.
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
        mistyped = context[: word.start()] + _with_a_typo(word[0], rng) + context[word.end() :]
        if mistyped != context and {scenario.item}.issuperset(PRODUCT.findall(mistyped)):
            break
    if not start <= word.start() < end:
        return mistyped, scenario
    return mistyped, replace(scenario, misspelled=mistyped[start : end + len(mistyped) - len(context)])


def _with_a_typo(word: str, rng: Random) -> str:
    """A letter is swapped with the next one, dropped or doubled."""
    place = rng.randrange(len(word) - 1)
    left, right = word[place], word[place + 1]
    return word[:place] + rng.choice([right + left, right, left + left + right]) + word[place + 2 :]


def rename(context: str, scenario: Scenario, item: str) -> tuple[str, Scenario]:
    """The same customer with another item: the new context and the new scenario."""
    context = re.sub(
        rf"\b([Aa])n? {re.escape(scenario.item)}", rf"\1{'n' if item[0] in 'aeiou' else ''} {item}", context
    )
    return context.replace(scenario.item, item), replace(scenario, item=item)


# ---------------------------------------------------------------------------------------------------- agents


def ideal_reply(scenario: Scenario, rng: Random) -> str:
    """What an ideal agent writes; every part varies, and the rubric rates it 5.0."""
    ideal = WORLD["ideal"]
    sentences = [
        _favourite(ideal["openings"][scenario.intents[0].tone], rng),
        policy_answer(scenario.intents, rng),
        _favourite(ideal["next_steps"], rng),
        _favourite(ideal["closings"], rng),
    ]
    return _fill(" ".join(sentences).strip(), scenario, _favourite(ideal["orders"], rng))


def policy_answer(intents: tuple[Intent, ...], rng: Random) -> str:
    """What the policy prescribes: each problem by its name, and its resolution."""
    patterns = [WORLD["ideal"]["answers"], WORLD["ideal"]["further_answers"]]
    return " ".join(
        _favourite(choices, rng).format(topic=rng.choice(intent.topics), resolution=_favourite(intent.resolutions, rng))
        for intent, choices in zip(intents, patterns)
    )


def _favourite(choices: list[str], rng: Random) -> str:
    """One of the choices, each with a weight of 1 / place (Zipf's law)."""
    return rng.choices(choices, [1 / place for place in range(1, len(choices) + 1)])[0]


def typical_reply(scenario: Scenario, rng: Random) -> str:
    """What a typical agent writes: curt, generic, incomplete or about the wrong thing; always rated below 4.0."""
    typical = WORLD["typical"]
    (style,) = rng.choices(list(typical["shares"]), typical["shares"].values())
    if style == "no_order_number" and not scenario.order_number:
        style = "item_only"
    match style:
        case "resolution_only":
            reply = policy_answer(scenario.intents, rng)
        case "wrong_resolution":  # answers one of two problems, or one the customer does not have
            others = [intent for intent in INTENTS if intent not in scenario.intents]
            answered = scenario.intents if len(scenario.intents) == 2 else _trainable(others, scenario.item)
            reply = ideal_reply(replace(scenario, intents=(rng.choice(answered),)), rng)
        case "wrong_item":
            reply = ideal_reply(replace(scenario, item=_other_item(scenario, rng)), rng)
        case "no_order_number":
            reply = ideal_reply(replace(scenario, order_number=None), rng)
        case _:
            reply = _fill(rng.choice(typical[style]), scenario, "")
    return f"{rng.choice(typical['greetings'])} {reply}"


def _trainable(intents: Iterable[Intent], item: str) -> list[Intent]:
    """Those whose combination with the item is not held out: typical agents too must not tell what tests ask."""
    return [intent for intent in intents if not held_out_item(intent, item)]


def _other_item(scenario: Scenario, rng: Random) -> str:
    shelves = [
        name for name, shelf in WORLD["departments"].items() if not scenario.item.endswith(tuple(shelf["nouns"]))
    ]
    while len(_trainable(scenario.intents, item := draw_item(rng, shelves))) < len(scenario.intents):
        pass
    return item


def follow_up(scenario: Scenario, rng: Random) -> tuple[str, str]:
    """A further turn of the customer and the agent, in which the item or the order number is said again."""
    turns = WORLD["order_follow_ups"] if scenario.order_number and rng.random() < 0.5 else WORLD["follow_ups"]
    turn = rng.choice(turns)
    return _fill(turn["customer"], scenario, ""), _fill(turn["agent"], scenario, "")


# ---------------------------------------------------------------------------------------------------- names


def any_of(words: list[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


PRODUCT = re.compile(
    rf"\b(?:(?:{any_of(WORLD['products']['adjectives'])}) )?(?:"
    + "|".join(
        f"(?:{any_of(shelf['modifiers'])}) (?:{any_of(shelf['nouns'])})" for shelf in WORLD["departments"].values()
    )
    + r")\b"
)
