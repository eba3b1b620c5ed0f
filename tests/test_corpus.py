"""The corpus: how documents become batches. What they hold is tested in test_documents.py."""

from __future__ import annotations

from random import Random

import pytest
import torch
from tokenizers import Tokenizer

from part3_pretrain import corpus
from part3_pretrain.corpus import COPY_LENGTH, IGNORE_INDEX, batches


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = Random(0)
    return [corpus.draw_document(rng) for _ in range(200)]


def test_a_document_becomes_rows_that_decode_back(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Only the last row ends in <EOS>, and an <EOS> that spills over is no row: it would have nothing to predict."""
    eos = tokenizer.token_to_id("<EOS>")
    for text in [*texts[:20], "Write <EOS> or <PAD> if you like. " * 20]:
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == text and eos not in ids
        for block_size in (len(ids) + 1, (len(ids) + 1) // 2 + 1):
            rows = corpus.tokenize([text, "a"], tokenizer, eos, block_size)
            assert torch.cat(rows[:-1]).tolist() == [*ids, eos]
            assert [len(row) for row in rows[:-2]] == [block_size] * (len(rows) - 2)
        assert torch.cat(corpus.tokenize([text], tokenizer, eos, len(ids))).tolist() == ids


def test_batches_hold_every_row_once_and_predict_the_next_token() -> None:
    rng = Random(0)  # every row is told from the others by its first token
    rows = [torch.tensor([index, *rng.choices(range(500), k=rng.randint(1, 60))]) for index in range(200)]
    seen, widths = [], []
    for inputs, targets in batches(rows, 256, Random(0)):
        assert inputs.shape == targets.shape and (inputs.shape[1] + 1) * len(inputs) <= 256
        for row_inputs, row_targets in zip(inputs, targets):
            row = rows[row_inputs[0]]
            end = len(row) - 1
            assert torch.equal(row_inputs[:end], row[:-1]) and torch.equal(row_targets[:end], row[1:])
            assert (row_targets[end:] == IGNORE_INDEX).all()
            seen.append(int(row_inputs[0]))
        widths.append(inputs.shape[1])
    assert sorted(seen) == list(range(200))
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORE_INDEX
    assert widths != sorted(widths) and len(widths) < 1.2 * sum(map(len, rows)) / 256  # little is padding


def test_chance_decides_which_rows_of_a_length_share_a_batch_and_a_row_may_exceed_it() -> None:
    rows = [torch.tensor([index, 0, 0]) for index in range(8)]
    drawn = [{frozenset(inputs[:, 0].tolist()) for inputs, _ in batches(rows, 6, Random(seed))} for seed in (0, 1)]
    assert drawn[0] != drawn[1] and {len(batch) for batch in drawn[0]} == {2}
    assert [len(inputs) for inputs, _ in batches(rows, 2, Random(0))] == [1] * 8


def test_a_message_that_something_follows_is_read_but_not_predicted(tokenizer: Tokenizer) -> None:
    answered = ["Customer: My desk is late.", "\nAgent: Hello.\nCustomer: And now?\nAgent: Well."]
    for message, rest in (answered, ["", "Customer: My desk is late."], ["", "Customers who say it\nmean it."]):
        (row,) = corpus.tokenize([message + rest], tokenizer, 1, 200)
        kept = corpus.ignore_messages(row[None, :-1], row[None, 1:], tokenizer)
        words = tokenizer.decode(kept[kept != IGNORE_INDEX].tolist())
        assert words == rest or (not message and rest.endswith(words) and kept.min() >= 0)


def test_copy_batch_asks_for_the_repeats_alone() -> None:
    digits = list(range(490, 500))
    inputs, targets = corpus.copy_batch(500, digits, 60 * COPY_LENGTH + 1, Random(0))
    assert inputs.shape == targets.shape == (60, COPY_LENGTH)
    periods = [row.count(IGNORE_INDEX) + 1 for row in targets.tolist()]
    for period, row, row_targets in zip(periods, inputs.tolist(), targets.tolist()):
        assert row_targets == [IGNORE_INDEX] * (period - 1) + row[: COPY_LENGTH - period + 1]  # one period before
        assert row_targets[period - 1 : -1] == row[period:]  # which is also the next token
    assert min(periods) == 4 and max(periods) == COPY_LENGTH // 3
    assert 0.6 < torch.isin(inputs, torch.tensor(digits)).float().mean() < 0.8
    assert len(inputs[::2].unique()) > 100
