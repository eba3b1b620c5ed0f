"""The head of a GGUF file: metadata, and where each tensor is; nothing in it is believed before it is looked at.

The reader of the `gguf` package takes what a file says for granted: a false count keeps it busy for years.
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MAX_HEADER_BYTES = 64 * 2**20  # enough for a vocabulary of a million entries
MAX_DIMENSIONS = 4


class StoredTensor(NamedTuple):
    """Where and how a tensor is stored."""

    kind: int  # the number of its format, a `GGMLQuantizationType`
    shape: tuple[int, ...]  # as in torch, the last dimension varies fastest
    start: int  # in bytes from the beginning of the file


class Header(NamedTuple):
    """Metadata by key, with arrays of numbers as numpy has them, and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Return whether a file has the ending or the first bytes of GGUF; a missing one with the ending has it too."""
    if path.suffix == ".gguf":
        return True
    if not os.path.isfile(path):  # a pipe, say, would be waited for
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:  # why it cannot be read is told by who reads it
        return False


def read_header(path: Path) -> Header:
    """Read the head of a file. Raise OSError where it cannot be read, ValueError where it is damaged."""
    if not S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file, but a pipe or the like")
    with path.open("rb") as file:
        cursor = _Cursor(file.read(MAX_HEADER_BYTES))
    if cursor.data[: len(MAGIC)] != MAGIC:
        raise ValueError("it does not begin as a GGUF file does")
    cursor.take(len(MAGIC))
    if (version := cursor.number("I")) not in VERSIONS:
        raise ValueError(f"it has version {version} of GGUF; those that can be read are 2 and 3, little-endian")
    tensor_count, metadata_count = cursor.number("Q"), cursor.number("Q")
    metadata = {}
    for _ in range(metadata_count):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("I"))
    stored = {}
    for _ in range(tensor_count):
        name, dimensions = cursor.text(), cursor.number("I")
        if name in stored or not 0 < dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name[:60]} is there twice or has {dimensions} dimensions")
        shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
        stored[name] = StoredTensor(cursor.number("I"), shape, cursor.number("Q"))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError(f"its alignment is {str(alignment)[:60]}")
    data_start = -(-cursor.place // alignment) * alignment
    tensors = {name: tensor._replace(start=data_start + tensor.start) for name, tensor in stored.items()}
    return Header(metadata, tensors)


class _Cursor:
    """Reads one value after another, and never more than is there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.place:
            raise ValueError("it is cut short, or claims to hold more than it does")
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, kind: str) -> Any:
        value = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0]
        return float(str(np.float32(value))) if kind == "f" else value  # 1e-05, not 9.999999747378752e-06

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            kind, count = self.number("I"), self.number("Q")
            if kind in NUMBERS:
                return np.frombuffer(self.take(count * struct.calcsize(NUMBERS[kind])), f"<{NUMBERS[kind]}")
            if kind == STRING:
                return [self.text() for _ in range(count)]  # each takes its bytes, or ends it
        raise ValueError(f"its metadata hold a value of the kind {kind}, which cannot be read")
