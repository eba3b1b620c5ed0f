"""The state of a training in many processes: a folder from which any number of processes, sharded or not, can go on.

All processes write to it while the training goes on. Each save makes a folder `save-N`: the tensors by
`torch.distributed.checkpoint`, each process its own, and all else in `values.json`. A save is whole once it has
`.metadata`, which is written last; the save before is kept until then.
"""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import atomic_write, check_writable
from part3_pretrain.runtime.state_file import rng_states, set_rng_states

VALUES_FILE, LAST_FILE = "values.json", ".metadata"


class StateFolder:
    """Keeps what a `StateFile` keeps; every process calls its methods in the same order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Counted on from what is there: the last save is the one that counts, though an earlier training made more.
        self.saves = max((int(save.name.partition("-")[2]) for save in path.glob("save-*")), default=0)
        self.group = dist.new_group(backend="gloo")  # the writing threads speak to each other beside the training
        self.writing: Future[Any] | None = None

    def exists(self) -> bool:
        return bool(self._whole_saves())

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the `run` and the `values` of the last whole save. Raises UserError where it is damaged."""
        try:
            contents = json.loads((self._whole_saves()[-1] / VALUES_FILE).read_text(encoding="utf-8"))
            return contents["run"], contents["values"]
        except (OSError, ValueError, KeyError) as error:
            raise self._damaged(error) from error

    def restore_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and random numbers back in place: of a sharded model, this process's part."""
        tensors = _tensors(model, optimizer)
        try:
            dcp.load(tensors, checkpoint_id=self._whole_saves()[-1])
        except Exception as error:  # dcp raises many kinds
            raise self._damaged(error) from error
        set_state_dict(model, optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"])
        set_rng_states(tensors["rng"])

    def save(
        self, run: dict[str, Any], values: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Begin to write, once the save before has ended; model and optimizer may change as soon as this returns."""
        self.finish()
        self.saves += 1
        folder = self.path / f"save-{self.saves:06}"
        if distributed.rank() == 0:
            for unfinished in set(self.path.glob("save-*")) - set(self._whole_saves()):
                shutil.rmtree(unfinished)
            check_writable(folder)
            with atomic_write(folder / VALUES_FILE) as temporary:
                temporary.write_text(json.dumps({"run": run, "values": values}), encoding="utf-8")
        dist.barrier(self.group)
        self.writing = dcp.async_save(  # type: ignore[assignment]
            _tensors(model, optimizer), checkpoint_id=folder, process_group=self.group
        )

    def finish(self) -> None:
        """Wait for what is being written, and remove the save that it replaces. Raises UserError where it failed."""
        if self.writing is None:
            return
        try:
            self.writing.result()
        except Exception as error:  # dcp wraps what any process came across in an error of its own
            raise UserError(f"cannot write {self.path}: {first_line(error)}", "make room or choose another") from error
        finally:
            self.writing = None
        if distributed.rank() == 0:
            for older in self._whole_saves()[:-1]:
                shutil.rmtree(older)

    def remove(self) -> None:
        self.finish()
        dist.barrier(self.group)
        if distributed.rank() == 0:
            shutil.rmtree(self.path, ignore_errors=True)

    def _whole_saves(self) -> list[Path]:
        return sorted(last.parent for last in self.path.glob(f"save-*/{LAST_FILE}"))

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.path} is damaged ({first_line(error)})", "start anew without --resume")


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state, "rng": rng_states()}
