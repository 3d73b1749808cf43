"""What a loader gives: the micro-batches of a step, and what they have cost the file system."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.store.shardfiles import Traffic

PADDING_INDEX = -1


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of fixed shape; rows of weight 0 are padding (index -1, pixels 0).

    pixels u8|u16 [B, C, h, w]; index i64[B]; weight f32[B]; mask_noise f32[B, L]; drop_key i64[B] (the sample index);
    flip u8[B]: what is still to be done to the pixels (bits of the sampler's, see `flip_target`): 0 unless flips are deferred.
    """

    pixels: NDArray[np.generic]
    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    mask_noise: NDArray[np.float32]
    drop_key: NDArray[np.int64]
    flip: NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's micro-batches of a step.  The pixels are valid until a later step is asked for (the next one, by default):
    their buffers are reused.

    first_index: the first sample index of the global batch; data_wait_s: seconds that the caller waited for this step;
    traffic: what reading its crops asked of the disk, on this rank alone, but for what a worker that died had asked.
    """

    step: int
    first_index: int
    index_digest: str
    micro: list[Batch]
    traffic: Traffic
    data_wait_s: float
