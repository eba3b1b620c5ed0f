"""What torchrun tells each process of a job by environment variables; known before torch is imported."""

from __future__ import annotations

import os


def launched_by_torchrun() -> bool:
    """Return whether torchrun started this process, as `torch.distributed.is_torchelastic_launched` does."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restart_count() -> int:
    """Return how often torchrun, given --max-restarts, has started this job anew because a process died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def local_world_size() -> int:
    """Return how many processes of the job this machine has."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched_by_torchrun() else 1


def is_main_process() -> bool:
    """Return whether this process writes for its job: the one with rank 0."""
    return not launched_by_torchrun() or os.environ["RANK"] == "0"


def is_local_main_process() -> bool:
    """Return whether this process speaks for its machine: the one with local rank 0."""
    return not launched_by_torchrun() or os.environ["LOCAL_RANK"] == "0"
