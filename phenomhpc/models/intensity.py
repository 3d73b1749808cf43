"""The statistics of the pixels as a baseline: an encoder of crops that needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


class IntensityStatistics:
    """Mean, standard deviation and percentiles of the raw pixels, per channel: what a map can get without any network.

    Values are in units of the scale (grey levels / scale); percentiles are those of PERCENTILES, of the kind "lower"
    (a value that occurs).  Features: channel by channel, [mean, std, percentiles...].
    """

    PER_CHANNEL = 2 + len(PERCENTILES)
    on_host = True

    def __init__(self, scale: Sequence[float], *, threads: int = 1) -> None:
        """threads: that share the crops of a batch."""
        self._scale = np.asarray(scale, dtype=np.float64)
        self._threads = threads

    @property
    def num_features(self) -> int:
        return len(self._scale) * self.PER_CHANNEL

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.num_features,)

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        """f32[B, num_features] of u8|u16[B, C, h, w]."""
        planes = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
        last = planes.shape[1] - 1
        ranks = np.array([last * percentile // 100 for percentile in PERCENTILES], dtype=np.int64)
        done = np.empty((len(planes), self.PER_CHANNEL))
        parts = zip(np.array_split(planes, self._threads), np.array_split(done, self._threads), strict=True)
        with ThreadPoolExecutor(self._threads, thread_name_prefix="intensity") as pool:
            for future in [pool.submit(_statistics, part, ranks, to) for part, to in parts]:
                future.result()
        statistics = done.reshape(*pixels.shape[:2], -1) / self._scale[:, None]
        return statistics.reshape(len(pixels), -1).astype(np.float32)


def _statistics(planes: NDArray[np.generic], ranks: NDArray[np.int64], done: NDArray[np.float64]) -> None:
    from phenomhpc.models.intensity_loops import plane_statistics

    num_values = 2 ** (8 * planes.dtype.itemsize)
    plane_statistics(planes, ranks, np.empty((4, num_values), dtype=np.uint32), done)
