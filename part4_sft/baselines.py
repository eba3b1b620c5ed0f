"""What a look-up in the training pairs would answer: a model that scores no better has learnt little."""

from __future__ import annotations

import math
from collections import Counter

import torch
from nltk import wordpunct_tokenize

from part4_sft.dataset import Pair
from part4_sft.metrics import Replies

CONTEXTS_PER_CHUNK = 100  # their vectors are as long as the vocabulary


def most_common_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """Answer everything with the most frequent training response."""
    ((text, _),) = Counter(pair.response for pair in training).most_common(1)
    return Replies([text] * len(pairs), [True] * len(pairs))


def nearest_replies(training: list[Pair], pairs: list[Pair]) -> Replies:
    """Answer with the response to the most similar training context: cosine of TF-IDF weights of lower-case words."""
    documents = [_word_counts(pair) for pair in training]
    frequency = Counter(word for document in documents for word in document)
    idf = {word: math.log(len(documents) / count) for word, count in frequency.items()}
    training_vectors = _tf_idf(documents, idf)
    nearest: list[int] = []
    for start in range(0, len(pairs), CONTEXTS_PER_CHUNK):
        chunk = pairs[start : start + CONTEXTS_PER_CHUNK]
        vectors = _tf_idf([_word_counts(pair) for pair in chunk], idf).to_dense()
        nearest += torch.sparse.mm(training_vectors, vectors.T).argmax(0).tolist()
    return Replies([training[index].response for index in nearest], [True] * len(pairs))


def _word_counts(pair: Pair) -> Counter[str]:
    return Counter(wordpunct_tokenize(pair.context.lower()))


def _tf_idf(documents: list[Counter[str]], idf: dict[str, float]) -> torch.Tensor:
    """Return sparse vectors of length 1 over the words of the training contexts, (documents, words)."""
    columns = {word: column for column, word in enumerate(idf)}
    indices: list[tuple[int, int]] = []
    weights: list[float] = []
    for row, document in enumerate(documents):
        known = {word: count * idf[word] for word, count in document.items() if word in idf}
        length = math.hypot(*known.values()) or 1.0
        indices += [(row, columns[word]) for word in known]
        weights += [weight / length for weight in known.values()]
    shape = (len(documents), len(idf))
    places = torch.tensor(indices, dtype=torch.long).reshape(-1, 2).T
    return torch.sparse_coo_tensor(places, torch.tensor(weights), shape, check_invariants=True)
