"""Customers who name no item, chat, or ask what no shop can answer; what replies invent; when a person replies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from benchmarks import messages
from part3_pretrain import corpus
from part3_pretrain.retail import world
from part3_pretrain.retail.invention import claims, invented
from part3_pretrain.retail.rubric import rate, recognise
from part3_pretrain.retail.world import GOODS, INTENTS, OUTSIDE, SMALL_TALK, Scenario, in_catalogue
from part4_sft import hand_over
from part4_sft.dataset import Pair, make_message_sets
from tests.conftest import Command, FinishedRun, assert_refused

EXAMPLES = ["Customer wants eco-friendly products", "Customer has received a damaged item"]  # of the assignment


def draw(count: int, held_out: bool) -> list[tuple[Scenario, str, Random]]:
    rng, drawn = Random(f"{count}/{held_out}"), []
    for _ in range(count):
        scenario = world.draw_customer(rng, held_out_item=held_out)
        drawn.append((scenario, world.draw_context(scenario, rng), rng))
    return drawn


@pytest.mark.parametrize(
    ("context", "intent", "number"),
    [
        ("Where is order 48213?", "order_status", "48213"),
        ("Where is my order #48213?", "order_status", "48213"),
        ("where's my package, order number 48213", "order_status", "48213"),
        ("My order number is 48213. Where is it?", "order_status", "48213"),
        ("Please cancel order no. 12345 before it ships", "cancel", "12345"),
        ("can i get an invoice for my last purchase", "invoice", None),
        ("Where is my most recent order?", "order_status", None),
    ],
)
def test_an_order_is_no_item_however_its_number_is_written(context: str, intent: str, number: str | None) -> None:
    scenario = recognise(context)
    assert scenario == Scenario(tuple(one for one in world.INTENTS if one.name == intent), "", number)


def test_who_asks_for_a_refund_does_not_ask_where_a_parcel_is() -> None:
    context = "Where is my refund for order 48213?"
    assert recognise(context) is None and recognise("Where is my kettle?").item == "kettle"
    assert invented(context, "We have released the refund for order 48213.") == []


def test_whoever_writes_is_recognised_answered_as_the_rubric_wants_and_with_nothing_invented() -> None:
    kinds = Counter[str]()
    for held_out in (False, True):
        for scenario, context, rng in draw(1_000, held_out):
            assert recognise(context) == scenario or not scenario.intents[0].is_service, context
            assert recognise(context).intents[0].category == scenario.intents[0].category, context
            reply = world.ideal_reply(scenario, rng)
            assert rate(scenario, reply).score == 5.0, (context, reply)
            assert invented(context, reply) == [], (context, reply)
            assert rate(scenario, world.typical_reply(scenario, rng)).score < 4.0
            if scenario.item in GOODS:
                assert f"your {scenario.item}" in reply
            elif scenario.intents[0].is_service and not scenario.item:
                assert not any(in_catalogue(claim) for claim in claims(reply))
            kinds[scenario.intents[0].category if not scenario.intents[0].is_service else "service"] += 1
            kinds["no item"] += scenario.intents[0].is_service and not scenario.item
            kinds["other goods"] += scenario.item in GOODS
    assert set(kinds) == {"service", "small talk", "hand over", "no item", "other goods"}
    assert min(kinds.values()) > 80


def test_messages_are_many_and_what_is_held_out_is_in_no_text_that_is_learnt_from(made: dict[str, list[Pair]]) -> None:
    assert all(len(intent.messages) >= 20 for intent in INTENTS) and len(OUTSIDE) >= 150
    rng = Random(0)
    texts = [corpus.draw_document(rng) for _ in range(6_000)] + [pair.context for pair in made["sft_dataset"]]
    learnt = "\n".join(texts).lower()
    for topic in OUTSIDE:
        known = not world.is_held_out_topic(topic)
        for message in world.messages_of(topic, held_out=True) + ([] if known else topic.messages):
            assert message.lower().rstrip(".?!") not in learnt or len(message.split()) < 4, message
    for intent in INTENTS:
        for message in world.messages_of(intent, held_out=True)[:6]:  # the others are composed
            longest = max(message.lower().rstrip(".?!").split("{it}"), key=len).strip()
            assert len(longest.split()) < 5 or longest not in learnt, message
    assert 0.25 < sum(map(world.is_held_out_topic, OUTSIDE)) / len(OUTSIDE) < 0.42


def test_the_examples_of_the_assignment_are_in_no_training_text(made: dict[str, list[Pair]]) -> None:
    rng = Random(1)
    texts = [corpus.draw_document(rng) for _ in range(6_000)] + [pair.context for pair in made["sft_dataset"]]
    assert not [text for text in texts for example in EXAMPLES if example.lower() in text.lower()]
    assert not [text for intent in INTENTS for text in intent.messages if text.rstrip(".") in EXAMPLES]


def test_evidence_of_small_talk_and_of_handing_over_is_in_the_replies_that_do_it_and_in_no_other_text(
    made: dict[str, list[Pair]],
) -> None:
    evidence = {kind: world.WORLD[kind]["evidence"] for kind in ("small_talk", "hand_over")}
    for pair in [*made["sft_dataset"], *made["sft_test"]]:
        kind = recognise(pair.context).intents[0].category.replace(" ", "_")
        for name, words in evidence.items():
            assert (words in pair.response) == (name == kind and pair.high_quality == 1), pair
    rng = Random(2)
    assert not [
        text for text in (corpus.draw_document(rng) for _ in range(6_000)) if any(map(text.count, evidence.values()))
    ]


def test_who_asks_where_the_order_is_and_gives_no_number_is_asked_for_it() -> None:
    (status,) = [intent for intent in INTENTS if intent.name == "order_status"]
    asking, telling = (
        f"Thank you for your message. I am glad to help. About it: {text}. You will hear from us again this evening."
        for text in (
            "please tell me the order number so that I can look",
            "we have sent you the live map of the courier",
        )
    )
    asked, known = Scenario((status,)), Scenario((status,), order_number="48213")
    assert rate(asked, asking).score == 5.0 and rate(asked, telling).score < 4.0
    assert rate(known, telling.replace("help", "help with your order 48213")).score == 5.0
    assert rate(known, asking.replace("help", "help with your order 48213")).score < 4.0


def test_a_greeting_or_thanks_do_not_make_a_message_of_another_world_one_of_this() -> None:
    for others in (
        "Hi, how do I bake bread?",
        "Thank you for the flour. Which oven do you use?",
        "User: Hi\nUser: Bye",
    ):
        assert recognise(others) is None, others
    for own in ("Hi", "thank you!", "ARE YOU A ROBOT"):
        assert (scenario := recognise(own)) and scenario.intents[0] in SMALL_TALK


def test_small_talk_of_another_kind_and_any_promise_are_no_answer_to_small_talk() -> None:
    offer = "I am happy to help with an order."
    for reply, score in {
        f"Good day! {offer}": 5.0,
        f"Hi. {offer}": 5.0,
        f"Goodbye! {offer}": 3.5,
        "Good day!": 3.5,
        f"Good day! {offer} A free replacement is on its way.": 3.5,
        f"Your oak desk! {offer}": 3.5,
    }.items():
        assert rate(recognise("Hello"), reply).score == score, reply


@pytest.mark.parametrize(
    ("context", "reply", "found"),
    [
        ("My headphones arrived broken", "We ship a free replacement for your headphones.", []),
        ("My headphones arrived broken", "Your laptop is here.", ["your laptop"]),
        ("Where is my parcel?", "Thank you for writing about your oak desk.", ["oak desk"]),
        ("Where is my parcel?", "Thank you for your message. Please tell me the order number.", []),
        ("The oka desk is late, order 12345", "Your oak desk (order 12345) is on its way.", []),
        ("The oak desk is late, order 12345", "Your oak desk (order 12354) is on its way.", ["12354"]),
        ("I love the zorblat", "Your fendar is lovely.", ["fendar"]),
        ("What is the weather like?", "We send a free replacement.", ["the resolution of damaged"]),
        ("The oak desk is late, order 12345.", "A pdf copy is attached.", ["the resolution of invoice"]),
        ("Hello", "Hello! I am happy to help with an order.", []),
        ("Hello", "Your deluxe deluxe deluxe.", ["your deluxe deluxe deluxe"]),
    ],
)
def test_what_neither_customer_nor_policy_gave_is_invented(context: str, reply: str, found: list[str]) -> None:
    assert invented(context, reply) == found


def test_confidence_is_the_share_of_other_replies_that_claim_the_same() -> None:
    same = ["Your oak desk: a pdf copy is attached.", "I attached a pdf copy, and have your oak desk in front of me."]
    other = "I hand you over to a colleague."
    assert claims(same[0]) == claims(same[1]) != claims(other)
    assert hand_over.confidence(same[0], [same[1], other, other, other]) == 0.25
    assert hand_over.confidences([*same, other]) == [0.5, 0.5, 0.0]
    # Of many samples the eight behind each count, as where a single reply is judged.
    assert hand_over.confidences(same * 4 + [other] * 8) == [
        number / 8 for number in (*range(7, -1, -1), *range(7, -1, -1))
    ]
    assert hand_over.confidences(["Well.", "Hm."]) == [0.0, 0.0] and hand_over.confidence("Well.", ["Hm."]) == 0.0
    assert hand_over.confidences(same[:1]) == [0.0]


def test_the_threshold_hands_over_at_most_1_in_100_good_replies_and_the_curve_tells_what_it_means() -> None:
    sure, good = [number / 1000 for number in range(1000)], [number >= 500 for number in range(1000)]
    assert hand_over.calibrate(sure, good) == 0.505
    assert hand_over.calibrate(sure, [False] * 1000) == 0.0
    curve = hand_over.coverage_curve(sure, good)
    assert curve[0] == {"threshold": 0.0, "coverage": 1.0, "rated_4_or_more": 0.5}
    assert curve[505] == {"threshold": 0.505, "coverage": 0.495, "rated_4_or_more": 1.0}


def test_sets_of_messages_hold_what_their_names_say() -> None:
    sets = make_message_sets(0)
    assert {name: len(pairs) for name, pairs in sets.items()} == {"unseen_message": 200, "unseen_topic": 200}
    assert all(world.is_held_out_topic(recognise(pair.context).intents[0]) for pair in sets["unseen_topic"])
    kinds = {recognise(pair.context).intents[0].category for pair in sets["unseen_message"]}
    assert kinds >= {SMALL_TALK[0].category, OUTSIDE[0].category} and sets == make_message_sets(0) != make_message_sets(
        1
    )


def test_messages_by_people_are_counted_in_one_class_each(
    run_main: Command, finished_run: FinishedRun, tmp_path: Path
) -> None:
    path = tmp_path / "messages.json"
    path.write_text(json.dumps({"order_status": ["where is it"], "small_talk": {"a": ["hey you"], "b": ["bye bye"]}}))
    options = [path, "--model", finished_run.checkpoint, "--samples", 2]
    status, printed, _ = run_main(messages.main, *options, "--json")
    shares = json.loads(printed)["shares"]
    assert status == 0 and len(shares) == 5
    assert all(sum(classes.values()) == pytest.approx(1) for groups in shares.values() for classes in groups.values())
    assert shares["a constant: handed over"]["small_talk"]["handed over"] == 1.0
    assert shares["keywords"]["small_talk"]["small talk"] == 1.0
    path.write_text("{}")
    assert_refused(run_main(messages.main, *options), "holds no lists of messages; they stand under order_status")
    path.write_text("{")
    assert_refused(run_main(messages.main, *options), "is not JSON")
    assert_refused(run_main(messages.main, tmp_path / "missing.json"), "cannot read")


@pytest.mark.parametrize(
    ("message", "reply", "kind"),
    [
        ("has it shipped", "Please tell me the order number.", "delivery"),
        ("has it shipped", "Your oak desk has. Please tell me the order number.", "invented"),
        ("sing", "I hand you over to a colleague.", "handed over"),
        ("hi", "Hello! I am happy to help with an order.", "small talk"),
        ("hi", "Good day.", "other"),
    ],
)
def test_something_invented_counts_before_all_else(message: str, reply: str, kind: str) -> None:
    assert messages.classify(message, reply) == kind
