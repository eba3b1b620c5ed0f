from __future__ import annotations

from difflib import SequenceMatcher

from part3_pretrain.retail import rubric
from part4_sft.dataset import Pair
from part4_sft.metrics import recognise
from part4_sft.robustness import disturbed


def test_each_disturbance_changes_what_it_says_and_the_reference_stays_faultless(made: dict[str, list[Pair]]) -> None:
    pairs = made["sft_test"]
    scenarios = recognise(pairs)
    sets = disturbed(pairs, scenarios, seed=0)
    assert set(sets) == {"one_typo", "lower_case", "unknown_product"}
    for name, (changed, wanted) in sets.items():
        assert len(changed) == len(wanted) == len(pairs)
        for after, scenario in zip(changed, wanted):
            assert rubric.rate(scenario, after.response).score == 5.0, (name, after)
            assert (scenario.misspelled or scenario.item).lower() in after.context.lower()

    for before, after in zip(pairs, sets["one_typo"][0]):
        matcher = SequenceMatcher(None, before.context, after.context, autojunk=False)
        kept = sum(block.size for block in matcher.get_matching_blocks())
        assert before.context != after.context and kept >= len(before.context) - 1
    for before, after in zip(pairs, sets["lower_case"][0]):
        assert after.context == before.context.lower()
    for after, old, new in zip(sets["unknown_product"][0], scenarios, sets["unknown_product"][1]):
        assert old.item not in after.context and new.intents == old.intents
        assert f" a {new.item}" not in after.context or new.item[0] not in "aeiou"


def test_the_same_seed_disturbs_alike(made: dict[str, list[Pair]]) -> None:
    pairs = made["sft_test"][:20]
    scenarios = recognise(pairs)
    assert disturbed(pairs, scenarios, 0) == disturbed(pairs, scenarios, 0) != disturbed(pairs, scenarios, 1)
