"""The compiled loop of the pixels' statistics, imported when it is first needed."""

from __future__ import annotations

from typing import Any

import numpy as np

from phenomhpc.compiled import compiled


@compiled(
    "void(u1[:,::1], i8[::1], u4[:,::1], f8[:,::1])",
    "void(u2[:,::1], i8[::1], u4[:,::1], f8[:,::1])",
)
def plane_statistics(pixels: Any, ranks: Any, room: Any, done: Any) -> None:
    """done f64[n, 2 + r]: mean, standard deviation and the values at `ranks` (ascending) of each row of pixels u8|u16[n, p].

    From a histogram, whose sums are exact.  room: u32[4, values], for four counts side by side: equal pixels that follow each
    other would wait for one.
    """
    num_values = room.shape[1]
    for row in range(pixels.shape[0]):
        line = pixels[row]
        room[:, :] = 0
        whole = len(line) - len(line) % 4
        for j in range(0, whole, 4):
            room[0, line[j]] += np.uint32(1)
            room[1, line[j + 1]] += np.uint32(1)
            room[2, line[j + 2]] += np.uint32(1)
            room[3, line[j + 3]] += np.uint32(1)
        for j in range(whole, len(line)):
            room[0, line[j]] += np.uint32(1)
        total, squares, below, rank = np.uint64(0), np.uint64(0), np.int64(0), 0
        for value in range(num_values):
            count = np.uint64(room[0, value]) + room[1, value] + room[2, value] + room[3, value]
            if count:
                total += count * np.uint64(value)
                squares += count * np.uint64(value) * np.uint64(value)
                below += np.int64(count)
                while rank < len(ranks) and ranks[rank] < below:
                    done[row, 2 + rank] = value
                    rank += 1
        mean = total / len(line)
        done[row, 0] = mean
        done[row, 1] = np.sqrt(max(squares / len(line) - mean * mean, 0.0))
