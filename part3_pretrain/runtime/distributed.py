"""One training in many processes, which `torchrun` starts and torch's own wrappers keep in step.

Every rank computes its part of each batch. By default each holds the whole model and the gradients are averaged (DDP,
Li et al. 2020). Sharded, each holds a part of every weight, gradient and moment, and what a block needs is gathered
while it computes (FSDP2, after Zhao et al. 2023). Without torchrun there is one process, and nothing to exchange.
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
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from part3_pretrain.model import Transformer
from part3_pretrain.runtime.cli import Terminated, UserError
from part3_pretrain.runtime.torchrun import launched_by_torchrun, local_world_size, restart_count

T = TypeVar("T")


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0. Rank 0 alone prints and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(shard: bool) -> Iterator[None]:
    """Connect the processes that torchrun has started, and silence all but rank 0.

    Raises UserError where another one has died, or `shard` is asked for and torchrun has not started this process.
    """
    if not launched_by_torchrun():
        if shard:
            raise UserError("--shard needs several processes", "put torchrun --nproc-per-node 8 in the place of python")
        yield
        return
    backend = "gloo"
    if local_world_size() <= torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    # torchrun's store outlives its restarts: without a prefix, processes would look for those that have died.
    store, rank_in_job, processes = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"restart {restart_count()}", store)
    dist.init_process_group(backend, store=store, rank=rank_in_job, world_size=processes)
    try:
        with _silence() if rank() else nullcontext():
            yield
    except (RuntimeError, Terminated) as error:
        # torchrun tells of a death by SIGTERM, which may come while a process ends because it has noticed it itself.
        noticed = error.__context__ if isinstance(error, Terminated) else error
        if not isinstance(noticed, dist.DistError) and "gloo" not in str(noticed):
            raise
        cure = "the same command with --resume goes on from the state that was saved last"
        raise UserError("another process of this job was killed, or said why it ended", cure) from error
    dist.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def shard(items: Any) -> Any:
    """Return this rank's part of what all have: every `world_size()`-th item of a sequence, or row of a tensor."""
    return items[rank() :: world_size()]


def all_gather(part: Sequence[T]) -> list[T]:
    """Return the parts of all ranks, in the order that the items had before `shard`."""
    if world_size() == 1:
        return list(part)
    parts: list[Any] = [None] * world_size()
    dist.all_gather_object(parts, part)
    total = sum(len(one) for one in parts)
    return [parts[place % world_size()][place // world_size()] for place in range(total)]


def all_reduce_sum(*values: float) -> list[float]:
    """Return each number added up over the ranks."""
    sums = torch.tensor(values, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(sums)
    return sums.tolist()


def all_reduce_max(value: int) -> int:
    """Return the largest of the ranks' numbers."""
    largest = torch.tensor(value)
    if world_size() > 1:
        dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def on_rank_0(compute: Callable[[], T]) -> T:
    """Return what rank 0 computes, on every rank; the others wait, if need be for days. Raises its UserError on all."""
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [compute()]
        except UserError as error:
            outcome = [error]
    if world_size() > 1:
        dist.broadcast_object_list(outcome, group=dist.new_group(backend="gloo", timeout=timedelta(days=7)))
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]


class LossModule(nn.Module):
    """A loss of a model and a batch as a module of the batch: DDP and FSDP2 act where a module's forward begins."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, *batch: object) -> Tensor:
        return self.loss(self.model, *batch)


def data_parallel(model: Transformer, loss: Callable[..., Tensor], shard: bool, param_dtype: torch.dtype) -> nn.Module:
    """Return the loss as a module whose gradients are means over all ranks.

    Args:
        shard: whether each rank keeps only a part of the weights. The model is then changed in place, and its
            optimizer must be made afterwards.
        param_dtype: number format that a sharded model computes in; its gradients are added up in float32.
    """
    if shard:
        mesh = init_device_mesh(model.embed_tokens.weight.device.type, (world_size(),))
        precision = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
        for block in model.layers:
            fully_shard(block, mesh=mesh, mp_policy=precision)
        fully_shard(model, mesh=mesh, mp_policy=precision)
    loss_module = LossModule(model, loss)
    if shard or world_size() == 1:
        return loss_module
    return DistributedDataParallel(loss_module, gradient_as_bucket_view=True)  # else gradients would be kept twice


def set_requires_gradient_sync(loss_module: nn.Module, requires_gradient_sync: bool) -> None:
    """Set whether the next backward pass ends in an exchange; only the last one before a step needs to.

    A sharded model exchanges its gradients every time: until then, each rank would keep all of them, in float32.
    """
    if isinstance(loss_module, DistributedDataParallel):
        loss_module.require_backward_grad_sync = requires_gradient_sync


def is_sharded(model: nn.Module) -> bool:
    """Return whether each rank has only a part of every weight."""
    return isinstance(model, FSDPModule)


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Hold all weights of a sharded model on every rank, which then computes with them by itself."""
    modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.unshard()
        module.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for module in modules:
            module.reshard()
            module.set_reshard_after_forward(module is not model, recurse=False)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return all of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """Return this process's part of a tensor that all have whole, if `other` is sharded; else the tensor."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)
