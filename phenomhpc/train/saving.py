"""The files of one checkpoint, in DCP's format, each rank writing its share; and the thread in which that happens.

DCP's own save asks every rank for its plan, on the training's process group, and copies while it writes.  Here the plan
follows from names and shapes alone, so that each rank works it out by itself and copies what is its own before training
goes on: with N ranks that hold the same state, about an N-th of it.  Ranks that hold parts tell each other once which.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult

from phenomhpc.errors import WorkError
from phenomhpc.models.checkpoint import checksum
from phenomhpc.train.ranks import Ranks
from phenomhpc.train.shards import is_sharded


@dataclass(frozen=True, kw_only=True)
class SharedPlan:
    """Which rank writes which tensors, or parts of them: balanced by size where several ranks hold the same, the same on all
    ranks."""

    plans: list[SavePlan]
    metadata: Metadata

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], ranks: Ranks) -> SharedPlan:
        """For whole tensors it follows from names and shapes; where parts are held, all ranks tell each other which.

        Called by all ranks together.
        """
        planner = DefaultSavePlanner()
        planner.set_up_planner(dict(tensors), is_coordinator=True)
        local = planner.create_local_plan()
        if any(is_sharded(tensor) for tensor in tensors.values()):
            # Of a tensor with fewer rows than ranks some hold nothing.
            items = [item for item in local.items if item.tensor_data is None or item.tensor_data.chunk.sizes.numel()]
            locals_ = ranks.gather(replace(local, items=items))
        else:
            locals_ = [local] * ranks.world
        plans, metadata = planner.create_global_plan(locals_)
        return cls(plans=plans, metadata=metadata)

    def names(self, rank: int) -> list[str]:
        """Of the tensors that `rank` writes."""
        return [item.index.fqn for item in self.plans[rank].items]


class _Held(DefaultSavePlanner):
    """Looks tensors, of sharded ones this rank's parts, up where they are held for the writer."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = tensors

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._tensors[index.fqn]


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a rank has written: where each tensor lies, and crc32c by name of file."""

    results: list[WriteResult]
    checksums: dict[str, int]


def write_share(folder: Path, tensors: Mapping[str, Tensor], plan: SharedPlan, rank: int) -> Written:
    """Write this rank's tensors into `folder`, durable on return; what is to be told to the first rank."""
    writer = FileSystemWriter(folder, sync_files=True)
    results = writer.write_data(writer.prepare_global_plan(plan.plans)[rank], _Held(tensors)).wait()
    files = {result.storage_data.relative_path for result in results}
    return Written(results=results, checksums={name: checksum(folder / name) for name in sorted(files)})


def write_index(folder: Path, plan: SharedPlan, shares: Sequence[Written]) -> None:
    """DCP's index over what all ranks have written.  Raises WorkError where that is not all there is to write."""
    written = {result.index for share in shares for result in share.results}
    wanted = {item.index for share in plan.plans for item in share.items}
    if written != wanted:
        names = sorted(index.fqn for index in written ^ wanted)
        raise WorkError(f"checkpoint {folder}: the ranks do not agree who writes {names[0]} ({len(names)} in all)")
    FileSystemWriter(folder, sync_files=True).finish(replace(plan.metadata), [share.results for share in shares])


class HostCopies:
    """Memory of the host for tensors of a state, kept from save to save: pages that are there already take no time."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of these tensors, complete on return; they overwrite those taken before."""
        devices = set()
        for name, tensor in tensors.items():
            if name not in self._kept:
                on_gpu = tensor.device.type == "cuda"
                self._kept[name] = torch.empty_like(tensor, device="cpu", pin_memory=on_gpu)
            _copy(tensor, self._kept[name])
            devices.add(tensor.device)
        for device in devices:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        return {name: self._kept[name] for name in tensors}


def _copy(source: Tensor, target: Tensor) -> None:
    """Begin to copy a tensor into memory of the host; from there it is complete on return."""
    if source.device.type == "cpu" and source.is_contiguous():
        # torch's copy_ shares the work among threads that wait for each other: on busy cores a memcpy is 4 times as fast.
        to, what = (tensor.reshape(-1).view(torch.uint8).numpy() for tensor in (target, source))
        np.copyto(to, what)
    else:
        target.copy_(source, non_blocking=True)


@dataclass(kw_only=True)
class Flight:
    """One save under way in a thread: its step, and in the end what it came to."""

    step: int
    work: Callable[[], Path]
    folder: Path | None = None
    failure: BaseException | None = None
    _thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        # A daemon: a process that leaves because of an error must not be held by a rank that will never answer.
        self._thread = threading.Thread(target=self._run, name=f"checkpoint-{self.step}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.folder = self.work()
        except BaseException as error:
            self.failure = error

    @property
    def landed(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()
