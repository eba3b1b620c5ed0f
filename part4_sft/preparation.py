"""Which pairs a run trains on, validates with and tests with, and what decides the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.log import note
from part4_sft.config import SFTConfig
from part4_sft.dataset import TEST_PAIRS, VALIDATION_PAIRS, Pair, hold_out, make_datasets, trainable
from part4_sft.encoding import Example, PairEncoder
from part4_sft.extras.streaming import load_beginning, load_stream
from part4_sft.formats import load_pairs
from part4_sft.metrics import recognise_all

LARGEST_HELD_OUT = {"sft_test": TEST_PAIRS, "sft_validation": VALIDATION_PAIRS}  # contexts, without --test-fraction

Data = dict[str, list[Pair]]  # pairs by the names of their files


def prepare_data(config: SFTConfig) -> Data:
    """Read the sets of pairs that the user named, and make or hold out the others.

    Pairs of the retail world are tested with the retail world's test sets. Of any others, and wherever
    --test-fraction says so, a share is held out.

    Raises:
        UserError: a file cannot be read, no pair trains, or too few contexts are there to hold any out.
    """
    files = {"sft_dataset": config.data, "sft_validation": config.validation_data, "sft_test": config.test_data}
    columns = config.columns or ()
    if config.stream:
        return {
            name: load_beginning(path, columns) if path == config.data else load_pairs(path, columns)
            for name, path in files.items()
            if path
        }
    given = {name: load_pairs(path, columns) for name, path in files.items() if path}
    pairs = given.get("sft_dataset", [])
    training = trainable(pairs, config.train_on)
    if pairs and not training:
        raise UserError(f"{config.data} holds no pair with high_quality 1", "label some, or use --train-on all")
    if not pairs or (config.test_fraction is None and recognise_all(training)):
        data = make_datasets(config.seed) | given
    else:
        data = given | _hold_out_missing(given, training, config)
    trained_contexts = {pair.context for pair in trainable(data["sft_dataset"], config.train_on)}
    for name in ("sft_validation", "sft_test"):
        if known := sum(pair.context in trained_contexts for pair in data[name]):
            note(f"{known} of {len(data[name])} contexts of {name} are in the training data too")
    return data


def _hold_out_missing(given: Data, training: list[Pair], config: SFTConfig) -> Data:
    """Return the validation and test sets that were not given, and the pairs that are left of the dataset."""
    contexts = len({pair.context for pair in training})
    size = max(1, round((config.test_fraction or 0.1) * contexts))
    sizes = {
        name: size if config.test_fraction else min(size, largest)
        for name, largest in LARGEST_HELD_OUT.items()
        if name not in given
    }
    try:
        parts = hold_out(training, list(sizes.values()), config.seed)
    except ValueError as error:
        raise UserError(f"{config.data}: {error}", "name --test-data and --validation-data") from error
    held_out = {pair.context for part in parts for pair in part}
    # A pair that does not train may have a context that is held out: left out, it would be lost uncounted.
    left = [
        pair for pair in given["sft_dataset"] if pair.context not in held_out or not trainable([pair], config.train_on)
    ]
    return {**dict(zip(sizes, parts)), "sft_dataset": left}


@dataclass(frozen=True)
class EncodedData:
    """The tokenised pairs of a run.

    Args:
        training: those that give gradients.
        dataset_size: how many pairs they were chosen from.
        digests: a checksum of each set of pairs, by a name for messages.
    """

    training: Sequence[Example]
    validation: Sequence[Example]
    dataset_size: int
    digests: dict[str, str]


def encode_data(config: SFTConfig, data: Data, encoder: PairEncoder) -> EncodedData:
    """Tokenise the pairs that give gradients, and those for validation.

    Raises:
        UserError: a response of any set is too long.
    """
    # The test pairs too: of one that does not fit, it is better to hear now than after the training.
    sets = {name.removeprefix("sft_"): pairs for name, pairs in data.items() if name != "sft_dataset"}
    digests = {f"the digest of {name}": digest(pairs) for name, pairs in data.items()}
    if config.stream and config.data:
        validation = encoder.encode_sets(sets)["validation"]
        stream = load_stream(config.data, encoder, config.train_on, config.out_dir, config.columns or ())
        digests["the digest of sft_dataset"] = stream.digest  # `data` has only its beginning
        return EncodedData(stream.examples, validation, stream.pairs, digests)
    pairs = data["sft_dataset"]
    examples = encoder.encode_sets({"training": trainable(pairs, config.train_on), **sets})
    return EncodedData(examples["training"], examples["validation"], len(pairs), digests)


def digest(pairs: list[Pair]) -> str:
    """Return a checksum of what the pairs say."""
    said = [(pair.context, pair.response, pair.high_quality, *pair.turns) for pair in pairs]
    return sha256(json.dumps(said).encode()).hexdigest()
