from __future__ import annotations

from nltk import wordpunct_tokenize

from part4_sft.baselines import most_common_replies, nearest_replies
from part4_sft.dataset import Pair
from part4_sft.metrics import Replies


def test_the_nearest_reply_is_that_of_the_same_context(made: dict[str, list[Pair]]) -> None:
    by_words = {frozenset(wordpunct_tokenize(pair.context.lower())): pair for pair in made["sft_dataset"][:200]}
    training = list(by_words.values())
    assert len(training) > 190
    asked = [Pair(pair.context.upper(), "?") for pair in reversed(training)]
    assert nearest_replies(training, asked).texts == [pair.response for pair in reversed(training)]
    rare = Pair("please help with the unicycle", "?")  # a rare word says more than common ones
    training = [Pair("please help me", "1"), Pair("please help", "2"), Pair("a unicycle", "3"), Pair("please", "4")]
    assert nearest_replies(training, [rare]).texts == ["3"]


def test_the_most_common_reply() -> None:
    training = [Pair("a", "rare"), Pair("b", "common"), Pair("c", "common")]
    assert most_common_replies(training, [Pair("d", "?")] * 2) == Replies(["common"] * 2, [True] * 2)
