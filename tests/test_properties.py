"""What holds for every data set: hypothesis makes them up, the same ones in every run."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from part3_pretrain.corpus import IGNORE_INDEX
from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.tokenizer import EOS, PAD
from part4_sft.dataset import Pair
from part4_sft.encoding import PairEncoder
from part4_sft.formats import load_pairs
from part4_sft.training import collate, masked_loss, mean_loss

settings.register_profile("same in every run", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("same in every run")

# Any characters (but no half of one), words, and what could be taken for something else than text.
PARTS = st.sampled_from(["Where is my desk", "48213", EOS, PAD, "{context}", "\nAgent:", "\ufeff", "\u202e", '"', ","])
TEXTS = st.lists(st.text(max_size=8) | PARTS, min_size=1, max_size=6).map("".join).filter(str.strip)
PAIRS = st.builds(Pair, TEXTS, TEXTS, st.integers(0, 1))
BATCHES = st.lists(PAIRS, min_size=1, max_size=6)


@given(PAIRS)
def test_labels_are_the_response_and_its_end_and_no_token_is_lost(encoder: PairEncoder, pair: Pair) -> None:
    example = encoder.encode(pair)
    boundary = example.labels.count(IGNORE_INDEX)
    assert example.labels == [IGNORE_INDEX] * boundary + example.ids[boundary:]
    *response, end = example.ids[boundary:]
    decode = encoder.tokenizer.decode
    assert decode(example.ids[:boundary]) == encoder.template.replace("{context}", pair.context)
    assert decode(response) == " " + pair.response
    assert end == encoder.eos_id
    assert {encoder.eos_id, encoder.tokenizer.token_to_id(PAD)}.isdisjoint(example.ids[:-1])


@given(PAIRS, st.integers(2, 60))
def test_what_is_too_long_is_cut_from_its_left_or_refused(encoder: PairEncoder, pair: Pair, max_length: int) -> None:
    whole = encoder.encode(pair)
    response = [label for label in whole.labels if label != IGNORE_INDEX]
    short = replace(encoder, max_length=max_length)
    if len(response) >= max_length:
        with pytest.raises(UserError, match=f"too many for {max_length}"):
            short.encode(pair)
    else:
        cut = short.encode(pair)
        assert (cut.ids, cut.labels) == (whole.ids[-max_length:], whole.labels[-max_length:])


@given(TEXTS, st.integers(1, 30))
def test_of_a_very_long_context_the_same_tokens_are_kept_as_if_all_were_tokenised(
    encoder: PairEncoder, text: str, room: int
) -> None:
    context = f"{text} my desk is late. " * 100
    whole = encoder.tokenizer.encode(encoder.template.replace("{context}", context)).ids
    assert encoder.encode_prompt(context, room) == whole[-room:]


@given(BATCHES)
def test_batches_hold_every_token_and_label(encoder: PairEncoder, pairs: list[Pair]) -> None:
    examples = encoder.encode_all(pairs)
    inputs, targets, lengths = collate(examples)
    parts = zip(inputs[0].split(lengths), targets[0].split(lengths))
    assert [(part.tolist(), labels.tolist()) for part, labels in parts] == [
        (example.ids[:-1], example.labels[1:]) for example in examples
    ]


@torch.no_grad()
@given(BATCHES, st.randoms(use_true_random=False), st.integers(1, 7))
def test_the_loss_depends_neither_on_the_order_nor_on_the_parts_it_is_computed_in(
    tiny_model: Transformer, encoder: PairEncoder, pairs: list[Pair], random: Random, parts: int
) -> None:
    examples = encoder.encode_all(pairs)
    loss = masked_loss(tiny_model, *collate(examples)).item()
    random.shuffle(examples)
    assert masked_loss(tiny_model, *collate(examples)).item() == pytest.approx(loss, rel=1e-5)
    tokens = sum(label != IGNORE_INDEX for example in examples for label in example.labels)
    assert mean_loss(tiny_model, examples, batch_size=parts) == pytest.approx(loss / tokens, rel=1e-5)


@given(BATCHES, st.sampled_from(["json", "jsonl", "csv"]), st.booleans())
def test_any_text_comes_back_from_any_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[Pair], kind: str, ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / f"pairs.{kind}"
    entries = [{key: getattr(pair, key) for key in ("context", "response", "high_quality")} for pair in pairs]
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == "csv":
            assume(not any("\0" in pair.context + pair.response for pair in pairs))  # CSV has no place for it
            writer = csv.DictWriter(file, entries[0])
            writer.writeheader()
            writer.writerows(entries)
        elif kind == "jsonl":
            file.writelines(json.dumps(entry, ensure_ascii=ascii_only) + "\n" for entry in entries)
        else:
            json.dump(entries, file, ensure_ascii=ascii_only, indent=1)
    assert load_pairs(path) == pairs
