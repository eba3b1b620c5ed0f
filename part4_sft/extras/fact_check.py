"""Which facts of a reply stand in its context, which the company always says, and which nobody said.

Works for any data and any world. `docs/rubric.md` tells how often it is right.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import islice
from statistics import fmean
from typing import Any

from part4_sft.dataset import Pair
from part4_sft.extras.facts import (
    CACHE_SIZE,
    KINDS,
    WORD,
    Fact,
    capitalised_words,
    fold,
    make_fact,
    read_facts,
    words_within,
)

SOURCES = ("repeated", "known", "invented")  # stands in the context, in several training responses, nowhere
MANY = 2  # training responses that say something of their own
MOST_PAIRS = 10_000  # that are read for it, at about a millisecond each
MOST_CAPITALS = 0.15  # of the words within sentences; more where all nouns have one, as in German (0.22 to 0.41)
MOST_EXAMPLES = 8

Found = dict[str, list[Fact]]  # the facts of a reply by their source


@lru_cache(CACHE_SIZE)
def offers(context: str) -> tuple[frozenset[str], str]:
    """Return the keys of all facts, words and numbers of a context, and its folded text."""
    folded = fold(unicodedata.normalize("NFKC", context))
    numbers = re.findall(r"\d+", re.sub(r"(?<=\d)[ ./()-]{1,2}(?=\d)", "", context))  # of a phone, without its blanks
    words = {form for word in folded.split() for form in (word, word.removesuffix("s"))}
    return frozenset(words.union(numbers, *(fact.offered for fact in read_facts(context)[0]))), f" {folded} "


def says(keys: frozenset[str], fact: Fact) -> bool:
    """Return whether keys that are offered make up one that is wanted."""
    return any(keys.issuperset(key.split()) for key in fact.wanted)


def stands_in(context: str, fact: Fact) -> bool:
    """Return whether a context states a fact; all but an amount may stand there in the same words."""
    keys, folded = offers(context)
    return says(keys, fact) or (fact.kind != "amount" and f" {fold(fact.text)} " in folded)


class FactChecker:
    """Sorts the facts of replies by where they come from.

    What two training responses say and their contexts do not is the company's own (a hotline, opening hours): no reply
    invents it. What only one says was for that customer, and a reply to another that says it invents it.

    Args:
        pairs: the training pairs, of which the first 10,000 are read. Their responses also tell which words are no
            names, and whether capitals mean names.
    """

    def __init__(self, pairs: Iterable[Pair]) -> None:
        texts = {(pair.context, pair.response): None for pair in islice(pairs, MOST_PAIRS)}  # each once
        self.responses = len(texts)
        within = [match[0] for _, response in texts for match in words_within(read_facts(response)[1])]
        self.capitals_are_names = sum(word != word.lower() for word in within) <= MOST_CAPITALS * len(within)
        self.ordinary = {word for _, response in texts for word in WORD.findall(response) if word.islower()}
        counts = Counter[str]()
        for context, response in texts:
            own = [fact.offered for fact in self.facts(response) if not stands_in(context, fact)]
            counts.update(frozenset[str]().union(*own))
        self.known = frozenset(key for key, count in counts.items() if count >= MANY)

    def facts(self, text: str) -> list[Fact]:
        """Return all facts that a text states."""
        facts, rest = read_facts(text)
        return [*facts, *(self._names(rest) if self.capitals_are_names else ())]

    def _names(self, text: str) -> Iterator[Fact]:
        """Yield what a text names by capitals, but for words that responses also write without."""
        for run in capitalised_words(text):
            if words := [word for word in run if not {word.lower(), word.lower() + "s"} & self.ordinary]:
                keys = [word.casefold().removesuffix("s") for word in words]
                yield make_fact("name", " ".join(words), " ".join(keys), also=keys)

    def sort(self, context: str, reply: str) -> Found:
        """Return the facts of a reply by their source, one of `SOURCES`."""
        found: Found = {source: [] for source in SOURCES}
        for fact in self.facts(reply):
            source = "repeated" if stands_in(context, fact) else "known" if says(self.known, fact) else "invented"
            found[source].append(fact)
        return found

    def scores(self, contexts: list[str], replies: list[str]) -> dict[str, float]:
        """Return the shares of replies that repeat a fact of their context, and that invent one."""
        found = list(map(self.sort, contexts, replies))
        return {
            "repeats_fact": fmean(bool(each["repeated"]) for each in found),
            "invents_fact": fmean(bool(each["invented"]) for each in found),
        }


def describe_facts(checker: FactChecker, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Return `facts` of `evaluation.json`: what the references do, all shares by kind, and what the model invented.

    Args:
        entries: those of `evaluate_sft_vs_pretrained`.
    """
    replies = {
        author: [(entry["context"], sample["text"]) for entry in entries for sample in entry["samples"][author]]
        for author in ("pretrained", "sft")
    } | {"reference": [(entry["context"], entry["reference"]) for entry in entries]}
    found = {author: [checker.sort(*each) for each in own] for author, own in replies.items()}
    inventions = {
        context: {"context": context, "text": text, "invented": [fact.text for fact in each["invented"]]}
        for (context, text), each in zip(reversed(replies["sft"]), reversed(found["sft"]))  # the first of each context
        if each["invented"]
    }
    return {
        "training_responses": checker.responses,
        "reference": checker.scores(*map(list, zip(*replies["reference"]))),
        "known": {author: fmean(bool(each["known"]) for each in own) for author, own in found.items()},
        "by_kind": {author: {kind: _shares(own, kind) for kind in KINDS} for author, own in found.items()},
        "inventions": [*reversed(inventions.values())][:MOST_EXAMPLES],
    }


def _shares(found: list[Found], kind: str) -> dict[str, float]:
    """Return for each source the share of replies that hold a fact of this kind from there."""
    return {source: fmean(any(fact.kind == kind for fact in each[source]) for each in found) for source in SOURCES}
