"""What a look-up in the training pairs would answer: a model that scores no better has learnt nothing to speak of."""

from __future__ import annotations

import math
from collections import Counter

import torch
from nltk import wordpunct_tokenize

from part4_sft.dataset import Pair
from part4_sft.metrics import Replies


def most_common_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """The most frequent training response, whatever is asked."""
    ((text, _),) = Counter(pair.response for pair in training).most_common(1)
    return Replies([text] * len(pairs), [True] * len(pairs))


def nearest_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """The response to the most similar training context: cosine of TF-IDF weights over lower-case words."""
    documents = [Counter(wordpunct_tokenize(pair.context.lower())) for pair in training]
    frequency = Counter(word for document in documents for word in document)
    column = {word: index for index, word in enumerate(frequency)}
    idf = torch.tensor([math.log(len(documents) / count) for count in frequency.values()])

    def vectors(counts: list[Counter[str]]) -> torch.Tensor:
        weights = torch.zeros(len(counts), len(column))
        for row, count in enumerate(counts):
            for word, times in count.items():
                if word in column:
                    weights[row, column[word]] = times
        return torch.nn.functional.normalize(weights * idf, dim=-1)

    asked = vectors([Counter(wordpunct_tokenize(pair.context.lower())) for pair in pairs])
    nearest = (asked @ vectors(documents).T).argmax(-1).tolist()
    return Replies([training[index].response for index in nearest], [True] * len(pairs))
