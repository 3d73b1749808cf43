"""Image pyramids: each pixel of level k is the mean of the level-0 pixels below it, a block of 2^k x 2^k, halves up.

Sums are carried from level to level, not rounded means: rounding errors do not add up.  At the lower and right edge of a
size that is odd the block is what there is of it, so that no pixel is lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Sums of 16-bit pixels over 2^8 x 2^8 fit into 32 bits.
MAX_LEVELS = 9


def level_size(size: int, level: int) -> int:
    """Pixels along an axis of `size` at a level."""
    return -(-size // (1 << level))


def num_levels(height: int, width: int, chunk_px: int) -> int:
    """Levels down to one that fits into a chunk; at most MAX_LEVELS."""
    levels = 1
    while levels < MAX_LEVELS and max(level_size(height, levels - 1), level_size(width, levels - 1)) > chunk_px:
        levels += 1
    return levels


def pyramid(pixels: NDArray[Any], levels: int) -> Iterator[NDArray[Any]]:
    """The levels of (C, H, W), u8 or u16, from level 0 (`pixels` itself) on, each C, ceil(H / 2^k), ceil(W / 2^k).

    Memory: u32 sums of half the field and of level 1.  Raises ValueError above MAX_LEVELS.
    """
    if not 1 <= levels <= MAX_LEVELS:
        raise ValueError(f"{levels} levels: 1 to {MAX_LEVELS}")
    yield pixels
    sums: NDArray[Any] = pixels
    rows, columns = (np.ones(size, np.uint32) for size in pixels.shape[1:])
    for _ in range(1, levels):
        sums = _halved(_halved(sums, 1), 2)
        rows, columns = _halved(rows, 0), _halved(columns, 0)
        counts = rows[:, None] * columns[None, :]
        yield ((sums + counts // 2) // counts).astype(pixels.dtype)


def _halved(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """u32 sums of neighbours along an axis; the last of an odd number stays alone."""
    before = (slice(None),) * axis
    summed: NDArray[Any] = values[(*before, slice(0, None, 2))].astype(np.uint32)
    summed[(*before, slice(0, values.shape[axis] // 2))] += values[(*before, slice(1, None, 2))]
    return summed
