"""Arrays of all wells: in memory where they are small, in a file that is mapped where they are not.

Two million wells of 1,664 features are 27 GB of float64, aligned, and as much again for a baseline.  The file has no name: what
holds when killed here is that nothing is left of it.  Its room is taken beforehand, since a page of a mapped file for which a disk
has none ends the process.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray

from phenomhpc.errors import WorkError
from phenomhpc.maps.checks import BLOCK_ROWS, Features, Rows, read_rows

HELD_BYTES = 1 << 30  # larger arrays are mapped


def held_array(num_rows: int, num_features: int, dtype: DTypeLike, folder: Path) -> NDArray[np.floating]:
    """An array to be filled, f[num_rows, num_features]; of more than HELD_BYTES in a nameless file on the disk of `folder`.

    Raises WorkError where that disk has no room for it.
    """
    shape, kind = (num_rows, num_features), np.dtype(dtype)
    num_bytes = num_rows * num_features * kind.itemsize
    if num_bytes <= HELD_BYTES:
        return np.empty(shape, kind)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
            return np.memmap(file, kind, mode="r+", shape=shape)
    except OSError as error:
        raise WorkError(
            f"evaluate: no room on the disk of {folder} for features of {num_rows:,} wells x {num_features:,} "
            f"({num_bytes / 1e9:.1f} GB, {error.strerror}); free as much, or set runs= to a folder on another disk"
        ) from error


def pieces_of(features: Rows, rows: NDArray[np.intp] | None = None) -> Iterator[tuple[NDArray[np.intp], Features]]:
    """(row numbers i64[m], those rows as f64[m, d]) of all rows, or of some, BLOCK_ROWS at a time."""
    every = np.arange(len(features)) if rows is None else rows
    for start in range(0, len(every), BLOCK_ROWS):
        some = every[start : start + BLOCK_ROWS]
        yield some, read_rows(features, some)
