"""Two models side by side, what else they are compared with, and how sure the difference is."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import replace
from difflib import SequenceMatcher
from random import Random
from statistics import fmean, quantiles, stdev
from typing import Any

import pytest
import torch

from part3_pretrain.model import Transformer
from part3_pretrain.retail import rubric, world
from part3_pretrain.retail.rubric import recognise
from part3_pretrain.retail.world import in_catalogue, mistype
from part3_pretrain.runtime.cli import UserError
from part4_sft import evaluation
from part4_sft.config import SFTConfig
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.evaluation import (
    Entry,
    SideBySide,
    compare_models,
    errors_by_category,
    evaluate,
    evaluate_sft_vs_pretrained,
    generate_replies,
    generate_samples,
    likeliest_ideal_replies,
    paired_bootstrap,
    perturbed_sets,
    second_ideal_replies,
    validate,
    worst_replies,
)
from part4_sft.generation import Sampling
from part4_sft.metrics import compute_instruction_following_metrics, recognise_all

# ---------------------------------------------------------------------------------------------------- one model


def test_a_context_longer_than_the_model_can_read_gets_a_reply(tiny_model: Transformer, encoder: PairEncoder) -> None:
    long = Pair("My walnut desk arrived broken. " * 200, "Sorry.")
    assert len(generate_replies(tiny_model, encoder, [long], Sampling(max_new_tokens=3), seed=0).texts) == 1


def test_a_rank_without_contexts_has_as_many_samples_as_the_others(
    tiny_model: Transformer, encoder: PairEncoder
) -> None:
    samples = generate_samples(tiny_model, encoder, [], Sampling(max_new_tokens=3), [0, 1])
    assert [(replies.texts, replies.stopped) for replies in samples] == [([], [])] * 2


def naive_loss(model: Transformer, encoder: PairEncoder, pairs: list[Pair]) -> float:
    """Mean of minus the log-probability of every token of the responses, <EOS> included, one pair at a time."""
    losses = []
    tokenizer = encoder.tokenizer
    for pair in pairs:
        context = tokenizer.encode(f"Customer: {pair.context}\nAgent:").ids
        response = [*tokenizer.encode(f" {pair.response}").ids, tokenizer.token_to_id("<EOS>")]
        with torch.no_grad():
            logits = model.lm_head(model(torch.tensor([context + response])))[0].double()
        for place, token in enumerate(response, start=len(context)):
            losses.append(-logits[place - 1].log_softmax(-1)[token].item())
    return fmean(losses)


def test_validation_is_the_loss_and_scores_of_replies_that_are_generated(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    pairs, config = made["sft_validation"][:3], SFTConfig(max_new_tokens=4, seed=3)
    entry = validate(tiny_model, encoder, pairs, encoder.encode_all(pairs), config, 2, 0.5)
    replies = generate_replies(tiny_model, encoder, pairs, Sampling(max_new_tokens=4), 3)
    scores = compute_instruction_following_metrics(replies.texts, [pair.response for pair in pairs])
    assert entry == {
        "epoch": 2,
        "train_loss": 0.5,
        "validation_loss": pytest.approx(naive_loss(tiny_model, encoder, pairs), rel=1e-4),
        "bleu": scores["bleu"],
        "rouge_l": scores["rouge_l"],
        "rated_4_or_more": 0.0,
    }


@pytest.mark.parametrize(("epoch", "cure"), [(0, "name another"), (1, "--learning-rate")])
@pytest.mark.parametrize("factor", [1e4, math.nan])
def test_a_loss_past_every_use_is_refused(
    epoch: int, cure: str, factor: float, tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]
) -> None:
    model, pairs = copy.deepcopy(tiny_model), made["sft_validation"][:1]
    with torch.no_grad():
        model.norm.weight.mul_(factor)
    with pytest.raises(UserError, match=rf"the loss is .* after epoch {epoch}; .*{cure}"):
        validate(model, encoder, pairs, encoder.encode_all(pairs), SFTConfig(), epoch, None)


# ---------------------------------------------------------------------------------------------------- two models


def test_two_models_side_by_side(tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]]) -> None:
    """Scores are means over the samples, and every sample is what the model generates by its seed."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.embed_tokens.weight.mul_(3)
    pairs, sampling = made["sft_test"][:5], Sampling(max_new_tokens=10)
    scenarios, references = recognise_all(pairs), [pair.response for pair in pairs]
    result = evaluate_sft_vs_pretrained(tiny_model, other, encoder, pairs, sampling, seed=4, samples=3)

    ideal = {"ceiling": "second_reference", "likeliest_ideal": "likeliest_ideal"}
    assert set(result.scores) == {"pretrained", "sft", *ideal} and set(result.spread) == {"pretrained", "sft"}
    for author, key in ideal.items():
        texts = [entry["samples"][author][0]["text"] for entry in result.entries]
        assert texts == [entry[key] for entry in result.entries]
        expected = compute_instruction_following_metrics(texts, references) | {"rating": 5.0, "invented": 0}
        assert result.scores[author] == result.scores[author] | expected
        assert "perplexity" not in result.scores[author]
    assert [(entry["context"], entry["reference"]) for entry in result.entries] == [
        (pair.context, pair.response) for pair in pairs
    ]
    for author, model in {"pretrained": tiny_model, "sft": other}.items():
        by_sample = [generate_replies(model, encoder, pairs, sampling, f"4/{number}") for number in range(3)]
        for index, (entry, scenario) in enumerate(zip(result.entries, scenarios)):
            ratings = [rubric.rate(scenario, replies.texts[index]) for replies in by_sample]
            assert entry["samples"][author] == [
                {
                    "text": replies.texts[index],
                    "stops_by_itself": replies.stopped[index],
                    "rating": rating.score,
                    "faults": rating.faults,
                }
                for replies, rating in zip(by_sample, ratings)
            ]
            assert (entry[author], entry[f"{author}_rating"]) == (by_sample[0].texts[index], ratings[0].score)
        scores = [compute_instruction_following_metrics(replies.texts, references) for replies in by_sample]
        for measure in scores[0]:
            assert result.scores[author][measure] == pytest.approx(fmean(one[measure] for one in scores))
            assert result.spread[author][measure] == pytest.approx(stdev(one[measure] for one in scores))
        perplexity = math.exp(naive_loss(model, encoder, pairs))
        assert result.scores[author]["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    for entry, scenario in zip(result.entries, scenarios):
        assert {entry[f"{name}_rating"] for name in ("reference", *ideal.values())} == {5.0}
        assert entry["intents"] == [intent.name for intent in scenario.intents]
        assert entry["categories"] == sorted({intent.category for intent in scenario.intents})


def test_without_the_retail_world_there_is_neither_rubric_nor_ideal_agent(
    tiny_model: Transformer, encoder: PairEncoder
) -> None:
    pairs = [Pair("What is the capital of France?", "Paris.")]
    result = evaluate_sft_vs_pretrained(tiny_model, tiny_model, encoder, pairs, Sampling(max_new_tokens=2))
    assert set(result.scores) == {"pretrained", "sft"} and "rating" not in result.scores["sft"]
    assert set(result.entries[0]) == {"context", "reference", "pretrained", "sft", "samples"} and not result.spread
    assert "invents_fact" not in result.scores["sft"]


def test_a_second_ideal_reply_is_faultless_and_in_other_words(made: dict[str, list[Pair]]) -> None:
    pairs = made["sft_test"] + made["sft_test_unseen_phrase"]
    scenarios = recognise_all(pairs)
    replies = second_ideal_replies(scenarios, seed=0)
    assert {rubric.rate(scenario, text).score for scenario, text in zip(scenarios, replies.texts)} == {5.0}
    assert sum(text != pair.response for text, pair in zip(replies.texts, pairs)) > 0.9 * len(pairs)
    assert replies == second_ideal_replies(scenarios, seed=0) != second_ideal_replies(scenarios, seed=1)


def test_no_ideal_reply_is_likelier_and_none_agrees_better_than_the_likeliest(made: dict[str, list[Pair]]) -> None:
    pairs, rng = made["sft_test"], Random(0)
    scenarios, references = recognise_all(pairs), [pair.response for pair in pairs]
    likeliest = likeliest_ideal_replies(scenarios)
    simple = [(scenario, text) for scenario, text in zip(scenarios, likeliest.texts) if len(scenario.intents) == 1]
    for scenario, text in simple[:4]:
        drawn = Counter(world.ideal_reply(scenario, rng) for _ in range(4000))
        assert drawn[text] > 0.6 * drawn.most_common(1)[0][1]  # as likely as any, but for chance
    bound = compute_instruction_following_metrics(likeliest.texts, references)
    for seed in range(3):
        others = compute_instruction_following_metrics(second_ideal_replies(scenarios, seed).texts, references)
        assert bound["bleu"] > others["bleu"] + 0.08 and bound["rouge_l"] > others["rouge_l"] + 0.05


def test_every_test_set_is_evaluated_with_its_own_settings(
    tiny_model: Transformer, encoder: PairEncoder, made: dict[str, list[Pair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several samples for the main test alone; look-ups in the pairs that train."""
    calls: dict[str, tuple[int, int]] = {}

    def side_by_side(*models_and_pairs: Any, **settings: Any) -> SideBySide:
        calls[settings.get("name", "test")] = len(models_and_pairs[3]), settings.get("samples", 1)
        return evaluate_sft_vs_pretrained(*models_and_pairs, **settings)

    monkeypatch.setattr(evaluation, "evaluate_sft_vs_pretrained", side_by_side)
    named = [pair for pair in made["sft_dataset"][:50] if in_catalogue(recognise(pair.context).item)]
    low = replace(made["sft_dataset"][500], context=made["sft_test"][0].context)
    tested = [pair for pair in made["sft_test"] if in_catalogue(recognise(pair.context).item)]
    data = {name: pairs[:2] for name, pairs in made.items()}
    data |= {"sft_dataset": [low, *named[:2]], "sft_test": tested[:2]}
    config = SFTConfig(max_new_tokens=2, samples_per_context=2)
    scores, entries = evaluate(tiny_model, tiny_model, encoder, data, config)
    names = ["test", "unseen_wording", "unseen_phrase", "one_typo", "lower_case", "unknown_product"]
    messages = {"unseen_message": (200, 1), "unseen_topic": (200, 1)}
    assert calls == {name: (2, 2 if name == "test" else 1) for name in names} | messages
    assert list(entries) == [*names, *messages] and set(scores["robustness"]) == {*names[3:], *messages}
    assert set(scores["hand_over"]) == {"threshold", "curve"}
    assert scores["resampled"] == {"contexts": 2, "intents": len({entry["intents"][0] for entry in entries["test"]})}
    assert scores["samples"]["per_context"] == 2 and set(scores["comparison"]) == {"bleu", "rouge_l", "rating"}
    assert scores["facts"]["training_responses"] == 2  # those of the pairs that train
    for each in (
        scores,
        scores["unseen_phrase"],
        *scores["robustness"].values(),
        {"sft": scores["baselines"]["nearest_pair"]},
    ):
        assert each["sft"].keys() >= {"repeats_fact", "invents_fact"}
    assert scores["baselines"]["nearest_pair"]["stops_by_itself"] == 1
    assert scores["baselines"]["nearest_pair"]["wrong_item"] == 1  # not the response of the pair that does not train


# ---------------------------------------------------------------------------------------------------- how sure


def test_the_bootstrap_finds_a_clear_gain_and_none_in_noise() -> None:
    rng = Random(0)
    before = [rng.gauss(0, 1) for _ in range(200)]
    better = [value + rng.gauss(0.5, 1) for value in before]
    noise = [value + rng.choice([-1, 1]) for value in before]

    gain = paired_bootstrap(before, better, seed=0)
    assert gain["difference"] == pytest.approx(fmean(better) - fmean(before))
    assert 0 < gain["ci95"][0] < gain["difference"] < gain["ci95"][1] and gain["p_value"] < 0.01
    none = paired_bootstrap(before, noise, seed=0)
    assert none["ci95"][0] < 0 < none["ci95"][1] and none["p_value"] > 0.05
    assert paired_bootstrap(before, before, seed=0) == {"difference": 0, "ci95": [0, 0], "p_value": 1}
    assert paired_bootstrap([0.0] * 9, [1.0] * 9, seed=0)["p_value"] == 1 / 10_000


def test_the_bootstrap_is_seeded_and_agrees_with_a_naive_one() -> None:
    rng = Random(1)
    before, after = ([rng.random() for _ in range(50)] for _ in range(2))
    result = paired_bootstrap(before, after, seed=0)
    assert result == paired_bootstrap(before, after, seed=0) != paired_bootstrap(before, after, seed=1)

    gains = [b - a for a, b in zip(before, after)]
    means = sorted(fmean(rng.choices(gains, k=50)) for _ in range(5000))
    assert result["ci95"] == pytest.approx([means[125], means[4875]], abs=0.01)
    assert result["p_value"] == pytest.approx(2 * sum(mean <= 0 for mean in means) / 5000, abs=0.03)


def test_the_interval_covers_what_other_intents_would_show() -> None:
    """Contexts of an intent are alike: 200 of them, of 42 intents, tell less than 200 of 200 intents."""
    rng, covered = Random(2), 0
    for number in range(200):
        effects = [rng.gauss(0, 0.3**0.5) for _ in range(42)]
        intents = [rng.randrange(42) for _ in range(200)]
        gains = [rng.gauss(effects[intent], 0.7**0.5) for intent in intents]
        low, high = paired_bootstrap([0.0] * 200, gains, number, intents, resamples=400)["ci95"]
        covered += low <= 0 <= high
    assert covered >= 0.93 * 200  # contexts drawn anew without their intents: 79%


def test_intents_are_drawn_anew_and_then_their_contexts() -> None:
    before, after, groups = [0.0] * 5, [0.0, 1.0, 1.0, 5.0, 9.0], ["a", "a", "a", "b", "b"]
    rng, means = Random(3), []
    for _ in range(5000):
        drawn = [rng.choices(after[:3], k=3) if rng.random() < 0.5 else rng.choices(after[3:], k=2) for _ in range(2)]
        means.append(fmean(value for group in drawn for value in group))
    low, *_, high = quantiles(means, n=40)
    result = paired_bootstrap(before, after, 0, groups)
    assert result["ci95"] == pytest.approx([low, high], abs=0.25) and result["difference"] == pytest.approx(16 / 5)
    assert result["p_value"] == pytest.approx(2 * fmean(mean <= 0 for mean in means), abs=0.01)
    assert paired_bootstrap(before, after, 0, range(5)) == paired_bootstrap(before, after, 0)  # each for itself


def test_models_are_compared_by_the_mean_over_the_samples_of_a_context() -> None:
    def entry(reference: str, before: list[str], after: list[str], **more: Any) -> Entry:
        texts = {"pretrained": before, "sft": after}
        samples = {name: [{"text": text, "rating": len(text)} for text in texts[name]] for name in texts}
        return {"context": reference, "reference": reference, "samples": samples, **more}

    entries = [entry("one two", ["x", "x"], ["one two", "x"]), entry("three", ["three", "y"], ["y", "three"])]
    comparison = compare_models(entries, 0)
    assert set(comparison) == {"bleu", "rouge_l"}  # no rating where the rubric does not apply
    assert comparison["rouge_l"]["difference"] == pytest.approx((0.5 + 0) / 2)
    rated = [entry("one", ["a"], [text], intents=[intent]) for text, intent in (("abc", "refund"), ("abcde", "refund"))]
    rated += [entry("one", ["a"], ["abc"], intents=["delay", "refund"])]
    rating = compare_models(rated, 0)["rating"]
    assert rating == paired_bootstrap([1, 1, 1], [3, 5, 3], 0, ["refund", "refund", "delay"])
    same = [entry("one two", ["x"], [text]) for text in ("one two", "x", "x")]  # pairs that share a context
    assert compare_models(same, 0)["bleu"]["p_value"] == paired_bootstrap([0] * 3, [1, 0, 0], 0, "aaa")["p_value"]


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_each_perturbation_changes_what_it_says_and_the_reference_stays_faultless(
    made: dict[str, list[Pair]],
) -> None:
    all_scenarios = recognise_all(made["sft_test"])
    sets = perturbed_sets(made["sft_test"], all_scenarios, seed=0)
    pairs = [pair for pair, scenario in zip(made["sft_test"], all_scenarios) if scenario.item]
    scenarios = [scenario for scenario in all_scenarios if scenario.item]
    assert list(sets) == ["one_typo", "lower_case", "unknown_product"]
    for name, (perturbed, changed_scenarios) in sets.items():
        assert len(perturbed) > 120
        for pair, scenario in zip(perturbed, changed_scenarios, strict=True):
            assert rubric.rate(scenario, pair.response).score == 5.0, (name, pair)
            assert (scenario.misspelled or scenario.item).lower() in pair.context.lower()

    for before, after in zip(pairs, sets["one_typo"][0], strict=True):
        matcher = SequenceMatcher(None, before.context, after.context, autojunk=False)
        kept = sum(block.size for block in matcher.get_matching_blocks())
        assert before.context != after.context and kept >= len(before.context) - 1
    assert [pair.context for pair in sets["lower_case"][0]] == [pair.context.lower() for pair in pairs]
    for after, old, new in zip(sets["unknown_product"][0], scenarios, sets["unknown_product"][1]):
        assert old.item not in after.context and new.intents == old.intents
        assert f" a {new.item}" not in after.context or new.item[0] not in "aeiou"
    assert sets == perturbed_sets(pairs, scenarios, seed=0) != perturbed_sets(pairs, scenarios, seed=1)


def test_contexts_as_no_generator_writes_them_are_mistyped_where_that_is_possible() -> None:
    crowded = "My walnut bookshelf arrived broken. The oak desk and the pine sofa are fine."
    contexts = ["The Walnut Bookshelf arrived broken.", crowded]
    pairs = [Pair(context, "Thank you.") for context in contexts]
    scenarios = [rubric.recognise(context) for context in contexts]
    sets = perturbed_sets(pairs, scenarios, seed=0)
    assert [len(pairs) for pairs, _ in sets.values()] == [1, 2, 2]
    assert sets["one_typo"][0][0].context not in contexts
    short = replace(scenarios[0], item="axe")
    assert mistype("My axe is off.", short, Random(0)) == ("My axe is off.", short)


@pytest.fixture
def entries() -> list[dict[str, Any]]:
    def entry(context: str, categories: list[str], *ratings: float) -> dict[str, Any]:
        samples = [{"text": f"rated {rating}", "rating": rating, "faults": ["names no item"]} for rating in ratings]
        return {"context": context, "categories": categories, "samples": {"sft": samples}}

    return [
        entry("a", ["payment"], 5.0, 4.0),
        entry("b", ["payment", "delivery"], 3.5, 5.0),
        entry("c", ["delivery"], 1.0, 1.5),
    ]


def test_the_worst_come_first_one_for_each_context_with_their_reasons(entries: list[dict[str, Any]]) -> None:
    assert worst_replies(entries, count=2) == [
        {"context": "c", "text": "rated 1.0", "rating": 1.0, "faults": ["names no item"]},
        {"context": "b", "text": "rated 3.5", "rating": 3.5, "faults": ["names no item"]},
    ]
    assert len(worst_replies(entries * 10)) == 10


def test_errors_are_counted_in_every_category_of_a_context(entries: list[dict[str, Any]]) -> None:
    assert errors_by_category(entries) == {
        "delivery": {"replies": 4, "rated_below_4": pytest.approx(0.75)},
        "payment": {"replies": 4, "rated_below_4": pytest.approx(0.25)},
    }
