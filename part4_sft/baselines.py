"""What a look-up in the training pairs would answer: a model that scores no better has learnt nothing to speak of."""

from __future__ import annotations

import math
from collections import Counter

import torch
from nltk import wordpunct_tokenize

from part4_sft.dataset import Pair
from part4_sft.metrics import Replies

AT_ONCE = 100  # test contexts; their vectors are as long as the vocabulary


def most_common_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """The most frequent training response, whatever is asked."""
    ((text, _),) = Counter(pair.response for pair in training).most_common(1)
    return Replies([text] * len(pairs), [True] * len(pairs))


def nearest_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """The response to the most similar training context: cosine of TF-IDF weights over lower-case words."""
    documents = [_words(pair) for pair in training]
    frequency = Counter(word for document in documents for word in document)
    idf = {word: math.log(len(documents) / count) for word, count in frequency.items()}
    known = _vectors(documents, idf)
    nearest: list[int] = []
    for start in range(0, len(pairs), AT_ONCE):
        asked = _vectors([_words(pair) for pair in pairs[start : start + AT_ONCE]], idf).to_dense()
        nearest += torch.sparse.mm(known, asked.T).argmax(0).tolist()
    return Replies([training[index].response for index in nearest], [True] * len(pairs))


def _words(pair: Pair) -> Counter[str]:
    return Counter(wordpunct_tokenize(pair.context.lower()))


def _vectors(documents: list[Counter[str]], idf: dict[str, float]) -> torch.Tensor:
    """Sparse vectors of length 1 over the words that are known, (documents, words)."""
    column = {word: index for index, word in enumerate(idf)}
    entries = [
        (row, column[word], times * idf[word])
        for row, document in enumerate(documents)
        for word, times in document.items()
        if word in idf
    ]
    rows, columns = torch.tensor([entry[:2] for entry in entries], dtype=torch.long).reshape(-1, 2).T
    weights = torch.tensor([weight for *_, weight in entries])
    squares = torch.zeros(len(documents)).index_add(0, rows, weights.square())
    weights = weights / squares[rows].clamp(min=1e-12).sqrt()
    shape = (len(documents), len(idf))
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), weights, shape, check_invariants=True)
