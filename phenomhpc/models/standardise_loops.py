"""The compiled loops of `standardise`, which imports them when it first needs them."""

from __future__ import annotations

from typing import Any

import numpy as np

from phenomhpc.compiled import compiled

# Pixels that are summed before their sums join the plane's.
_PIECE = 4096


@compiled("void(u1[:,::1], f8[::1], f8, f4[:,::1])", "void(u2[:,::1], f8[::1], f8, f4[:,::1])")
def standardise_planes(pixels: Any, scale: Any, eps: Any, done: Any) -> None:
    """done f32[n, p]: (x - mean) / sqrt(variance + eps * scale^2) of each row of pixels u8|u16[n, p], scale f64[n].

    Sums of integers are exact; mean and variance are f64, the values f32.
    """
    for row in range(pixels.shape[0]):
        line, to = pixels[row], done[row]
        total, squares = np.uint64(0), np.uint64(0)
        for begin in range(0, len(line), _PIECE):
            piece = line[begin : begin + _PIECE]
            part, part_squares = np.uint64(0), np.uint64(0)
            for j in range(len(piece)):
                value = np.uint64(piece[j])
                part += value
                part_squares += value * value
            total += part
            squares += part_squares
        mean = total / len(line)
        variance = max(squares / len(line) - mean * mean, 0.0)
        factor, shift = np.float32(1.0 / np.sqrt(variance + eps * scale[row] * scale[row])), np.float32(mean)
        for j in range(len(line)):
            to[j] = (np.float32(line[j]) - shift) * factor
