"""Pairs: made, read, checked, tokenised, masked and put into batches.

A pair is `{"context": str, "response": str, "high_quality": 0 or 1}`. Its tokens are

    encode("Customer: {context}\\nAgent:")  +  encode(" {response}") + [EOS]
    labels: -100 for every one of these     labels: the ids themselves

The two parts are encoded apart, so the boundary between them is exact, and <EOS> is trained like any other token.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor

from part3_pretrain import retail
from part3_pretrain.command_line import UserError
from part3_pretrain.corpus import IGNORE, pad
from part3_pretrain.files import written_whole
from part3_pretrain.tokenizer import EOS

PAIRS, HIGH_QUALITY_PAIRS, VALIDATION_PAIRS, TEST_PAIRS = 5000, 500, 100, 200


@dataclass(frozen=True)
class Pair:
    """What was asked, what was answered, and whether (1 or 0) the answer is of high quality."""

    context: str
    response: str
    high_quality: int = 1


@dataclass(frozen=True)
class Example:
    """A tokenised pair: ids of context and response, and labels of the same length that are -100 over the context."""

    ids: list[int]
    labels: list[int]


# ---------------------------------------------------------------------------------------------------- making


def make_datasets(seed: int) -> dict[str, list[Pair]]:
    """The five synthetic retail data sets by the names of their files; the same seed gives the same pairs.

    Training pairs share no (intent, item) combination with the others. Every context is unlike all others.
    """
    rng = Random(seed)
    seen: set[str] = set()

    def ideal(count: int, held_out_item: bool, **wording: bool) -> list[Pair]:
        return _make(count, held_out_item, retail.ideal_reply, seen, rng, **wording)

    training = ideal(HIGH_QUALITY_PAIRS, held_out_item=False)
    training += _make(PAIRS - HIGH_QUALITY_PAIRS, False, retail.typical_reply, seen, rng)
    return {
        "sft_dataset": training,
        "sft_validation": ideal(VALIDATION_PAIRS, held_out_item=True),
        "sft_test": ideal(TEST_PAIRS, held_out_item=True),
        "sft_test_unseen_wording": ideal(TEST_PAIRS, held_out_item=True, held_out=True),
        "sft_test_unseen_phrase": ideal(TEST_PAIRS, held_out_item=True, restated_only=True),
    }


def _make(
    count: int,
    held_out_item: bool,
    reply: Callable[[retail.Scenario, Random], str],
    seen: set[str],
    rng: Random,
    **wording: bool,
) -> list[Pair]:
    pairs = []
    while len(pairs) < count:
        scenario = retail.draw_scenario(rng, held_out=held_out_item)
        context = retail.draw_context(scenario, rng, **wording)
        if context not in seen:
            seen.add(context)
            response = reply(scenario, rng)
            rating = retail.rate(scenario, response).score
            pairs.append(Pair(context, response, int(rating >= retail.HIGH_QUALITY)))
    return pairs


# ---------------------------------------------------------------------------------------------------- files


def save_pairs(path: Path, pairs: list[Pair]) -> None:
    """Writes a JSON array with one pair a line."""
    lines = ",\n".join(json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs)
    with written_whole(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def load_pairs(path: Path) -> list[Pair]:
    """Reads and checks a JSON array of pairs.

    Raises:
        UserError: the file cannot be read, or an entry is not a pair; the message names the line or the entry.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise UserError(f"{path} cannot be read as an array of pairs") from error
    if not isinstance(entries, list):
        raise UserError(f"{path} must hold a JSON array of pairs, not {type(entries).__name__}")
    if not entries:
        raise UserError(f"{path} holds no pairs")
    return [_checked(entry, f"{path}, pair {number}") for number, entry in enumerate(entries, start=1)]


def _checked(entry: object, where: str) -> Pair:
    keys = ["context", "response", "high_quality"]
    if not isinstance(entry, dict):
        raise UserError(f'{where}: must be an object {{"context", "response", "high_quality"}}')
    for key in keys:
        if key not in entry:
            raise UserError(f'{where}: the key "{key}" is missing')
    if surplus := sorted(set(entry) - set(keys)):
        raise UserError(f'{where}: unknown key "{surplus[0]}"; the keys are {", ".join(keys)}')
    for key in keys[:2]:
        if not isinstance(entry[key], str):
            raise UserError(f'{where}: "{key}" must be text, not {json.dumps(entry[key])[:40]}')
        if not entry[key].strip():
            raise UserError(f'{where}: "{key}" is empty')
        if re.search(r"[\ud800-\udfff]", entry[key]):
            raise UserError(f'{where}: "{key}" holds half of a character (a lone surrogate)')
    if type(entry["high_quality"]) is not int or entry["high_quality"] not in (0, 1):
        raise UserError(f'{where}: "high_quality" must be 0 or 1, not {json.dumps(entry["high_quality"])[:40]}')
    return Pair(**entry)


# ---------------------------------------------------------------------------------------------------- tokens


def encode_context(context: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of the prompt that a model answers."""
    return tokenizer.encode(f"Customer: {context}\nAgent:", add_special_tokens=False).ids


def encode_pair(pair: Pair, tokenizer: Tokenizer, max_length: int) -> Example:
    """Tokenises and masks a pair. What is too long loses the beginning of its context, never of its response.

    Raises:
        ValueError: the response and one token of context are longer than `max_length`.
    """
    context = encode_context(pair.context, tokenizer)
    response = tokenizer.encode(f" {pair.response}", add_special_tokens=False).ids + [tokenizer.token_to_id(EOS)]
    room = max_length - len(response)
    if room < 1:
        raise ValueError(f"its response has {len(response)} tokens, and at most {max_length - 1} fit")
    context = context[-room:]
    return Example(context + response, [IGNORE] * len(context) + response)


def encode_pairs(
    pairs: Iterable[tuple[int, Pair]], tokenizer: Tokenizer, max_length: int, source: str
) -> list[Example]:
    """Tokenises pairs, each given with its number in `source`. Raises UserError naming the first that is too long."""
    examples = []
    for number, pair in pairs:
        try:
            examples.append(encode_pair(pair, tokenizer, max_length))
        except ValueError as error:
            raise UserError(f"{source}, pair {number}: {error}; shorten it or raise --max-length") from error
    return examples


# ---------------------------------------------------------------------------------------------------- batches


def collate(examples: list[Example], pad_id: int) -> tuple[Tensor, Tensor]:
    """Examples as inputs and the labels of the next token, each (batch, time), padded on the right."""
    inputs = pad([torch.tensor(example.ids[:-1]) for example in examples], pad_id)
    targets = pad([torch.tensor(example.labels[1:]) for example in examples], IGNORE)
    return inputs, targets


def shuffled_steps(examples: list[Example], batch_size: int, epoch: int, seed: int) -> Iterator[list[Example]]:
    """One epoch's optimizer steps: every example once, in an order that seed and epoch decide."""
    order = list(range(len(examples)))
    Random(f"{seed}/{epoch}").shuffle(order)
    for start in range(0, len(order), batch_size):
        yield [examples[index] for index in order[start : start + batch_size]]
