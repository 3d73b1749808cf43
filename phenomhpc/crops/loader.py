"""Batches of crops on the CPU, in the sampler's order, read by threads (blosc releases the interpreter's lock)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.sampler import Sampler, flipped, index_digest
from phenomhpc.errors import UsageError

PADDING_INDEX = -1


class Reader(Protocol):
    """What a loader needs of the store's ShardReader."""

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of fixed shape; rows of weight 0 are padding (index -1, pixels 0).

    pixels u8|u16 [B, C, h, w]; index i64[B]; weight f32[B]; mask_noise f32[B, L]; drop_key i64[B] (the sample index).
    """

    pixels: NDArray[np.generic]
    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    mask_noise: NDArray[np.float32]
    drop_key: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's micro-batches of a step.  The pixels are valid until the next step is asked for."""

    step: int
    first_index: int
    index_digest: str
    micro: list[Batch]
    data_wait_s: float


@dataclass(frozen=True, kw_only=True)
class _Crop:
    field_no: int
    y: int
    x: int
    flip: int


class Loader:
    """Iterates a rank's StepBatches from `start_step` on, for ever.  Use as a context manager.

    Step s takes visits [s*B/K, (s+1)*B/K); rank r those with v mod world = r.  Every rank has the same number of
    micro-steps of the same shape.  workers: reader threads; 0 reads inside __next__, else `prefetch_steps` steps ahead.
    """

    def __init__(
        self,
        reader: Reader,
        sampler: Sampler,
        *,
        num_channels: int,
        dtype: str,
        num_patches: int,
        global_batch: int,
        micro_batch: int,
        rank: int = 0,
        world: int = 1,
        start_step: int = 0,
        workers: int = 0,
        prefetch_steps: int = 2,
    ) -> None:
        if global_batch % sampler.crops_per_visit:
            raise UsageError(
                f"optim.global_batch={global_batch} is no multiple of data.crops_per_visit={sampler.crops_per_visit}"
            )
        self._reader, self._sampler = reader, sampler
        self._visits_per_step = global_batch // sampler.crops_per_visit
        self._rank, self._world, self._step = rank, world, start_step
        share = -(-self._visits_per_step // world) * sampler.crops_per_visit
        self._micro_size = min(micro_batch, share)
        self._num_micro = -(-share // self._micro_size)
        self._num_patches = num_patches
        self._shape = (self._micro_size, num_channels, sampler.crop_px, sampler.crop_px)
        self._dtype = np.dtype(dtype)
        self._readers = ThreadPoolExecutor(workers, "crop-reader") if workers else None
        self._builder = ThreadPoolExecutor(1, "step-builder") if workers and prefetch_steps else None
        self._ahead: deque[Future[StepBatch]] = deque()
        self._prefetch_steps = prefetch_steps
        # One set of buffers is being used, one being filled, the others wait between.
        sets = prefetch_steps + 2 if self._builder else 1
        self._buffers = [[np.zeros(self._shape, self._dtype) for _ in range(self._num_micro)] for _ in range(sets)]

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        began = time.perf_counter()
        if self._builder is None:
            batch = self._build(self._step)
        else:
            while len(self._ahead) <= self._prefetch_steps:
                self._ahead.append(self._builder.submit(self._build, self._step + len(self._ahead)))
            batch = self._ahead.popleft().result()
        self._step += 1
        return StepBatch(
            step=batch.step,
            first_index=batch.first_index,
            index_digest=batch.index_digest,
            micro=batch.micro,
            data_wait_s=time.perf_counter() - began,
        )

    def _build(self, step: int) -> StepBatch:
        """This rank's part of a step."""
        first = step * self._visits_per_step
        visit = np.arange(first, first + self._visits_per_step, dtype=np.int64)
        everyone = self._sampler.visits(visit)
        mine = visit % self._world == self._rank
        index = everyone.index[mine].ravel()
        field_no = np.repeat(everyone.field_no[mine], self._sampler.crops_per_visit)
        y, x, flip = everyone.y[mine].ravel(), everyone.x[mine].ravel(), everyone.flip[mine].ravel()
        crops = [
            _Crop(field_no=int(no), y=int(top), x=int(left), flip=int(turn))
            for no, top, left, turn in zip(field_no, y, x, flip, strict=True)
        ]
        buffers = self._buffers[step % len(self._buffers)]
        self._read(crops, buffers)
        micro = [
            self._batch(index[at : at + self._micro_size], buffers[at // self._micro_size]) for at in self._starts()
        ]
        return StepBatch(
            step=step,
            first_index=first * self._sampler.crops_per_visit,
            index_digest=index_digest(everyone),
            micro=micro,
            data_wait_s=0.0,
        )

    def _starts(self) -> range:
        return range(0, self._num_micro * self._micro_size, self._micro_size)

    def _read(self, crops: list[_Crop], buffers: list[NDArray[np.generic]]) -> None:
        def place(slot: int) -> NDArray[np.generic]:
            row: NDArray[np.generic] = buffers[slot // self._micro_size][slot % self._micro_size]
            return row

        def read_one(slot: int) -> None:
            crop, out = crops[slot], place(slot)
            self._reader.read(crop.field_no, crop.y, crop.x, out)
            if crop.flip:
                out[...] = flipped(out.copy(), crop.flip)

        if self._readers is None:
            for slot in range(len(crops)):
                read_one(slot)
        else:
            list(self._readers.map(read_one, range(len(crops)), chunksize=1))
        for slot in range(len(crops), self._num_micro * self._micro_size):
            place(slot)[...] = 0

    def _batch(self, index: NDArray[np.int64], pixels: NDArray[np.generic]) -> Batch:
        padded = np.full(self._micro_size, PADDING_INDEX, np.int64)
        padded[: len(index)] = index
        # A padding row needs some finite noise; sample 0's does, its weight is 0.
        keys = np.maximum(padded, 0)
        return Batch(
            pixels=pixels,
            index=padded,
            weight=(padded != PADDING_INDEX).astype(np.float32),
            mask_noise=self._sampler.mask_noise(keys, self._num_patches),
            drop_key=keys,
        )

    def close(self) -> None:
        """Stop the threads; what was read ahead is dropped."""
        for future in self._ahead:
            future.cancel()
        for pool in (self._builder, self._readers):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
