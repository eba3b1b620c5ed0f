"""Where the state of a training is kept: one process has a file, the processes of a job have a folder."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from part3_pretrain.runtime import distributed
from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import atomic_write
from part3_pretrain.runtime.safe_load import safe_load
from part3_pretrain.runtime.state_index import INDEX_FILE, IndexReader, IndexWriter, PlainValuesPlanner

Values = dict[str, Any]  # plain, so that they can be written as JSON


class StateFile:
    """Keeps plain values, weights, moments and random numbers in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved: dict[str, Any] = {}

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> tuple[Values, Values]:
        """Return the `run` and the `values` that were saved. Raises UserError where the file is damaged."""
        try:
            self.saved = safe_load(self.path)
            return self.saved.pop("run"), self.saved.pop("values")
        except Exception as error:  # safe_load raises many kinds
            raise _damaged(self.path, error) from error

    def restore_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and random numbers back in place, and free what `read` held of them."""
        model.load_state_dict(self.saved.pop("model"))
        optimizer.load_state_dict(self.saved.pop("optimizer"))
        _set_rng_states(self.saved.pop("rng"))

    def save(self, run: Values, values: Values, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the file whole or not at all. Raises UserError where it cannot be written."""
        tensors = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": _rng_states()}
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            torch.save({"run": run, "values": values, **tensors}, file)

    def finish(self) -> None:
        """Do nothing: when `save` has returned, the file is whole."""

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


class StateFolder:
    """Keeps the same in a folder, from which any number of processes, sharded or not, can go on.

    All processes call its methods in the same order, and write to it while the training goes on. Each save makes a
    folder `save-N`: the tensors by `torch.distributed.checkpoint`, each process its own, and all else in `values.json`.
    A save is whole once it has `index.json`, which is written last; the save before is kept until then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The first process looks for all: on a network drive, another may not see yet what is there.
        self.saves, self.whole = distributed.on_rank_0(self._look)
        self.group = dist.new_group(backend="gloo")  # the writing threads speak to each other beside the training
        self.writing: Future[Any] | None = None

    def _look(self) -> tuple[int, Path | None]:
        """Return the highest number of a save, for the next to be higher, and the last whole one."""
        saves = max((int(save.name.partition("-")[2]) for save in self.path.glob("save-*")), default=0)
        return saves, max(self._whole_saves(), default=None)

    def exists(self) -> bool:
        return self.whole is not None

    def read(self) -> tuple[Values, Values]:
        """Return the `run` and the `values` of the last whole save. Raises UserError where it is damaged."""
        return distributed.on_rank_0(self._read)

    def _read(self) -> tuple[Values, Values]:
        assert self.whole, "`exists` has been asked"
        try:
            contents = json.loads((self.whole / "values.json").read_text(encoding="utf-8"))
            return contents["run"], contents["values"]
        except (OSError, ValueError, KeyError) as error:
            raise _damaged(self.path, error) from error

    def restore_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and random numbers back in place: of a sharded model, this process's part."""
        assert self.whole, "`exists` has been asked"
        tensors = _tensors(model, optimizer)
        try:
            dcp.load(tensors, storage_reader=IndexReader(self.whole), planner=PlainValuesPlanner())
        except (Exception, dcp.CheckpointException) as error:  # which is no Exception
            raise _damaged(self.path, error) from error
        set_state_dict(model, optimizer, model_state_dict=tensors["model"], optim_state_dict=tensors["optimizer"])
        _set_rng_states(tensors["rng"])

    def save(self, run: Values, values: Values, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Begin to write, once the save before has ended; model and optimizer may change as soon as this returns."""
        self.finish()
        self.saves += 1
        folder = self._folder()
        if distributed.rank() == 0:
            for unfinished in set(self.path.glob("save-*")) - {self.whole}:
                shutil.rmtree(unfinished)
            with atomic_write(folder / "values.json") as temporary:
                temporary.write_text(json.dumps({"run": run, "values": values}), encoding="utf-8")
        dist.barrier(self.group)
        tensors = _tensors(model, optimizer)
        self.writing = dcp.async_save(tensors, storage_writer=IndexWriter(folder), process_group=self.group)  # type: ignore[assignment]

    def finish(self) -> None:
        """Wait for what is being written, and remove the save that it replaces. Raises UserError where it failed."""
        if self.writing is None:
            return
        try:
            self.writing.result()
            self.whole = self._folder()
        except (Exception, dcp.CheckpointException) as error:
            raise UserError(f"cannot write {self.path}: {_reason(error)}", "make room or choose another") from error
        finally:
            self.writing = None
        if distributed.rank() == 0:
            for older in set(self._whole_saves()) - {self.whole}:
                shutil.rmtree(older)

    def remove(self) -> None:
        self.finish()
        dist.barrier(self.group)
        if distributed.rank() == 0:
            shutil.rmtree(self.path, ignore_errors=True)

    def _folder(self) -> Path:
        return self.path / f"save-{self.saves:06}"

    def _whole_saves(self) -> list[Path]:
        return [last.parent for last in self.path.glob(f"save-*/{INDEX_FILE}")]


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path} is damaged ({_reason(error)})", "start anew without --resume")


def _reason(error: BaseException) -> str:
    """Return in a line what went wrong, and of what several processes met, the first."""
    while isinstance(error, dcp.CheckpointException):
        error, _ = next(iter(error.failures.values()))
    return first_line(error)


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    model_state, optimizer_state = get_state_dict(model, optimizer)
    return {"model": model_state, "optimizer": optimizer_state, "rng": _rng_states()}


def _rng_states() -> dict[str, Tensor]:
    """Return the states of torch's random number generators. No other is drawn from once the steps have begun."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_rng_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
