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
        points = RUBRIC["points"]
        met = [name for name in ("acknowledgement", "item", "order_number", "next_step") if getattr(self, name)]
        score = 1.0 + points["resolution"] * self.resolved + sum(points[name] for name in met)
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
    words = _mark_words(text)
    item = scenario.item.lower()
    spellings = {item, (scenario.misspelled or item).lower()}
    resolved = {intent for intent in INTENTS if intent.evidence.lower() in text}
    return Rating(
        acknowledgement=any(thanks in text for thanks in RUBRIC["acknowledgement"]),
        item=any(_mark_words(spelling) in words for spelling in spellings),
        wrong_item=names_another_product(text, item),
        resolved=len(resolved.intersection(scenario.intents)) / len(scenario.intents),
        wrong_resolution=not resolved.issubset(scenario.intents),
        order_number=set(re.findall(r"\d+", text)) == ({scenario.order_number} if scenario.order_number else set()),
        next_step=any(_mark_words(time) in words for time in RUBRIC["next_step"]),
    )


def _mark_words(text: str) -> str:
    """Mark where words begin and end, so that `in` finds none within longer words; a pattern for each would be slow."""
    return re.sub(r"\b", "|", text)


def recognise(context: str) -> Scenario | None:
    """Read a scenario back from a context of this world; None where the problem or the item is not of this world."""
    if len(context) > LONGEST_CONTEXT:  # of another world, in which megabytes might take a minute to search
        return None
    mentions = [(match, intent) for intent in INTENTS for match in phrase_pattern(intent).finditer(context)]
    mentions.sort(key=lambda mention: mention[0].start())
    # An item of no catalogue is invented or misspelled.
    items = PRODUCT.findall(context) or [match[match.lastindex] for match, _ in mentions if match.lastindex]
    if not mentions or not items:
        return None
    order = re.search(r"\border (\d+)", context)
    intents = tuple(dict.fromkeys(intent for _, intent in mentions))
    return Scenario(intents, items[0], order[1] if order else None)
