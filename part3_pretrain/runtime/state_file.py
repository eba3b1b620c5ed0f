"""The state of a training in one process: one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from part3_pretrain.runtime.cli import UserError, first_line
from part3_pretrain.runtime.files import atomic_write
from part3_pretrain.runtime.safe_load import safe_load


class StateFile:
    """Keeps plain values, weights, moments and random numbers in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saved: dict[str, Any] = {}

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the `run` and the `values` that were saved. Raises UserError where the file is damaged."""
        try:
            self.saved = safe_load(self.path)
            return self.saved.pop("run"), self.saved.pop("values")
        except Exception as error:  # safe_load raises many kinds
            raise UserError(f"{self.path} is damaged ({first_line(error)})", "start anew without --resume") from error

    def restore_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put weights, moments and random numbers back in place, and free what `read` held of them."""
        model.load_state_dict(self.saved.pop("model"))
        optimizer.load_state_dict(self.saved.pop("optimizer"))
        set_rng_states(self.saved.pop("rng"))

    def save(
        self, run: dict[str, Any], values: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the file whole or not at all. Raises UserError where it cannot be written."""
        contents = {
            "run": run,
            "values": values,
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": rng_states(),
        }
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            torch.save(contents, file)

    def finish(self) -> None:
        """Do nothing: when `save` has returned, the file is whole."""

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def rng_states() -> dict[str, Tensor]:
    """Return the states of torch's random number generators. No other is drawn from once the steps have begun."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_rng_states(states: dict[str, Tensor]) -> None:
    """Restore what `rng_states` returned."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
