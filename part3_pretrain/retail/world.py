"""The retail world: what is sold, what customers say and what agents write.

All words stand in `retail.toml` and `messages.toml`; this module composes them, drawing from the `random.Random` that
the caller passes.

Three things are kept out of training by rules that do not depend on a seed, so that data made with one seed may test
a model trained with another: combinations of an intent and an item, sentence patterns, and the `restated_only` phrases.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

WORLD, MESSAGES = (
    tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    for name in ("retail.toml", "messages.toml")
)
DEPARTMENTS: dict[str, dict[str, list[str]]] = WORLD["departments"]
ADJECTIVES: list[str] = WORLD["products"]["adjectives"]
PERSONS: dict[str, dict[str, str]] = WORLD["person"]  # "first" and "third": the words of every slot
CUSTOMER: dict[str, Any] = WORLD["customer"]
GOODS: list[str] = MESSAGES["goods"]  # things of no catalogue, which customers call "my headphones"
IDEAL: dict[str, Any] = WORLD["ideal"]
TYPICAL: dict[str, Any] = WORLD["typical"]

MESSAGES_OF_A_GRAMMAR = 900
MOST_TRIES = 100  # at a typo; where three products are named, none leaves but one of them
IN_A_PATTERN = 0.6  # share of the customers with one problem who say it in a pattern of `[[frames]]`


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
    messages: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)  # what anybody says to small talk, or to what no shop can answer
    without_order_number: Intent | None = None  # what has to be asked first

    @property
    def is_service(self) -> bool:
        """Whether this is what a shop is for, rather than small talk or what no shop can answer."""
        return bool(self.phrases)


def _service_intents() -> Iterator[Intent]:
    for entry in WORLD["intents"]:
        if asks := entry.get("without_order_number"):
            asking = Intent(
                **(entry | asks | {"name": f"{entry['name']}_without_number", "without_order_number": None})
            )
            entry = entry | {"without_order_number": asking}
        messages = [*MESSAGES["messages"][entry["name"]]]
        messages += [text.replace("{topic}", topic) for topic in entry["topics"] for text in MESSAGES["by_topic"]]
        if grammar := MESSAGES["grammars"].get(entry["name"]):
            messages += _compose(grammar, MESSAGES_OF_A_GRAMMAR, Random(entry["name"]))
        yield Intent(**entry, messages=messages)


def _compose(grammar: dict[str, Any], count: int, rng: Random) -> list[str]:
    """Fill the slots of a grammar's templates until there are so many different messages."""
    messages: dict[str, None] = {}
    while len(messages) < count:
        text = rng.choice(grammar["templates"])
        while slot := re.search(r"\{(\w+)}", text):
            text = text.replace(slot[0], rng.choice(grammar["slots"][slot[1]]), 1)
        messages[" ".join(text.split())] = None
    return list(messages)


def _other_intents(kind: str) -> Iterator[Intent]:
    """Read small talk, or what is handed over: one intent a topic, whose resolutions are the whole replies."""
    same: dict[str, Any] = {"category": kind.replace("_", " "), "tone": "question", "phrases": [], "restated_only": []}
    for entry in MESSAGES[kind]:
        words = WORLD[kind] | WORLD[kind].get(entry["name"], {})
        own = {name: words[name] for name in ("evidence", "topics", "answers")}
        resolutions = [f"{answer} {offer}" for answer in words["answers"] for offer in words["offers"]]
        yield Intent(**same, **entry, **own, resolutions=resolutions)


INTENTS = [*_service_intents()]
SMALL_TALK = [*_other_intents("small_talk")]
OUTSIDE = [*_other_intents("hand_over")]  # what is handed over to a person


@dataclass(frozen=True)
class Scenario:
    """What a customer wants: one or two intents, about an item or none, perhaps with an order number."""

    intents: tuple[Intent, ...]
    item: str = ""  # if one is named
    order_number: str | None = None
    misspelled: str | None = None  # the item as this customer writes it, if that is wrong

    @property
    def due(self) -> list[Intent]:
        """What an agent has to do about each intent: what it says, or ask for the order number first."""
        return [(not self.order_number and intent.without_order_number) or intent for intent in self.intents]


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


def _is_one_in(count: int, text: str) -> bool:
    """Choose one text in `count` by its hash."""
    return crc32(text.encode()) % count == 0


def is_held_out_item(intent: Intent, item: str) -> bool:
    """Return whether this intent about this item is held out for validation and test (one combination in five)."""
    return bool(item) and _is_one_in(5, f"{intent.name}|{item}")


def is_held_out_topic(intent: Intent) -> bool:
    """Return whether what no shop can answer is about a topic that is held out for a test (one in three)."""
    return _is_one_in(3, intent.name)


KNOWN_OUTSIDE = [topic for topic in OUTSIDE if not is_held_out_topic(topic)]


def messages_of(intent: Intent, *, held_out: bool) -> list[str]:
    """Return those messages of an intent that are held out for a test, every fourth, or the others."""
    return [message for place, message in enumerate(intent.messages, start=1) if (place % 4 == 0) == held_out]


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
        two_problems, invented_items: shares of the scenarios: with two intents, about an item of no catalogue, whose
            name is invented or one of other goods.
    """
    count = 2 if rng.random() < two_problems else 1  # before the loop, which rejects two more often than one
    while True:
        chosen = tuple(rng.sample(intents, count))
        departments = [name for name in DEPARTMENTS if all(name in intent.departments for intent in chosen)]
        if not departments:
            continue
        if rng.random() >= invented_items:
            item = draw_item(rng, departments)
        elif departments == list(DEPARTMENTS) and rng.random() < 0.5:
            item = rng.choice(GOODS)
        else:
            item = invent_item(rng, held_out=held_out_item)
        if all(is_held_out_item(intent, item) == held_out_item for intent in chosen):
            return Scenario(chosen, item, _draw_order_number(rng))


def draw_customer(
    rng: Random,
    *,
    held_out_item: bool,
    shares: dict[str, float] = CUSTOMER["shares"],
    two_problems: float = 0.15,
    invented_items: float = 0.0,
) -> Scenario:
    """Draw whoever may write to a shop: with a product or another thing or none, for a chat, or to the wrong place.

    The other arguments are those of `draw_scenario`.
    """
    match rng.choices(list(shares), list(shares.values()))[0]:
        case "small_talk":
            return Scenario((draw_intent(SMALL_TALK, rng),))
        case "outside":
            return Scenario((draw_intent(KNOWN_OUTSIDE, rng),))
        case "no_item":
            intents = [draw_intent(INTENTS, rng)]
            if rng.random() < two_problems:
                intents = rng.sample(INTENTS, 2)
            return Scenario(tuple(intents), order_number=_draw_order_number(rng))
        case "other_goods":
            intent = rng.choice([intent for intent in INTENTS if intent.departments == list(DEPARTMENTS)])
            item = rng.choice([item for item in GOODS if is_held_out_item(intent, item) == held_out_item])
            return Scenario((intent,), item, _draw_order_number(rng))
        case _:
            return draw_scenario(
                rng, held_out_item=held_out_item, two_problems=two_problems, invented_items=invented_items
            )


def draw_intent(intents: list[Intent], rng: Random) -> Intent:
    """Draw one of the intents, the more often the more messages it has."""
    return rng.choices(intents, [len(intent.messages) for intent in intents])[0]


def _draw_order_number(rng: Random) -> str | None:
    return str(rng.randint(10000, 99999)) if rng.random() < 0.5 else None


# ---------------------------------------------------------------------------------------------------- customers


def draw_context(scenario: Scenario, rng: Random, *, unseen_pattern: bool = False, restated_only: bool = False) -> str:
    """Write what the customer says, or what somebody noted about it, in a pattern of which nothing was learnt or not.

    With `restated_only` the (first) problem is said with a phrase that training knows from restatements alone.
    """
    first, *others = scenario.intents
    if not first.is_service or not (others or unseen_pattern or restated_only or rng.random() < IN_A_PATTERN):
        return draw_message(scenario, rng)
    phrases = [rng.choice(first.restated_only if restated_only else first.phrases)]
    phrases += [rng.choice(intent.phrases) for intent in others]
    mention = draw_mention(scenario, rng)
    wording = draw_wording(rng.choice(WORLD["frames"]), phrases, mention, rng, unseen_pattern=unseen_pattern)
    return fill_slots(wording, scenario, rng.choice(CUSTOMER["orders"]))


def draw_message(scenario: Scenario, rng: Random, *, unseen: bool = False) -> str:
    """Write a message as people type it: one of the intent's own, with or without capitals and full stops.

    With `unseen` it is one that is held out.
    """
    (intent,) = scenario.intents
    messages = messages_of(intent, held_out=unseen)
    message = rng.choice([message for message in messages if "{it}" in message or not scenario.item])
    frame = WORLD["frames"][message.startswith("Customer ")]
    mention = draw_mention(scenario, rng)
    if mention == "the {item}":
        mention = rng.choice([mention, "{my} {item}"])
    text = in_person(message.replace("{it}", mention), frame["person"])
    if scenario.order_number:
        text = text.rstrip(".?!") + rng.choice(CUSTOMER["orders"]) + "."
    if intent.is_service:
        opening, extra = (rng.choice(frame[name]) if rng.random() < 0.2 else "" for name in ("openings", "extras"))
        text = f"{opening} {text} {extra}".strip()
    elif intent in OUTSIDE and rng.random() < 0.2:
        text = f"{rng.choice(frame['openings'])} {text}"
    text = fill_slots(text, scenario)
    if rng.random() < 0.3:
        text = text.rstrip(".?!")
    return text.lower() if rng.random() < 0.5 else text


def draw_mention(scenario: Scenario, rng: Random) -> str:
    """Draw how the customer first speaks of the item, or of the order where no item is named."""
    if not scenario.item:
        return rng.choice(CUSTOMER["mentions"])
    return "{my} {item}" if scenario.item in GOODS else "the {item}"


def draw_wording(frame: dict[str, Any], phrases: list[str], mention: str, rng: Random, *, unseen_pattern: bool) -> str:
    """Draw a sentence pattern that says the phrases and leaves {item}, {an_item} and {order} open.

    Only products of the catalogue, and those with an invented name, are introduced as "a walnut bookshelf".
    """
    patterns = frame["unseen_patterns" if unseen_pattern else "patterns"]
    pattern = rng.choice([one for one in patterns if mention == "the {item}" or "{an_item}" not in one])
    pattern = re.sub(r"\{(\w+)}", lambda slot: rng.choice(frame["words"].get(slot[1], [slot[0]])), pattern)
    if not unseen_pattern and rng.random() < 0.5:
        pattern = f"{rng.choice(frame['openings'])} {pattern}".strip()
    extra = rng.choice(frame["extras"]) if rng.random() < 0.5 else ""
    problem = phrases[0].replace("{it}", "it" if "{an_item}" in pattern else mention)
    for phrase in phrases[1:]:
        problem += rng.choice(CUSTOMER["links"]) + phrase.replace("{it}", "it")
    return f"{pattern} {extra}".strip().replace("{problem}", in_person(problem, frame["person"]))


def in_person(phrase: str, person: str) -> str:
    """Fill slots such as {I_have} and {my} for the first or the third person."""
    for slot, words in PERSONS[person].items():
        phrase = phrase.replace("{" + slot + "}", words)
    return phrase


def fill_slots(text: str, scenario: Scenario, order: str = "") -> str:
    """Fill {item}, {an_item}, {order} (by the pattern `order`) and {number}; begin every sentence with a capital.

    Who names no item has an order: "your order 48213".
    """
    item = scenario.item or "order"
    if not scenario.item:
        text = text.replace("{item}{order}", "{item} {number}" if scenario.order_number else "{item}")
    text = text.replace("{order}", order if scenario.order_number else "")
    text = text.replace("{number}", scenario.order_number or "")
    text = text.replace("{an_item}", f"{'an' if item[0] in 'aeiou' else 'a'} {item}")
    return capitalise(text.replace("{item}", item))


def capitalise(text: str) -> str:
    """Begin every sentence with a capital."""
    return re.sub(r"(^|[.?!] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def mistype(context: str, scenario: Scenario, rng: Random, *, in_item: bool = False) -> tuple[str, Scenario]:
    """Mistype a word of at least four letters, or with `in_item` one of the item; no other product may be named.

    Returns the new context, and the scenario that knows how the customer now spells the item; both as they were where
    no typo is possible.
    """
    spelled = re.search(re.escape(scenario.misspelled or scenario.item), context, re.IGNORECASE)
    start, end = spelled.span() if spelled else (0, 0)
    if in_item:
        words = list(re.compile("[A-Za-z]{2,}").finditer(context, start, end))
    else:
        words = list(re.finditer("[A-Za-z]{4,}", context))
    for _ in range(MOST_TRIES if words else 0):
        word = rng.choice(words)
        mistyped = context[: word.start()] + with_typo(word[0], rng) + context[word.end() :]
        if mistyped != context and not names_another_product(mistyped.lower(), scenario.item):
            if start <= word.start() < end:
                scenario = replace(scenario, misspelled=mistyped[start : end + len(mistyped) - len(context)])
            return mistyped, scenario
    return context, scenario


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
    first = scenario.intents[0]
    if not first.is_service:
        return zipf_choice(first.resolutions, rng)
    sentences = [
        zipf_choice(IDEAL["openings"][first.tone], rng),
        _policy_answer(scenario.due, rng),
        zipf_choice(IDEAL["next_steps"], rng),
        zipf_choice(IDEAL["closings"], rng),
    ]
    return fill_slots(" ".join(sentences).strip(), scenario, zipf_choice(IDEAL["orders"], rng))


class _First(Random):
    """Takes the first of any choices; none has a larger weight."""

    def random(self) -> float:
        return 0.0


def likeliest_reply(scenario: Scenario) -> str:
    """Write the likeliest of all that an ideal agent may say; of topics, which are equally likely, the first."""
    return ideal_reply(scenario, _First())


def _policy_answer(intents: list[Intent], rng: Random) -> str:
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
    unnumbered = replace(scenario, order_number=None)
    if not scenario.intents[0].is_service or (
        style == "no_order_number" and (not scenario.order_number or unnumbered.due != scenario.due)
    ):
        style = "evasive"
    if style == "resolution_only" and not scenario.item:  # which would be good enough
        style = "wrong_resolution"
    match style:
        case "resolution_only":
            return f"{_typical_opening(scenario, rng)} {_policy_answer(scenario.due, rng)}"
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
            return ideal_reply(unnumbered, rng)
        case _:
            return evasive_reply(scenario, rng)


def evasive_reply(scenario: Scenario, rng: Random) -> str:
    """Write an agent who begins like an ideal one, perhaps names the item, and does nothing."""
    if not scenario.intents[0].is_service:
        return rng.choice(scenario.intents[0].answers)
    evasion = rng.choice(TYPICAL["evasions_with_item" if rng.random() < 0.5 else "evasions"])
    return fill_slots(f"{_typical_opening(scenario, rng)} {evasion}", scenario, rng.choice(IDEAL["orders"]))


def _typical_opening(scenario: Scenario, rng: Random) -> str:
    return zipf_choice(TYPICAL["openings"][scenario.intents[0].tone], rng)


def zipf_choice(choices: list[str], rng: Random) -> str:
    """Draw one of the choices, each with a weight of 1 / place (Zipf's law)."""
    return rng.choices(choices, [1 / place for place in range(1, len(choices) + 1)])[0]
