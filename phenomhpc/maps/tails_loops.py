"""The loop over all pairs of a map, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phenomhpc.compiled import compiled

F64 = NDArray[np.float64]


@compiled("int64(float64[:, ::1], float64[::1], float64[::1], int64[::1], float64[::1])")
def count_and_keep(block: F64, low: F64, high: F64, below: NDArray[np.int64], kept: F64) -> int:
    """Over block[r, c], c > r: adds to below[k] how many are < low[k]; writes those in any [low[k], high[k]] into `kept`.

    Returns how many were written, each once however many ranges hold it.
    """
    num_kept = 0
    for row in range(block.shape[0]):
        for k in range(low.shape[0]):
            bound, count = low[k], 0
            for column in range(row + 1, block.shape[1]):
                count += block[row, column] < bound
            below[k] += count
        for column in range(row + 1, block.shape[1]):
            value = block[row, column]
            inside = False
            for k in range(low.shape[0]):
                inside |= (value >= low[k]) & (value <= high[k])
            if inside:
                kept[num_kept] = value
                num_kept += 1
    return num_kept
