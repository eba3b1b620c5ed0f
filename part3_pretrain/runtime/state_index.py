"""The index of a state that several processes have written, as JSON: torch's own is a pickle, which could run code.

It tells where in the files of `torch.distributed.checkpoint` each part of each tensor lies, and each plain value.
"""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.storage import WriteResult

from part3_pretrain.runtime.files import atomic_write
from part3_pretrain.runtime.safe_load import safe_load

INDEX_FILE = "index.json"


class IndexWriter(dcp.FileSystemWriter):
    """Writes the index once all processes have written their parts: a save that has one is whole."""

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        tensors = {
            name: {"size": entry.size, "chunks": [[chunk.offsets, chunk.sizes] for chunk in entry.chunks]}
            for name, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        parts = [
            [part.index.fqn, part.index.offset, where.relative_path, where.offset, where.length]
            for of_one_process in results
            for part in of_one_process
            for where in [part.storage_data]
        ]
        with atomic_write(Path(self.path) / INDEX_FILE) as temporary:
            temporary.write_text(json.dumps({"tensors": tensors, "parts": parts}), encoding="utf-8")


class IndexReader(dcp.FileSystemReader):
    """Reads what an `IndexWriter` wrote. Raises OSError, ValueError, KeyError or TypeError where it is damaged."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        entries: dict[str, Any] = {name: BytesStorageMetadata() for name, *_ in index["parts"]}
        for name, entry in index["tensors"].items():
            chunks = [ChunkStorageMetadata(*map(torch.Size, chunk)) for chunk in entry["chunks"]]
            entries[name] = TensorStorageMetadata(TensorProperties(), torch.Size(entry["size"]), chunks)
        parts = {MetadataIndex(name, offset): _Place(*place) for name, offset, *place in index["parts"]}
        self.metadata = Metadata(entries, storage_data=parts)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata


class _Place:
    """Where a part lies, by the names that `FileSystemReader` looks for."""

    transform_descriptors = None

    def __init__(self, file: str, offset: int, length: int) -> None:
        if Path(file).name != file:
            raise ValueError(f"{file} is no file beside its index")
        self.relative_path, self.offset, self.length = file, offset, length


class PlainValuesPlanner(DefaultLoadPlanner):
    """Loads tensors and plain values, and runs no code in their files."""

    def load_bytes(self, read_item: ReadItem, value: IO[bytes]) -> None:
        written_anew = BytesIO()  # since torch trusts what is in a value's file
        torch.save(safe_load(value), written_anew)
        written_anew.seek(0)
        super().load_bytes(read_item, written_anew)
