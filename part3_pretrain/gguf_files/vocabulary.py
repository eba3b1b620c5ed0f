"""The tokenizer in the metadata of a GGUF file, which holds vocabulary and merges, and a name for how texts are split.

llama.cpp splits by the name (https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp); what stands here
for each is what the models' own tokenizer.json has. (transformers takes "smollm" for "gpt-2", so "\n\n1" becomes other
ids than those that the model was trained on.)
"""

from __future__ import annotations

import json
from itertools import zip_longest
from typing import Any

from tokenizers import Tokenizer

from part3_pretrain.tokenizer import load_tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


def _sequence(*steps: dict[str, Any], use_regex: bool = False) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [*steps, BYTE_LEVEL | {"use_regex": use_regex}]}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# Of tokenizer.json: the normalizer, the pre-tokenizer, and whether a word of the vocabulary needs no merges.
SPLITS: dict[str, tuple[dict[str, Any] | None, dict[str, Any], bool]] = {
    "smollm": (None, _sequence({"type": "Digits", "individual_digits": True}, use_regex=True), False),
    "gpt-2": (None, BYTE_LEVEL | {"use_regex": True}, False),
    "llama-bpe": (None, _sequence(_split(LLAMA3_SPLIT)), True),
    "qwen2": ({"type": "NFC"}, _sequence(_split(QWEN2_SPLIT)), False),
}
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}


def tokenizer_from_metadata(metadata: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer. Raise ValueError where its kind is not known here, any Exception where it is damaged."""
    kind, split = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    split = SAME.get(str(split), split)
    if kind != "gpt2" or split not in SPLITS:
        told = f"its tokenizer is {json.dumps(kind)}, {json.dumps(split)}"
        raise ValueError(f'{told}; those that can be used are "gpt2" with {", ".join(map(json.dumps, SPLITS))}')
    normalizer, pre_tokenizer, ignore_merges = SPLITS[split]
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    entries = list(zip_longest(tokens, map(int, kinds), fillvalue=NORMAL))[: len(tokens)]
    added = [
        {"id": number, "content": token, "special": kind == CONTROL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number, (token, kind) in enumerate(entries)
        if kind in (CONTROL, USER_DEFINED)
    ]
    stored = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _begins_with(tokens, metadata, default=ignore_merges),
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, (token, kind) in enumerate(entries) if kind != UNUSED},
            "merges": [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]],
            "ignore_merges": ignore_merges,
        },
    }
    return load_tokenizer(json.dumps(stored))


def _begins_with(tokens: list[str], metadata: dict[str, Any], default: bool) -> dict[str, Any] | None:
    """Return the post-processor that puts <BOS> before a text, where the metadata ask for it."""
    number = metadata.get("tokenizer.ggml.bos_token_id")
    if number is None or not metadata.get("tokenizer.ggml.add_bos_token", default):
        return None
    token = tokens[number]
    first, text, second = (
        {"SpecialToken": {"id": token, "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"Sequence": {"id": "B", "type_id": 1}},
    )
    special = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, second],
        "special_tokens": special,
    }


def metadata_from_tokenizer(tokenizer: Tokenizer, vocab_size: int) -> dict[str, Any]:
    """Return the metadata of a tokenizer. Raise ValueError where llama.cpp has no name for how it splits texts."""
    stored = json.loads(tokenizer.to_str())
    model = stored["model"]
    parts = _comparable([stored["normalizer"], stored["pre_tokenizer"], model.get("ignore_merges", False)])
    splits = [name for name, known in SPLITS.items() if _comparable([*known]) == parts]
    if model["type"] != "BPE" or not splits:
        raise ValueError(f"its tokenizer splits texts in another way than {', '.join(SPLITS)}, which can be written")
    numbers = {number: token for token, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    kinds = {token["id"]: CONTROL if token["special"] else USER_DEFINED for token in stored["added_tokens"]}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splits[0],
        "tokenizer.ggml.tokens": [numbers.get(number, f"[PAD{number}]") for number in range(vocab_size)],
        "tokenizer.ggml.token_type": [
            kinds.get(number, NORMAL if number in numbers else UNUSED) for number in range(vocab_size)
        ],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.add_bos_token": bool(tokenizer.encode("a").special_tokens_mask[0]),
        "tokenizer.ggml.add_space_prefix": False,
    }


def _comparable(part: Any) -> Any:
    """Return a part of tokenizer.json without what does not change the ids."""
    if isinstance(part, dict):
        return {key: _comparable(value) for key, value in part.items() if key != "trim_offsets"}
    return [_comparable(value) for value in part] if isinstance(part, list) else part
