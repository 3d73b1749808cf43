"""Average precision of many queries, compiled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phenomhpc.compiled import compiled

I64 = NDArray[np.int64]


@compiled("float64[::1](float64[:, ::1], int64, int64[::1], int64[::1], int64[::1])")
def average_precisions(
    block: NDArray[np.float64], first: int, code: I64, order: I64, starts: I64
) -> NDArray[np.float64]:
    """AP of the rows first, first + 1, ... whose cosines with all rows are block[r, n]; NaN for one without replicate.

    code: the label's number of every row; the rows of label c are order[starts[c] : starts[c + 1]].
    """
    result = np.full(block.shape[0], np.nan)
    for row in range(block.shape[0]):
        mine = code[first + row]
        num = starts[mine + 1] - starts[mine] - 1
        if num < 1:
            continue
        values = np.empty(num)
        place = 0
        for member in order[starts[mine] : starts[mine + 1]]:
            if member != first + row:
                values[place] = block[row, member]
                place += 1
        values.sort()
        # above[j]: wrong answers with a score > values[j] and not > values[j + 1].
        above = np.zeros(num, np.int64)
        lowest = values[0]
        for column in range(block.shape[1]):
            if block[row, column] > lowest and code[column] != mine:
                above[np.searchsorted(values, block[row, column]) - 1] += 1
        wrong, total = 0, 0.0
        for j in range(num - 1, -1, -1):
            wrong += above[j]
            total += (num - j) / (num - j + wrong)
        result[row] = total / num
    return result
