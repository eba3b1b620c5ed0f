"""The rubric: reading what a customer wants from a context, and rating a reply to it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from part3_pretrain.retail.world import INTENTS, PRODUCT, WORLD, Scenario, names_another_product, phrase_pattern

RUBRIC = WORLD["rubric"]
HIGH_QUALITY = 4.0  # the lowest rating of a high-quality reply
LONGEST_CONTEXT = 2000  # characters, several times what `draw_context` writes


@dataclass(frozen=True)
class Rating:
    """What the rubric says of one reply, criterion by criterion."""

    acknowledgement: bool
    item: bool  # the customer's item is named, letter for letter as the catalogue or the customer spells it
    wrong_item: bool  # some other item of the catalogue is named
    resolved: float  # share of the customer's problems that get the resolution the policy prescribes
    wrong_resolution: bool  # a resolution is offered for a problem the customer does not have
    order_number: bool  # exactly the customer's number is cited, and none where none was given
    next_step: bool

    @property
    def right_resolution(self) -> bool:
        """Whether every problem has its resolution, and no other resolution is offered."""
        return self.resolved == 1.0 and not self.wrong_resolution

    @property
    def score(self) -> float:
        """The rating, 1.0 to 5.0."""
        met = {
            "acknowledgement": self.acknowledgement,
            "item": self.item,
            "order_number": self.order_number,
            "next_step": self.next_step,
        }
        points = RUBRIC["points"]
        score = 1.0 + points["resolution"] * self.resolved + sum(points[name] for name in met if met[name])
        has_error = not self.item or self.wrong_item or not self.right_resolution or not self.order_number
        return round(min(score, RUBRIC["highest_with_an_error"]) if has_error else score, 2)

    @property
    def is_high_quality(self) -> bool:
        """Whether the reply is good enough to train on."""
        return self.score >= HIGH_QUALITY

    @property
    def faults(self) -> list[str]:
        """What is wrong with the reply, in words."""
        faults = {
            "does not acknowledge the customer": not self.acknowledgement,
            "does not name the customer's item": not self.item,
            "names another item": self.wrong_item,
            "leaves a problem without its resolution": self.resolved < 1.0,
            "offers a resolution for another problem": self.wrong_resolution,
            "gets the order number wrong": not self.order_number,
            "does not say what happens next": not self.next_step,
        }
        return [words for words, is_so in faults.items() if is_so]


def rate(scenario: Scenario, reply: str) -> Rating:
    """Rate a reply to a customer by the `[rubric]` of `retail.toml`; upper and lower case are the same to it."""
    text = " ".join(reply.lower().split())
    item = scenario.item.lower()
    spellings = {item, (scenario.misspelled or item).lower()}
    resolved = {intent for intent in INTENTS if intent.evidence.lower() in text}
    return Rating(
        acknowledgement=any(words in text for words in RUBRIC["acknowledgement"]),
        item=any(_contains_words(text, spelling) for spelling in spellings),
        wrong_item=names_another_product(text, item),
        resolved=len(resolved.intersection(scenario.intents)) / len(scenario.intents),
        wrong_resolution=not resolved.issubset(scenario.intents),
        order_number=set(re.findall(r"\d+", text)) == ({scenario.order_number} if scenario.order_number else set()),
        next_step=any(_contains_words(text, words) for words in RUBRIC["next_step"]),
    )


def _contains_words(text: str, words: str) -> bool:
    """Return whether the words stand in the text, and not within longer ones.

    A pattern would say the same, but compiling a new one for every item takes longer than the rest of `rate`.
    """
    start = text.find(words)
    while start >= 0:
        around = text[max(0, start - 1) : start] + text[start + len(words) : start + len(words) + 1]
        if not re.search(r"\w", around):
            return True
        start = text.find(words, start + 1)
    return False


def recognise(context: str) -> Scenario | None:
    """Read a scenario back from a context of this world; None where the problem or the item is not of this world."""
    if len(context) > LONGEST_CONTEXT:  # of another world, in which it may be megabytes and take a minute to search
        return None
    mentions = [(match, intent) for intent in INTENTS for match in phrase_pattern(intent).finditer(context)]
    mentions.sort(key=lambda mention: mention[0].start())
    items = PRODUCT.findall(context)
    if not items:  # it may be invented or misspelled
        items = [match[match.lastindex] for match, _ in mentions if match.lastindex]
    if not mentions or not items:
        return None
    order_number = re.search(r"\border (\d+)", context)
    return Scenario(
        intents=tuple(dict.fromkeys(intent for _, intent in mentions)),
        item=items[0],
        order_number=order_number[1] if order_number else None,
    )
