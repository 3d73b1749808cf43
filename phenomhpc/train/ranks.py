"""The ranks of one run: who this process is, and the few things ranks tell each other.

Gradients go through DistributedDataParallel; what is here is for decisions (stop, fenced, which checkpoint) and for the
losses of a step, which are gathered and added in the order of the ranks in float64: an all-reduce adds them in an order
that depends on their place in the buffer, and the last bit of a loss would depend on when it was logged.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from phenomhpc.errors import PhenomError, UsageError, WorkError

T = TypeVar("T")
# A rank that waits this long for another gives up: the backstop behind the watchdog and Slurm's own detection.
COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among the ranks.  With a world of one there is no process group at all."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    local_world: int = 1
    """Ranks of this node."""
    group: dist.ProcessGroup | None = None  # None: the default one
    host_group: dist.ProcessGroup | None = None
    """On GPUs: for what the hosts decide, so that they need not wait for what their devices still compute."""

    def beside(self) -> Ranks:
        """The same ranks on a process group of their own, on CPUs: for a thread beside the one that trains.

        Called by all ranks together.
        """
        if self.world == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return replace(self, device=torch.device("cpu"), group=group, host_group=None)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Is the flag set on any rank?"""
        if self.world == 1:
            return flag
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Is each of the flags set on any rank?"""
        if self.world == 1:
            return flags
        device = self.device if self.host_group is None else torch.device("cpu")
        value = torch.tensor(flags, dtype=torch.int64, device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self.host_group or self.group)
        return tuple(map(bool, value.tolist()))

    def gather(self, value: T) -> list[T]:
        """Every rank's value, on every rank.  For small picklable values."""
        if self.world == 1:
            return [value]
        box: list[T | None] = [None] * self.world
        dist.all_gather_object(box, value, group=self.group)
        return cast(list[T], box)

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank; the others' is ignored.  For small picklable values."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device, group=self.group)
        return box[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """Do `work` on rank 0 and return its small picklable result on every rank; every rank raises what it raised.

        A failure that is none of ours becomes a WorkError on the other ranks, so that none of them waits for ever.
        """
        if self.world == 1:
            return work()
        result: T | None = None
        failure: PhenomError | None = None
        if self.is_first:
            try:
                result = work()
            except PhenomError as error:
                failure = error
            except Exception as error:
                self.from_first((None, WorkError(f"rank 0: {type(error).__name__}: {error}")))
                raise
        result, failure = self.from_first((result, failure))
        if failure is not None:
            raise failure
        return cast(T, result)

    def sum_in_order(self, rows: Tensor) -> Tensor:
        """Sum of f64[n, k] over the ranks, added in the order of the ranks; on every rank, on its device."""
        return in_order(self.each(rows))

    def each(self, rows: Tensor) -> list[Tensor]:
        """Every rank's f[n, k], by rank; on every rank, on its device."""
        if self.world == 1:
            return [rows]
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows, group=self.group)
        return parts

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in no order: for values of which all but one rank's are 0.  On every rank, on its device."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def max(self, value: float) -> float:
        """The largest of the ranks' values."""
        if self.world == 1:
            return value
        box = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX, group=self.group)
        return float(box.item())

    def barrier(self) -> None:
        """Return when every rank is here."""
        if self.world > 1:
            dist.barrier(group=self.group)


def in_order(parts: list[Tensor]) -> Tensor:
    """Their sum, added one after the other."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks by torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_*); absent: one rank, no
    process group.

    `device` is auto, cpu or cuda.  gloo on CPUs, NCCL on GPUs; the group is taken down at the end.
    """
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device=cuda: torch sees no GPU here; use device=cpu or auto")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    here = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    ranks = Ranks(rank=rank, world=world, local_rank=local_rank, device=here, local_world=local_world)
    if on_gpu:
        torch.cuda.set_device(here)
    if world == 1:
        yield ranks
        return
    dist.init_process_group("nccl" if on_gpu else "gloo", rank=rank, world_size=world, timeout=COLLECTIVE_TIMEOUT)
    try:
        if on_gpu:
            ranks = replace(ranks, host_group=dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT))
        yield ranks
    finally:
        dist.destroy_process_group()
