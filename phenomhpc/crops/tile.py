"""Non-overlapping crops of a field, for embedding."""

from __future__ import annotations


def tile(height: int, width: int, crop_px: int) -> list[tuple[int, int]]:
    """Corners (y, x) of the whole crops that fit, row by row, centred: 64 for 2048 at 256, 16 for 1080 (1024 used).

    The rest at the edges, less than a crop, is left out on both sides alike.  Empty when the field is smaller than a crop.
    """
    rows, columns = height // crop_px, width // crop_px
    top, left = (height - rows * crop_px) // 2, (width - columns * crop_px) // 2
    return [(top + row * crop_px, left + column * crop_px) for row in range(rows) for column in range(columns)]
