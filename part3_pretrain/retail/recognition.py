"""Reading back from a context of this world what its customer wants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

from part3_pretrain.retail.world import (
    CUSTOMER,
    GOODS,
    INTENTS,
    OUTSIDE,
    PERSONS,
    PRODUCT,
    SMALL_TALK,
    Intent,
    Scenario,
    any_of,
    in_person,
)

LONGEST_CONTEXT = 2000  # characters, several times what `draw_context` writes
ORDER = r"\border(?: (?:number|no\.?|nr\.?))?(?: is)?[ :#]+"  # what stands before its number
NO_ITEM = any_of(["it", *{in_person(mention, person) for mention in CUSTOMER["mentions"] for person in PERSONS}])
NO_NAME = any_of([mention.removeprefix("{my} ") for mention in CUSTOMER["mentions"] if mention.startswith("{my} ")])
MY_LAST_ORDER = rf"(?:the|my|their) (?:most )?[\w-]+ (?:{NO_NAME})"
ANY_NAME = r"[\w-]+(?: (?!(?:the|my|their|that|because)\b)[\w-]+){0,3}?"
IT = rf"(?:{NO_ITEM}|{MY_LAST_ORDER}|{ORDER}\d+|(?:the|my|their) ({ANY_NAME}))"
TOPICS = {topic.removeprefix("the ") for intent in INTENTS for topic in intent.topics}
IT_AT_THE_END = rf"(?:(?:the|my|their) ({any_of(GOODS)})|{IT})"  # of any name, the first word would be enough there

_Candidate = tuple[str, list[str], str]  # what stands between the slots of a text: the longest part, and all; a pattern


@dataclass(frozen=True)
class _Mention:
    """Where a context says what its customer wants."""

    start: int
    end: int
    intent: Intent
    item: str

    def is_part_of(self, other: _Mention) -> bool:
        longer = self.end - self.start < other.end - other.start
        return longer and other.start <= self.start and self.end <= other.end


@lru_cache(2**14)
def recognise(context: str) -> Scenario | None:
    """Read a scenario back from a context; None where what the customer wants is not of this world."""
    if len(context) > LONGEST_CONTEXT:  # of another world, in which megabytes might take a minute to search
        return None
    found = [*_find_service(context), *_find_others(context.lower())]
    mentions = [one for one in found if not any(one.is_part_of(another) for another in found)]
    service = sorted((one for one in mentions if one.intent.is_service), key=lambda one: one.start)
    if service:
        # An item of no catalogue is invented or misspelled.
        items = PRODUCT.findall(context.lower()) or [one.item for one in service if one.item]
        order = re.search(rf"{ORDER}(\d+)", context, re.IGNORECASE)
        intents = tuple(dict.fromkeys(one.intent for one in service))
        return Scenario(intents, items[0] if items else "", order[1] if order else None)
    if mentions:  # a greeting may stand before what no shop can answer
        chosen = max(mentions, key=lambda one: (one.intent in OUTSIDE, one.end - one.start))
        return Scenario((chosen.intent,))
    return None


def _find_service(context: str) -> Iterator[_Mention]:
    lower = context.lower()
    for intent in INTENTS:
        patterns = [phrase_pattern(intent)] if any(_may_be_in(lower, phrases_of(intent))) else []
        patterns += map(compiled, _may_be_in(lower, message_patterns(intent)))
        for pattern in patterns:
            for match in pattern.finditer(context):
                item = next(filter(None, match.groups()), "")
                if item.lower() not in TOPICS:  # "Where is my refund?" does not ask for a parcel
                    yield _Mention(*match.span(), intent, item)


def _may_be_in(lower: str, candidates: list[_Candidate]) -> Iterator[str]:
    """Yield the patterns worth looking for: most are told by a part of theirs that a context does not have."""
    for longest, parts, pattern in candidates:
        if longest in lower and all(part in lower for part in parts):
            yield pattern


def _find_others(context: str) -> Iterator[_Mention]:
    """Small talk is a whole message: "Hi" before a question of another world does not make it one of this."""
    said = context.strip().rstrip(".?!")
    if intent := small_talk().get(said):
        yield _Mention(0, len(said), intent, "")
    for text, intent in outside():
        if text in context and (match := re.search(rf"(?<!\w){re.escape(text)}(?!\w)", context)):
            yield _Mention(*match.span(), intent, "")


@cache
def small_talk() -> dict[str, Intent]:
    """Return the kind of small talk of each message, in lower case and without full stop; of several, the first."""
    return {message.lower().rstrip(".?!"): intent for intent in reversed(SMALL_TALK) for message in intent.messages}


@cache
def outside() -> list[tuple[str, Intent]]:
    """Return the messages that no shop can answer, in lower case and without full stop."""
    return [(message.lower().rstrip(".?!"), intent) for intent in OUTSIDE for message in intent.messages]


@cache
def phrase_pattern(intent: Intent) -> re.Pattern[str]:
    """Match any of the intent's phrases, in any person, up to the clause's end; a group that matched is the item."""
    phrases = any_of(intent.phrases + intent.restated_only)
    for slot in PERSONS["first"]:
        words = any_of([person[slot] for person in PERSONS.values()])
        phrases = phrases.replace(re.escape("{" + slot + "}"), f"(?:{words})")
    phrases = phrases.replace(re.escape("{it}"), IT)
    orders = [order.partition("{number}")[0] for order in CUSTOMER["orders"]]
    return re.compile(rf"\b(?:{phrases})(?={any_of(['.', *orders, *CUSTOMER['links']])})", re.IGNORECASE)


@cache
def phrases_of(intent: Intent) -> list[_Candidate]:
    """Return the intent's phrases; where none may be in a context, neither is `phrase_pattern`."""
    return [_candidate(phrase, phrase) for phrase in intent.phrases + intent.restated_only]


@cache
def message_patterns(intent: Intent) -> list[_Candidate]:
    """Return a pattern for each of the intent's messages."""
    candidates = []
    for message in intent.messages:
        text = message.rstrip(".?!")
        it = IT_AT_THE_END if text.endswith("{it}") else IT
        candidates.append(_candidate(text, rf"(?<!\w){re.escape(text).replace(re.escape('{it}'), it)}(?!\w)"))
    return candidates


def _candidate(text: str, pattern: str) -> _Candidate:
    parts = re.split(r"\{\w+}", text.lower())
    return max(parts, key=len), parts, pattern


@cache  # compiled only when one is looked for: thousands would take seconds
def compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern that ignores case."""
    return re.compile(pattern, re.IGNORECASE)
