"""Read files of `torch.save` that may be damaged or hostile."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, Any

import torch


def safe_load(file: Path | IO[bytes], mmap: bool = False) -> Any:
    """Read a file that `torch.save` wrote, onto the CPU, and run no code in it.

    `mmap` leaves tensors on the disk until they are used. Raise OSError where the file cannot be read, and Exceptions
    of many kinds where it is damaged, compressed, or holds more than tensors and plain values.
    """
    with zipfile.ZipFile(file) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("it is compressed")  # torch.save never does that; a bomb would grow in memory
        damaged = archive.testzip()
    if damaged:  # torch.load would not see it
        raise ValueError(f"the checksum of {damaged} does not fit")
    if not isinstance(file, Path):
        file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":  # by name, so that nothing here imports pickle
            raise
        raise ValueError("it holds more than tensors and plain values, and what might be code is not run") from error
