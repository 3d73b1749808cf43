"""Micro-batches on their way to the device, one ahead of the one that is computed with.

On a CPU they are handed over as they lie.  For a GPU the loader's buffers are page-locked and copied on a stream of their own.
The GPU's part has been run on one H200 (`make bench-gpu`, tests/gpu); what can be tested without one (the order of the copies, and
that no buffer is refilled before its copy has ended) is tested with other lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from phenomhpc.crops import Batch
from phenomhpc.crops.dali import ReadyBatch


@dataclass(frozen=True, kw_only=True)
class DeviceBatch:
    """A micro-batch on the device.

    pixels u8|u16 [B, C, h, w], grey levels, or f32, standardised, where is_ready; weight f32[B]; mask_noise f32[B, L];
    drop_key i64[B].
    """

    pixels: Tensor
    weight: Tensor
    mask_noise: Tensor
    drop_key: Tensor
    is_ready: bool = False


class Copy(Protocol):
    """One micro-batch's copy, which has begun."""

    def use(self) -> DeviceBatch:
        """The batch, once, for work that is given to the device from now on; the host does not wait."""

    def wait(self) -> None:
        """Return when the copy has ended: the host's buffers may be refilled then."""


class Lane(Protocol):
    """A way to the device.  hold_steps: how many steps' buffers of a Loader it needs at a time."""

    hold_steps: int

    def start(self, batch: Batch) -> Copy: ...

    def close(self) -> None: ...


class Feed:
    """Gives the micro-batches of steps to the device.  Use as a context manager inside the loader's."""

    def __init__(self, lane: Lane) -> None:
        self._lane, self.hold_steps = lane, lane.hold_steps
        self._copies: list[list[Copy]] = []

    def micro(self, batches: Sequence[Batch]) -> Iterator[DeviceBatch]:
        """A step's micro-batches in order; the copy of the next begins before one is given."""
        copies: list[Copy] = []
        self._copies.append(copies)
        for batch in batches:
            copies.append(self._lane.start(batch))
            if len(copies) > 1:
                yield copies[-2].use()
        yield copies[-1].use()

    def free_buffers(self) -> None:
        """Before the loader is asked for a step: wait for the copies out of the buffers that it may then refill.

        With two steps' buffers held these are of the step before the last, which ended long ago: nothing waits for the device.
        """
        while len(self._copies) >= self.hold_steps:
            for copy in self._copies.pop(0):
                copy.wait()

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copies.clear()
        self._lane.close()


def feed_for(device: torch.device, say: Callable[[str], None]) -> Feed:
    """The feed of a device.  say: called when its buffers cannot be page-locked."""
    return Feed(CudaLane(device, say) if device.type == "cuda" else DirectLane())


@dataclass(frozen=True, kw_only=True)
class _Direct:
    batch: DeviceBatch

    def use(self) -> DeviceBatch:
        return self.batch

    def wait(self) -> None:
        pass


class DirectLane:
    """For a CPU: tensors over the loader's own buffers.  What was computed with them has ended when the next step is asked for."""

    hold_steps = 1

    def start(self, batch: Batch) -> Copy:
        return _Direct(
            batch=DeviceBatch(
                pixels=batch.standardised if isinstance(batch, ReadyBatch) else torch.as_tensor(batch.pixels),
                weight=torch.as_tensor(batch.weight),
                mask_noise=torch.as_tensor(batch.mask_noise),
                drop_key=torch.as_tensor(batch.drop_key),
                is_ready=isinstance(batch, ReadyBatch),
            )
        )

    def close(self) -> None:
        pass


class _OnStream:
    def __init__(self, batch: DeviceBatch, done: torch.cuda.Event, device: torch.device) -> None:
        # Until it is used: the copy is remembered for longer than the device's memory should be held.
        self._batch: DeviceBatch | None = batch
        self._done, self._device = done, device

    def use(self) -> DeviceBatch:
        batch, self._batch = self._batch, None
        assert batch is not None
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(self._done)
        # The memory belongs to the copies' stream: it is not to be given to a later copy before this one's user is through.
        for tensor in (batch.pixels, batch.weight, batch.mask_noise, batch.drop_key):
            tensor.record_stream(stream)
        return batch

    def wait(self) -> None:
        self._done.synchronize()


class CudaLane:
    """For a GPU."""

    # The host may be a whole step ahead of the device, whose copies out of the last step's buffers may not have begun.
    hold_steps = 2

    def __init__(self, device: torch.device, say: Callable[[str], None]) -> None:
        self._device, self._say = device, say
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # By address; the arrays are kept alive until their pages are let go.
        self._locked: dict[int, NDArray[np.generic]] = {}
        self._can_lock = True

    def start(self, batch: Batch) -> Copy:
        if not isinstance(batch, ReadyBatch):
            self._lock(batch.pixels)
        with torch.cuda.stream(self._stream):
            moved = DeviceBatch(
                pixels=self._pixels(batch),
                weight=self._small(batch.weight),
                mask_noise=self._small(batch.mask_noise),
                drop_key=self._small(batch.drop_key),
                is_ready=isinstance(batch, ReadyBatch),
            )
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return _OnStream(moved, done, self._device)

    def _pixels(self, batch: Batch) -> Tensor:
        if isinstance(batch, ReadyBatch):  # DALI has put them there
            return batch.standardised
        return torch.as_tensor(batch.pixels).to(self._device, non_blocking=True)

    def _small(self, array: NDArray[np.generic]) -> Tensor:
        # torch's own page-locked memory, which it reuses when the copy has ended.
        return torch.as_tensor(array).pin_memory().to(self._device, non_blocking=True)

    def _lock(self, pixels: NDArray[np.generic]) -> None:
        """Page-lock a buffer, the first time it is seen.  Out of pages that are not, copies would hold up the host."""
        address = pixels.ctypes.data
        if not self._can_lock or address in self._locked:
            return
        status = int(torch.cuda.cudart().cudaHostRegister(address, pixels.nbytes, 0))  # type: ignore[no-untyped-call]
        if status:
            self._can_lock = False
            self._say(
                f"data: buffers of crops cannot be page-locked (CUDA error {status}; see ulimit -l); copies to the GPU take longer"
            )
        else:
            self._locked[address] = pixels

    def close(self) -> None:
        """Let the pages go, when no copy reads them any more."""
        self._stream.synchronize()
        for address in self._locked:
            torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
        self._locked.clear()
