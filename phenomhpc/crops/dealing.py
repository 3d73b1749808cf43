"""A rank's crops of a step and the micro-batches they make: pure, whoever reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.batches import PADDING_INDEX, Batch, StepBatch
from phenomhpc.crops.sampler import Sampler, index_digest
from phenomhpc.errors import UsageError
from phenomhpc.store.shardfiles import Traffic


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """A rank's crops of a step, in order; all arrays [n].

    flip: done while they are read; left: to be done by whoever gets them.
    """

    step: int
    first_index: int
    index_digest: str
    index: NDArray[np.int64]
    field_no: NDArray[np.int64]
    y: NDArray[np.int32]
    x: NDArray[np.int32]
    flip: NDArray[np.uint8]
    left: NDArray[np.uint8]


class Dealer:
    """Step s takes visits [s*B/K, (s+1)*B/K); rank r those with v mod world = r.  Every rank has the same number of
    micro-batches of the same shape."""

    def __init__(
        self,
        sampler: Sampler,
        *,
        num_patches: int,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        digest: bool,
        defer_flips: bool,
    ) -> None:
        """digest, defer_flips: see Loader.  Raises UsageError for a batch that is no whole number of visits."""
        if global_batch % sampler.crops_per_visit:
            raise UsageError(
                f"optim.global_batch={global_batch} is no multiple of data.crops_per_visit={sampler.crops_per_visit}"
            )
        self.sampler = sampler
        self._num_patches, self._rank, self._world, self._digest = num_patches, rank, world, digest
        self._defer_flips = defer_flips
        self._visits_per_step = global_batch // sampler.crops_per_visit
        share = -(-self._visits_per_step // world) * sampler.crops_per_visit
        self.micro_size = min(micro_batch, share)
        self.num_micro = -(-share // self.micro_size)

    def deal(self, step: int) -> Dealt:
        """This rank's crops of a step."""
        first = step * self._visits_per_step
        visit = np.arange(first, first + self._visits_per_step, dtype=np.int64)
        mine = visit % self._world == self._rank
        visits = self.sampler.visits(visit if self._digest else visit[mine])
        kept = mine if self._digest else np.ones(len(visits.field_no), bool)
        flip = visits.flip[kept].ravel()
        none = np.zeros_like(flip)
        return Dealt(
            step=step,
            first_index=self.sampler.first_index(first),
            index_digest=index_digest(visits) if self._digest else "",
            index=visits.index[kept].ravel(),
            field_no=np.repeat(visits.field_no[kept], self.sampler.crops_per_visit),
            y=visits.y[kept].ravel(),
            x=visits.x[kept].ravel(),
            flip=none if self._defer_flips else flip,
            left=flip if self._defer_flips else none,
        )

    def clear_padding(self, dealt: Dealt, buffers: list[NDArray[np.generic]]) -> None:
        """Zeros where the buffers hold no crop of this step."""
        for number, pixels in enumerate(buffers):
            pixels[max(0, len(dealt.index) - number * self.micro_size) :] = 0

    def batch(self, dealt: Dealt, buffers: list[NDArray[np.generic]], traffic: Traffic) -> StepBatch:
        """The step of these crops, whose pixels lie in `buffers`."""
        size = self.micro_size
        return StepBatch(
            step=dealt.step,
            first_index=dealt.first_index,
            index_digest=dealt.index_digest,
            micro=[
                self._micro(dealt, slice(number * size, (number + 1) * size), pixels)
                for number, pixels in enumerate(buffers)
            ],
            traffic=traffic,
            data_wait_s=0.0,
        )

    def _micro(self, dealt: Dealt, rows: slice, pixels: NDArray[np.generic]) -> Batch:
        index = dealt.index[rows]
        padded, flip = np.full(self.micro_size, PADDING_INDEX, np.int64), np.zeros(self.micro_size, np.uint8)
        padded[: len(index)], flip[: len(index)] = index, dealt.left[rows]
        # A padding row needs some finite noise; sample 0's does, its weight is 0.
        keys = np.maximum(padded, 0)
        return Batch(
            pixels=pixels,
            index=padded,
            weight=(padded != PADDING_INDEX).astype(np.float32),
            mask_noise=self.sampler.mask_noise(keys, self._num_patches),
            drop_key=keys,
            flip=flip,
        )
