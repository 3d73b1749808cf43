"""Merging two sorted samples, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phenomhpc.compiled import compiled

F64 = NDArray[np.float64]


@compiled("float64[::1](float64[::1], float64[::1])")
def placements(values: F64, others: F64) -> F64:
    """#(others < v) + #(others = v) / 2 of every v, both sorted."""
    result = np.empty(values.shape[0])
    below, not_above = 0, 0
    for place in range(values.shape[0]):
        value = values[place]
        while below < others.shape[0] and others[below] < value:
            below += 1
        if not_above < below:
            not_above = below
        while not_above < others.shape[0] and others[not_above] <= value:
            not_above += 1
        result[place] = 0.5 * (below + not_above)
    return result
