"""The statistics of the pixels as a baseline: an encoder of crops that needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


class IntensityStatistics:
    """Mean, standard deviation and percentiles of the raw pixels, per channel: what a map can get without any network.

    Values are in units of the scale (grey levels / scale); percentiles are those of PERCENTILES, of the kind "lower"
    (a value that occurs).  Features: channel by channel, [mean, std, percentiles...].
    """

    PER_CHANNEL = 2 + len(PERCENTILES)

    def __init__(self, scale: Sequence[float]) -> None:
        self._scale = np.asarray(scale, dtype=np.float64)

    @property
    def num_features(self) -> int:
        return len(self._scale) * self.PER_CHANNEL

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.num_features,)

    def encode(self, pixels: NDArray[np.generic]) -> NDArray[np.float32]:
        flat = pixels.reshape(*pixels.shape[:2], -1)
        last = flat.shape[-1] - 1
        ranks = [last * percentile // 100 for percentile in PERCENTILES]
        quantiles = np.partition(flat, sorted(set(ranks)), axis=-1)[..., ranks]
        mean = flat.mean(axis=-1, dtype=np.float64)
        std = flat.std(axis=-1, dtype=np.float64)
        statistics = np.concatenate([mean[..., None], std[..., None], quantiles], axis=-1) / self._scale[:, None]
        return statistics.reshape(len(pixels), -1).astype(np.float32)
