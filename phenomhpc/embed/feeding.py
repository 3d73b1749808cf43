"""A plate's crops in batches, read ahead of whoever encodes them.

Whole fields are read, so that a chunk is decoded once however many crops touch it: some of them ahead, by threads.  Another
thread cuts them into the next batch while one is encoded.  What is in which batch depends on none of that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.embed.wells import FieldCrops, PlateWells
from phenomhpc.store.litreader import Reader


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Where crops come from: the reader, the snapshot's table, and which of the store's channels the encoder takes.

    threads: that read fields ahead
    """

    reader: Reader
    table: NDArray[np.void]
    dtype: np.dtype[Any]
    num_channels: int
    channel_index: Sequence[int]
    crop_px: int
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class CropBatch:
    """pixels [B, C, h, w]: as many crops as `owner` has entries, blank behind them; valid until the next batch is asked for.

    owner: i64[n], the well of each crop
    """

    pixels: NDArray[np.generic]
    owner: NDArray[np.int64]


def batches(wells: PlateWells, pixels: Pixels, batch: int) -> Iterator[CropBatch]:
    """The crops of the wells in their order, `batch` of them at a time; the last batch is padded with blank ones."""
    filled = _filled(wells, pixels, batch)
    with ThreadPoolExecutor(1, thread_name_prefix="embed-fill") as filler:
        try:
            # The batch that is out lies in one buffer, the next is put into the other.
            ahead = filler.submit(next, filled, None)
            while (ready := ahead.result()) is not None:
                ahead = filler.submit(next, filled, None)
                yield ready
        finally:
            filler.submit(filled.close).result()


def _filled(wells: PlateWells, pixels: Pixels, batch: int) -> Any:
    shape = (batch, len(pixels.channel_index), pixels.crop_px, pixels.crop_px)
    buffers = deque(np.zeros(shape, dtype=pixels.dtype) for _ in range(2))
    owner: list[int] = []
    work = [(well_no, field) for well_no, fields in enumerate(wells.fields) for field in fields]
    for (well_no, field), image in zip(work, _read_ahead([field for _, field in work], pixels), strict=True):
        for y, x in field.corners:
            crop = image[:, y : y + pixels.crop_px, x : x + pixels.crop_px]
            for channel, plane in zip(pixels.channel_index, buffers[0][len(owner)], strict=True):
                plane[...] = crop[channel]
            owner.append(well_no)
            if len(owner) == batch:
                yield CropBatch(pixels=buffers[0], owner=np.array(owner))
                buffers.rotate()
                owner = []
    if owner:
        buffers[0][len(owner) :] = 0
        yield CropBatch(pixels=buffers[0], owner=np.array(owner))


def _read_ahead(fields: Sequence[FieldCrops], pixels: Pixels) -> Iterator[NDArray[np.generic]]:
    """Each field's pixels, valid until the next is asked for."""
    buffers: list[NDArray[np.generic]] = [np.empty((0, 0, 0), dtype=pixels.dtype)] * (pixels.threads + 1)

    def read(position: int) -> NDArray[np.generic]:
        number = fields[position].field_no
        row = pixels.table[number]
        shape = (pixels.num_channels, int(row["height"]), int(row["width"]))
        place = position % len(buffers)
        if buffers[place].shape != shape:
            buffers[place] = np.empty(shape, dtype=pixels.dtype)
        pixels.reader.read(number, 0, 0, buffers[place])
        return buffers[place]

    reading: deque[Future[NDArray[np.generic]]] = deque()
    with ThreadPoolExecutor(pixels.threads, thread_name_prefix="embed-read") as pool:
        for position in range(len(fields)):
            # The buffer of the field that was given last is free again: whoever iterates is done with it.
            while len(reading) < pixels.threads and position + len(reading) < len(fields):
                reading.append(pool.submit(read, position + len(reading)))
            image = reading.popleft().result()
            following = position + 1 + len(reading)
            if following < len(fields):
                reading.append(pool.submit(read, following))
            yield image
