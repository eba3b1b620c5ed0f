"""The rubric that rates replies, and the reading of a context that it rests on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from part3_pretrain.retail.world import INTENTS, PRODUCT, WORLD, Intent, Scenario, any_of

HIGH_QUALITY = 4.0  # replies rated at least this are high quality
LONGEST_CONTEXT = 2000  # characters, several times what `draw_context` writes


@dataclass(frozen=True)
class Rating:
    """What the rubric found in one reply, criterion by criterion."""

    acknowledgement: bool
    item: bool  # the customer's item is named, letter for letter as the catalogue or the customer spells it
    wrong_item: bool  # some other item of the catalogue is named
    resolved: float  # share of the customer's problems that get the resolution the policy prescribes
    wrong_resolution: bool  # a resolution is offered for a problem the customer does not have
    order_number: bool  # exactly the customer's number is cited, and none where none was given
    next_step: bool

    @property
    def right_resolution(self) -> bool:
        return self.resolved == 1.0 and not self.wrong_resolution

    @property
    def score(self) -> float:
        """The rating, 1.0 to 5.0."""
        points = WORLD["rubric"]["points"]
        score = 1.0 + sum(
            points[name] * share
            for name, share in {
                "acknowledgement": self.acknowledgement,
                "item": self.item,
                "resolution": self.resolved,
                "order_number": self.order_number,
                "next_step": self.next_step,
            }.items()
        )
        faultless = self.item and not self.wrong_item and self.right_resolution and self.order_number
        return round(score if faultless else min(score, WORLD["rubric"]["highest_with_an_error"]), 2)

    @property
    def faults(self) -> list[str]:
        """What is wrong with the reply, in words."""
        found = {
            "does not acknowledge the customer": not self.acknowledgement,
            "does not name the customer's item": not self.item,
            "names another item": self.wrong_item,
            "leaves a problem without its resolution": self.resolved < 1.0,
            "offers a resolution for another problem": self.wrong_resolution,
            "gets the order number wrong": not self.order_number,
            "does not say what happens next": not self.next_step,
        }
        return [words for words, is_so in found.items() if is_so]


def rate(scenario: Scenario, reply: str) -> Rating:
    """Rates a reply to a customer by the rubric in `retail.toml`; upper and lower case are the same to it."""
    text = " ".join(reply.lower().split())
    item = scenario.item.lower()
    spellings = {item, (scenario.misspelled or item).lower()}
    answered = {intent for intent in INTENTS if intent.evidence.lower() in text}
    return Rating(
        acknowledgement=any(words in text for words in WORLD["rubric"]["acknowledgement"]),
        item=any(_says(text, spelling) for spelling in spellings),
        wrong_item=any(product != item for product in PRODUCT.findall(text)),
        resolved=len(answered.intersection(scenario.intents)) / len(scenario.intents),
        wrong_resolution=not answered.issubset(scenario.intents),
        order_number=set(re.findall(r"\d+", text)) == ({scenario.order_number} - {None}),
        next_step=any(re.search(rf"\b{words}\b", text) for words in WORLD["rubric"]["next_step"]),
    )


def _says(text: str, words: str) -> bool:
    """Whether the words stand in the text, and not within longer ones.

    A pattern would say the same, but compiling a new one for every item took longer than the rest of `rate`.
    """
    start = text.find(words)
    while start >= 0:
        around = text[max(0, start - 1) : start] + text[start + len(words) : start + len(words) + 1]
        if not re.search(r"\w", around):
            return True
        start = text.find(words, start + 1)
    return False


def recognise(context: str) -> Scenario | None:
    """Reads a scenario back from a context of this world; None where the problem or the item is not of this world."""
    if len(context) > LONGEST_CONTEXT:  # of another world, in which it may be megabytes and take a minute to search
        return None
    said = sorted(
        ((match.start(), intent, match) for intent in INTENTS for match in _phrases_of(intent).finditer(context)),
        key=lambda entry: entry[0],
    )
    items = PRODUCT.findall(context) or [match[match.lastindex] for _, _, match in said if match.lastindex]
    if not said or not items:
        return None
    order_number = re.search(r"\border (\d+)", context)
    return Scenario(
        intents=tuple(dict.fromkeys(intent for _, intent, _ in said)),
        item=items[0],
        order_number=order_number[1] if order_number else None,
    )


@cache
def _phrases_of(intent: Intent) -> re.Pattern[str]:
    """Matches any of the intent's phrases, in any person, up to the clause's end; a group that matched is the item."""
    phrases = any_of(intent.phrases + intent.restated_only)
    for slot in WORLD["person"]["first"]:
        words = any_of([person[slot] for person in WORLD["person"].values()])
        phrases = phrases.replace(re.escape("{" + slot + "}"), f"(?:{words})")
    phrases = phrases.replace(re.escape("{it}"), r"(?:it|the (\w+(?: \w+){0,3}?))")
    orders = [order.partition("{number}")[0] for order in WORLD["customer"]["orders"]]
    return re.compile(rf"\b(?:{phrases})(?={any_of(['.', *orders, *WORLD['customer']['links']])})", re.IGNORECASE)
