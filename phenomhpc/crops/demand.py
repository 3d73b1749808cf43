"""What crops ask of a file system and of CPU cores, expected: numbers in, numbers out.

Corners are uniform over the places where a crop fits, chunks of a field lie row by row behind each other, and a row of chunks is
one read, which begins anywhere in a block of the file system.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How fields are cut.  Pixels; chunk_bytes: of an encoded chunk (all channels) that a crop touches, on average.

    weight: how many crops come from such fields, in any unit.
    """

    height: int
    width: int
    chunk_px: int
    num_channels: int
    itemsize: int
    chunk_bytes: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class CropDemand:
    """Of one crop, on average.

    chunks: decoded; reads: one for each row of chunks; read_bytes: encoded; blocks: of the file system, in which they lie;
    pixel_bytes: its own; amplification: pixels decoded over its own; ratio: how many times smaller chunks are than pixels.
    """

    chunks: float
    reads: float
    read_bytes: float
    blocks: float
    pixel_bytes: int
    amplification: float
    ratio: float


def touched(size: int, crop_px: int, chunk_px: int) -> tuple[tuple[int, float], ...]:
    """How many chunks a crop touches along one axis: (number, share of the places where it can begin)."""
    first = np.arange(size - crop_px + 1)
    number = (first + crop_px - 1) // chunk_px - first // chunk_px + 1
    values, counts = np.unique(number, return_counts=True)
    return tuple((int(value), float(count) / len(first)) for value, count in zip(values, counts, strict=True))


def touch_shares(size: int, crop_px: int, chunk_px: int) -> NDArray[np.float64]:
    """f64[number of chunks along one axis]: share of the places where a crop can begin from which it touches the chunk.

    Chunks at the edges, which may be mostly padding, are touched less often than others.
    """
    begin = np.arange(0, size, chunk_px)
    first, last = np.maximum(begin - crop_px + 1, 0), np.minimum(begin + chunk_px - 1, size - crop_px)
    shares: NDArray[np.float64] = np.maximum(last - first + 1, 0) / (size - crop_px + 1)
    return shares


def blocks_touched(rows: int, row_bytes: float, stride: float, block: int) -> float:
    """Expected blocks under `rows` reads of `row_bytes`, `stride` bytes from one to the next, whose place in a block is uniform."""
    each = 1 + (row_bytes - 1) / block
    # Two neighbours share a block when the gap between them does not reach over one of its edges.
    shared = max(0.0, 1 - (stride - row_bytes + 1) / block)
    return rows * each - (rows - 1) * shared


def crop_demand(layouts: Sequence[Layout], crop_px: int, block: int) -> CropDemand:
    """The mean over layouts by their weights.  block: of the file system, bytes."""
    total = sum(layout.weight for layout in layouts)
    chunks = reads = read_bytes = blocks = raw_bytes = 0.0
    for layout in layouts:
        share = layout.weight / total
        stride = -(-layout.width // layout.chunk_px) * layout.chunk_bytes
        for rows, of_rows in touched(layout.height, crop_px, layout.chunk_px):
            for columns, of_columns in touched(layout.width, crop_px, layout.chunk_px):
                times = share * of_rows * of_columns
                chunks += times * rows * columns
                reads += times * rows
                read_bytes += times * rows * columns * layout.chunk_bytes
                blocks += times * blocks_touched(rows, columns * layout.chunk_bytes, stride, block)
                raw_bytes += times * rows * columns * layout.chunk_px**2 * layout.num_channels * layout.itemsize
    pixel_bytes = crop_px**2 * layouts[0].num_channels * layouts[0].itemsize
    return CropDemand(
        chunks=chunks,
        reads=reads,
        read_bytes=read_bytes,
        blocks=blocks,
        pixel_bytes=pixel_bytes,
        amplification=raw_bytes / pixel_bytes,
        ratio=raw_bytes / read_bytes,
    )


def open_share(number: float, pool: int) -> float:
    """Share of visits that open a file: `number` of them, equally likely, of which the `pool` used last stay open."""
    return max(0.0, 1 - pool / number)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Per second.  pixels and reads in MB; shard_opens, index_opens: files; blocks: of the file system; cores: that decode."""

    crops: float
    pixels_mb: float
    read_mb: float
    reads: float
    shard_opens: float
    index_opens: float
    blocks: float
    cores: float


def demand(
    crop: CropDemand, crops_per_s: float, *, shard_opens: float, index_opens: float, core_crops_per_s: float
) -> Demand:
    """Of so many crops per second.  shard_opens, index_opens: per crop; core_crops_per_s: what a core reads and decodes."""
    return Demand(
        crops=crops_per_s,
        pixels_mb=crops_per_s * crop.pixel_bytes / MEGABYTE,
        read_mb=crops_per_s * crop.read_bytes / MEGABYTE,
        reads=crops_per_s * crop.reads,
        shard_opens=crops_per_s * shard_opens,
        index_opens=crops_per_s * index_opens,
        blocks=crops_per_s * crop.blocks,
        cores=crops_per_s / core_crops_per_s,
    )
