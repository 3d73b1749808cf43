"""What a loader gives: the micro-batches of a step, and what they have cost the file system."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from phenomhpc.store.litreader import Metered, Reader

PADDING_INDEX = -1


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
class StepTraffic:
    """crops: read for a step; bytes, reads, opens: asked of the stores' file systems; from_cache: crops that a cache had.

    What a worker that died had asked for is in no count.
    """

    crops: int = 0
    bytes: int = 0
    reads: int = 0
    opens: int = 0
    from_cache: int = 0

    def __add__(self, other: StepTraffic) -> StepTraffic:
        return StepTraffic(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def __sub__(self, other: StepTraffic) -> StepTraffic:
        return StepTraffic(**{name: getattr(self, name) - getattr(other, name) for name in _NAMES})


_NAMES = tuple(field.name for field in fields(StepTraffic))


def traffic_of(reader: Reader, crops: int = 0) -> StepTraffic:
    """What a reader has asked for so far, beside a count of crops; nothing of one that does not count."""
    if not isinstance(reader, Metered):
        return StepTraffic(crops=crops)
    asked = reader.traffic
    return StepTraffic(
        crops=crops, bytes=asked.bytes, reads=asked.reads, opens=asked.opens, from_cache=reader.num_from_cache
    )


@dataclass(frozen=True, kw_only=True)
class StepBatch:
    """One rank's micro-batches of a step.  The pixels are valid until a later step is asked for (the next one, by default):
    their buffers are reused.

    first_index: the first sample index of the global batch; data_wait_s: seconds that the caller waited for this step.
    """

    step: int
    first_index: int
    index_digest: str
    micro: list[Batch]
    traffic: StepTraffic
    data_wait_s: float
