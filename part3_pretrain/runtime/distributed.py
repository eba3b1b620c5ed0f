"""One training in many processes, which `torchrun` starts and torch's own engines keep in step.

Every process computes its share of each batch. By default each holds the whole model and their gradients are averaged
(DDP, Li et al. 2020); sharded, each holds a part of every weight, gradient and moment, and what a block needs is
gathered while it computes (FSDP2, after Zhao et al. 2023). Without torchrun there is one process, and nothing to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import Terminated, UserError, launched_by_torchrun, restart_count

T = TypeVar("T")


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world_size() -> int:
    """How many of them this machine has."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if launched_by_torchrun() else 1


def rank() -> int:
    """The number of this process, from 0, which alone prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(shard: bool) -> Iterator[None]:
    """Inside, the processes of one torchrun can speak to each other, and all but the first are silent.

    Raises UserError where another one has died, or `shard` is asked for and there is no torchrun.
    """
    if not launched_by_torchrun():
        if shard:
            raise UserError("--shard needs several processes; put torchrun --nproc-per-node 8 in the place of python")
        yield
        return
    if has_gpus := local_world_size() <= torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # torchrun's store outlives its restart_count: without a prefix, processes would look for those that have died.
    store, number, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restart_count()}", store)
    backend = "cpu:gloo,cuda:nccl" if has_gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=processes)
    try:
        with _silence() if rank() else nullcontext():
            yield
    except (RuntimeError, Terminated) as error:
        # Of a death torchrun tells the others by SIGTERM, which may come while they give up for having noticed it.
        fault = error.__context__ if isinstance(error, Terminated) else error
        if not isinstance(fault, dist.DistError) and "gloo" not in str(fault):
            raise
        advice = "the same command with --resume goes on from the state that was saved last"
        raise UserError(f"another process of this job was killed, or said why it ended; {advice}") from error
    dist.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


# ---------------------------------------------------------------------------------------------------- values


def shard(items: Any) -> Any:
    """This process's part of what all have: every `world_size()`-th item of a sequence, or row of a tensor."""
    return items[rank() :: world_size()]


def all_gather(own: Sequence[T]) -> list[T]:
    """All processes' parts, in the order that the items had before `share`."""
    if world_size() == 1:
        return list(own)
    parts: list[Sequence[T]] = [own] * world_size()
    dist.all_gather_object(parts, own)
    return [parts[place % world_size()][place // world_size()] for place in range(sum(map(len, parts)))]


def all_reduce_sum(*own: float) -> list[float]:
    """Each number added up over the processes."""
    if world_size() == 1:
        return list(own)
    total = torch.tensor(own, dtype=torch.float64)
    dist.all_reduce(total)
    return total.tolist()


def barrier() -> None:
    """Returns once every process is here, however long what one of them does alone takes."""
    if world_size() > 1:
        dist.barrier(dist.new_group(backend="gloo", timeout=timedelta(days=7)))


def all_reduce_max(own: int) -> int:
    """The largest of the processes' numbers."""
    if world_size() == 1:
        return own
    found = torch.tensor(own)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


# ---------------------------------------------------------------------------------------------------- engines


class LossModule(nn.Module):
    """A loss as a module: the engines act where a module's forward pass begins.

    Args:
        loss: called with the model and what the module is called with.
    """

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: object) -> Tensor:
        return self.loss(self.model, *batch)


def data_parallel(model: Transformer, loss: Callable[..., Tensor], shard: bool, products: torch.dtype) -> nn.Module:
    """The loss as a module whose gradients are means over all processes.

    Args:
        shard: whether each process keeps but a part of the weights; the model is then changed in place, and an
            optimizer has to be made after that.
        products: number format that a sharded model computes in; its gradients are always added up in float32.
    """
    if shard:
        mesh = init_device_mesh(model.embed_tokens.weight.device.type, (world_size(),))
        precision = MixedPrecisionPolicy(param_dtype=products, reduce_dtype=torch.float32)
        for block in model.layers:
            fully_shard(block, mesh=mesh, mp_policy=precision)
        fully_shard(model, mesh=mesh, mp_policy=precision)
    objective = LossModule(model, loss)
    if world_size() == 1 or shard:
        return objective
    return DistributedDataParallel(objective, gradient_as_bucket_view=True)  # else gradients would be kept twice


def set_requires_gradient_sync(engine: nn.Module, whether: bool) -> None:
    """Whether the next backward pass ends in an exchange; only the last one before a step needs to."""
    if isinstance(engine, DistributedDataParallel):
        engine.require_backward_grad_sync = whether
    elif isinstance(engine.model, FSDPModule):
        engine.model.set_requires_gradient_sync(whether)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, every process holds all weights of a sharded model, and computes with them by itself."""
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(part is not model, recurse=False)


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
