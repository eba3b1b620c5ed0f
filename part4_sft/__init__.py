"""Part 4: supervised fine-tuning of the base model on hand-picked (context, response) pairs."""

from typing import TYPE_CHECKING, Any

from part3_pretrain.runtime.cli import UserError

if TYPE_CHECKING:
    from part4_sft.notebook import FineTuned, fine_tune

__all__ = ["FineTuned", "UserError", "fine_tune"]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is asked for: seconds for which no `--help` should wait."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from part4_sft import notebook

    return getattr(notebook, name)
