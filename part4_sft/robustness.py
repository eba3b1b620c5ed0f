"""The same customers, less tidy: with a typo, without capitals, or about a product that is in no catalogue."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from part3_pretrain.retail import world
from part3_pretrain.retail.world import Scenario
from part4_sft.dataset import Pair

Disturbed = tuple[list[Pair], list[Scenario]]


def disturbed(pairs: list[Pair], scenarios: list[Scenario], seed: int) -> dict[str, Disturbed]:
    """Test sets made from another, with what each customer wants: a reply may spell the item as the catalogue does, or
    repeat the customer's typo.

    Returns:
        `one_typo`: a letter of one word is swapped, dropped or doubled; `lower_case`; and `unknown_product`: the item
        has an invented name that is reserved for this test.
    """
    rng = Random(f"robustness/{seed}")
    sets: dict[str, Disturbed] = {"one_typo": ([], []), "lower_case": ([], []), "unknown_product": ([], [])}
    for pair, scenario in zip(pairs, scenarios):
        invented = world.invent_item(rng, held_out=True)
        for name, (context, wanted) in {
            "one_typo": world.mistype(pair.context, scenario, rng),
            "lower_case": (pair.context.lower(), scenario),
            "unknown_product": world.rename(pair.context, scenario, invented),
        }.items():
            response = pair.response.replace(scenario.item, wanted.item)
            sets[name][0].append(replace(pair, context=context, response=response))
            sets[name][1].append(wanted)
    return sets
