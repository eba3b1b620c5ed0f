"""What a reply invents: names, numbers and promises that neither the customer nor the policy gave."""

from __future__ import annotations

import re
from collections import Counter
from difflib import get_close_matches
from functools import cache
from itertools import takewhile

from part3_pretrain.retail.recognition import recognise
from part3_pretrain.retail.rubric import EVIDENCE, FUNCTION_WORDS, INVENTED_NAME, KNOWN_WORDS, QUESTIONS
from part3_pretrain.retail.world import IDEAL, INTENTS, OUTSIDE, PRODUCT, SMALL_TALK, TYPICAL, Intent

MOST_INTENTS = 4  # that a word may leave open, if one of them shall still be told by it
NUMBER = re.compile(r"\d{2,}")
YOURS = re.compile(r"\byour ((?:[a-z'-]+ ?){1,3})")
WORD = re.compile(r"[a-z0-9'-]+")
AGENTS_OWN = {intent.evidence for intent in [*QUESTIONS, *SMALL_TALK, *OUTSIDE]}  # which need no reason


def claims(reply: str) -> frozenset[str]:
    """Return all that a reply says and that could be wrong: products, numbers, "your ..." and resolutions.

    Two replies that claim the same say the same in other words.
    """
    reply = reply.lower()
    names = PRODUCT.findall(reply) + INVENTED_NAME.findall(reply)
    things = {_thing(match) for match in YOURS.findall(reply)} - _things_of_agents()
    things = {thing for thing in things if not any(thing in name for name in names)}
    resolutions = [words for words, part, evidence in EVIDENCE if part in reply and evidence.search(reply)]
    return frozenset([*names, *NUMBER.findall(reply), *(f"your {thing}" for thing in things if thing), *resolutions])


def invented(context: str, reply: str) -> list[str]:
    """Return what a reply claims without reason; [] for an honest one.

    That are products, numbers and "your headphones" that are not in the context, and resolutions of problems that it
    does not state. A product may be spelled as the catalogue spells it. In a context of no known pattern, a problem is
    stated where one of its words is: one that few others are told with.
    """
    words = WORD.findall(context.lower())
    by_evidence = {intent.evidence: intent for intent in INTENTS}
    scenario = recognise(context)
    found = []
    for claim in sorted(claims(reply)):
        if intent := by_evidence.get(claim):
            is_stated = intent in scenario.intents if scenario else not _tell_tale(intent).isdisjoint(words)
            found += [] if is_stated else [f"the resolution of {intent.name}"]
        elif claim not in AGENTS_OWN and claim not in context.lower():
            found += [] if _has_all(claim.removeprefix("your ").split(), words) else [claim]
    return found


def _has_all(words: list[str], known: list[str]) -> bool:
    """Return whether each word is known, perhaps with a typo; a number must be known as it is."""
    return all(word in known or (word.isalpha() and get_close_matches(word, known, cutoff=0.65)) for word in words)


def _thing(words: str) -> str:
    """Return what stands behind "your", up to a word that is no part of a name."""
    first, *others = words.split()
    if first in FUNCTION_WORDS:
        return ""
    return " ".join([first, *takewhile(lambda word: word not in KNOWN_WORDS, others)])


@cache
def _things_of_agents() -> set[str]:
    """Return all that agents call "your ..." without having been told of it: "your message", "your bank"."""
    texts = [*IDEAL["next_steps"], *IDEAL["closings"], *TYPICAL["evasions"]]
    for openings in (IDEAL["openings"], TYPICAL["openings"]):
        texts += [text for of_tone in openings.values() for text in of_tone]
    for intent in INTENTS + SMALL_TALK:
        texts += intent.resolutions
    return {"order"} | {_thing(match) for text in texts for match in YOURS.findall(text.lower())}


@cache
def _tell_tale(intent: Intent) -> frozenset[str]:
    """Return the words by which customers say this problem: of those who say one, a quarter have it at least."""
    totals = _total_shares()
    return frozenset(word for word, share in _shares(intent).items() if share * MOST_INTENTS >= totals[word])


@cache
def _total_shares() -> Counter[str]:
    """Return for each word the sum of its shares over all intents."""
    return sum(map(_shares, INTENTS), Counter[str]())


@cache
def _shares(intent: Intent) -> Counter[str]:
    """Return for each word of the intent's texts the share of them that have it, if more than one has."""
    texts = intent.phrases + intent.restated_only + intent.messages + intent.topics
    used = Counter(word for text in texts for word in {*WORD.findall(re.sub(r"\{\w+}", " ", text.lower()))})
    return Counter(
        {
            word: count / len(texts)
            for word, count in used.items()
            if count > 1 and len(word) > 2 and word not in FUNCTION_WORDS
        }
    )
