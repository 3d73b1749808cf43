"""Small pictures of a plate's wells: a montage of all of them, and a closer look at a few.

Contrast is one for a plate and channel, so that its wells can be compared.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import WorkError
from phenomhpc.plates import Well
from phenomhpc.plates.qc import dna_channel
from phenomhpc.progress import Stage
from phenomhpc.report import false_colours, jpeg
from phenomhpc.store import ShardReader, Snapshot

# Width of a montage, pixels: about what a page is wide; 384 wells then weigh up to 300 kB.
MONTAGE_PX = 1200
LARGEST_THUMBNAIL_PX = 144
CLOSE_PX = 192  # edge of a closer look, in pixels of the field
LOW_PERCENTILE, HIGH_PERCENTILE = 1.0, 99.7
# Light that is sent through cells is bright everywhere: blended with the others it would leave nothing to see.
_TRANSMITTED = ("bright", "phase", "trans", "dpc", "dic")
BEHIND = 0.13  # grey of a cell without a picture, and between pictures
GAP_PX = 2

Planes = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Montage:
    """A montage as JPEG, its cells in the plate's rows and columns; unreadable: wells whose pixels could not be read, and why."""

    jpeg: bytes
    unreadable: Mapping[Well, str]


def shown_channels(channels: Sequence[str]) -> list[int]:
    """Channels to blend: those of fluorescence, as far as names tell, all where there would be none; DNA first, and so in blue."""
    kept = [at for at, name in enumerate(channels) if not any(word in name.lower() for word in _TRANSMITTED)]
    dna = dna_channel(channels)
    return sorted(kept or range(len(channels)), key=lambda at: (at != dna, at))


def block_means(pixels: NDArray[Any], edge: int) -> Planes:
    """(C, H, W) -> f32 (C, h, w), means of square blocks of which the longer side has at most `edge`; centred, rests cut off."""
    height, width = pixels.shape[1:]
    block = max(1, -(-max(height, width) // edge))
    h, w = max(1, height // block), max(1, width // block)
    tall, wide = min(block, height), min(block, width)
    top, left = (height - h * tall) // 2, (width - w * wide) // 2
    cut = pixels[:, top : top + h * tall, left : left + w * wide]
    # Rows first: neighbours in memory are added up many at a time.
    rows = cut.reshape(len(cut), h, tall, w * wide).sum(axis=2, dtype=np.uint32)
    means: Planes = rows.reshape(len(cut), h, w, wide).sum(axis=3, dtype=np.float32) / np.float32(tall * wide)
    return means


class PlateCamera:
    """Reads the pictures of plates, several wells at a time.  Memory: one field for each thread, one thumbnail for each well."""

    def __init__(self, reader: ShardReader, snapshot: Snapshot, threads: int) -> None:
        self._reader, self._snapshot, self._threads = reader, snapshot, threads
        self._channels = shown_channels(snapshot.channels)
        self._scratch = threading.local()

    def montage(self, first: Mapping[Well, int], rows: int, columns: int, stage: Stage) -> Montage | None:
        """The wells of `first` (well -> field_no) on a plate of that size; None where there are none.  Advances by wells."""
        wells = sorted(first)
        edge = min(LARGEST_THUMBNAIL_PX, MONTAGE_PX // columns)
        pictures: dict[Well, Planes] = {}
        unreadable: dict[Well, str] = {}

        def one(well: Well) -> Planes | str:
            try:
                return block_means(self._field(first[well]), edge)[self._channels]
            except WorkError as error:
                return str(error)

        with ThreadPoolExecutor(self._threads) as pool:
            for well, found in zip(wells, pool.map(one, wells), strict=True):
                if isinstance(found, str):
                    unreadable[well] = found
                else:
                    pictures[well] = found
                stage.advance()
        if not pictures:
            return None if not wells else Montage(jpeg=b"", unreadable=unreadable)
        coloured = self._coloured(list(pictures.values()))
        h, w = coloured.shape[1:3]
        sheet = np.full((rows * h, columns * w, 3), BEHIND)
        for well, picture in zip(pictures, coloured, strict=True):
            y, x = (well.row - 1) * h, (well.column - 1) * w
            sheet[y : y + h, x : x + w] = picture
        return Montage(jpeg=jpeg(sheet), unreadable=unreadable)

    def closer(self, first: Mapping[Well, int], wells: Sequence[Well]) -> bytes:
        """The middle of each well's field, side by side at full resolution, as JPEG; b"" where one cannot be read."""
        try:
            pictures = [self._middle(first[well]) for well in wells]
        except WorkError:
            return b""
        if not pictures:
            return b""
        edges = ((0, 0), (0, 0), (GAP_PX, GAP_PX), (0, 0))
        return jpeg(np.concatenate(list(np.pad(self._coloured(pictures), edges, constant_values=BEHIND)), axis=1))

    def _coloured(self, pictures: Sequence[Planes]) -> NDArray[np.float64]:
        """f64 (n, h, w, 3) of pictures (C, h, w), on one scale for each channel."""
        stack = np.stack(pictures)
        low, high = np.percentile(stack, (LOW_PERCENTILE, HIGH_PERCENTILE), axis=(0, 2, 3))
        return false_colours(stack, np.tile(low, (len(stack), 1)), np.tile(high, (len(stack), 1)))

    def _field(self, field_no: int) -> NDArray[Any]:
        """A whole field (C, H, W), in this thread's buffer until its next."""
        size = self._snapshot.table[field_no]
        shape = (len(self._snapshot.channels), int(size["height"]), int(size["width"]))
        buffer: NDArray[Any] | None = getattr(self._scratch, "buffer", None)
        if buffer is None or buffer.shape != shape:
            buffer = self._scratch.buffer = np.empty(shape, self._snapshot.dtype)
        self._reader.read(field_no, 0, 0, buffer)
        return buffer

    def _middle(self, field_no: int) -> Planes:
        size = self._snapshot.table[field_no]
        height, width = int(size["height"]), int(size["width"])
        h, w = min(CLOSE_PX, height), min(CLOSE_PX, width)
        pixels = np.empty((len(self._snapshot.channels), h, w), self._snapshot.dtype)
        self._reader.read(field_no, (height - h) // 2, (width - w) // 2, pixels)
        return pixels[self._channels].astype(np.float32)
