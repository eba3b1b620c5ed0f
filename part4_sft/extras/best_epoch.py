"""The weights of the best epoch, for `--keep best`, in a file beside the state of the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict

from part3_pretrain.model import Transformer
from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import atomic_write
from part3_pretrain.runtime.safe_load import safe_load


def find_best(by_epoch: list[dict[str, Any]]) -> int:
    """Return the number of the epoch of training with the lowest validation loss; of several, the first.

    The loss, since it is measured on every validation token: the replies of a hundred contexts vary more by chance.
    """
    best: int = min(by_epoch[1:], key=lambda entry: entry["validation_loss"])["epoch"]
    return best


class BestEpoch:
    """Keeps a model as it was after the best epoch so far. All ranks call its methods; rank 0 has the file.

    Which epoch that is, the entries of `by_epoch` tell, which are in the state: a training that was interrupted while
    the file was written does that epoch's last steps again, and writes it again.
    """

    def __init__(self, model: Transformer, path: Path) -> None:
        self.model, self.path = model, path

    def save(self, by_epoch: list[dict[str, Any]]) -> None:
        """Write all weights where the last epoch is the best. Raises UserError on all ranks where they cannot be."""
        if find_best(by_epoch) < len(by_epoch) - 1:
            return
        tensors = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

        def write() -> None:
            with atomic_write(self.path) as temporary, temporary.open("wb") as file:
                torch.save(tensors, file)

        distributed.on_rank_0(write)

    def restore(self) -> None:
        """Put the weights of the best epoch in place. Raises UserError on all ranks where they cannot be read."""
        tensors: dict[str, Any] = {}  # of rank 0 alone, and each rank gets its part

        def read() -> None:
            try:
                tensors.update(safe_load(self.path))
            except Exception as error:  # safe_load raises many kinds
                cause = f"{self.path} is damaged ({first_line(error)})"
                raise UserError(cause, "start anew without --resume") from error

        distributed.on_rank_0(read)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=distributed.world_size() > 1)
        set_model_state_dict(self.model, tensors, options=options)
