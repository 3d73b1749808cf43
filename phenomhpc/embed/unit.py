"""One plate: read its fields, encode their crops, write one row per well, commit.

What holds when killed here: before the record is committed the plate counts as not done, whatever tables lie there, and is
embedded anew; after it, all its tables are whole and are its own.  Running again writes the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.crops import tile
from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.embed.table import OK, feature_name
from phenomhpc.embed.wells import PlateWells
from phenomhpc.progress import Stage
from phenomhpc.runs import CompletionRecord, commit, now, read_record, write_record
from phenomhpc.store.litreader import Reader

if TYPE_CHECKING:
    from phenomhpc.embed.encode import CropEncoder

CHECKPOINT = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Where crops come from: the reader, the snapshot's table, and which of the store's channels the encoder takes."""

    reader: Reader
    table: NDArray[np.void]
    dtype: np.dtype[Any]
    num_channels: int
    channel_index: Sequence[int]
    crop_px: int


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes: the attempt, the task, its token, and the fence to pass before each commit."""

    attempt: int
    task: int
    token: str
    check_fence: Callable[[], None]


def embed_unit(
    plate: str,
    wells: PlateWells,
    *,
    pixels: Pixels,
    encoders: Mapping[str, CropEncoder],
    batch: int,
    paths: EmbeddingsPaths,
    digest: str,
    writer: Writer,
    stage: Stage,
) -> CompletionRecord:
    """Embed a plate by every encoder in one pass over its pixels; commits the tables, then the record.

    encoders: by source; `checkpoint` goes to EMB/PLATE.parquet, any other to EMB/baselines/SOURCE/PLATE.parquet
    The result is a function of the snapshot, the encoders and `batch`.  Advances `stage` by crops.
    """
    started = now()
    writer.check_fence()
    paths.record(plate).unlink(missing_ok=True)
    sums = _sum_per_well(wells, pixels, encoders, batch, stage)
    outputs = []
    for source in encoders:
        folder = paths if source == CHECKPOINT else paths.baseline(source)
        content = _parquet(well_table(wells, sums[source]))
        writer.check_fence()
        commit(folder.table(plate), content, token=writer.token)
        outputs.append((str(folder.table(plate).relative_to(paths.root)), len(content), crc32c(content)))
    record = CompletionRecord(
        unit_id=plate,
        digest=digest,
        attempt=writer.attempt,
        task=writer.task,
        token=writer.token,
        started=started,
        ended=now(),
        outputs=tuple(outputs),
        set_aside=_missing(plate, wells),
    )
    writer.check_fence()
    write_record(paths.record(plate), record)
    return record


def is_done(paths: EmbeddingsPaths, plate: str, digest: str) -> bool:
    """Was this plate embedded with exactly these settings and inputs, and are its tables still there?"""
    record = read_record(paths.record(plate))
    if record is None or record.digest != digest:
        return False
    return all(
        (paths.root / name).is_file() and (paths.root / name).stat().st_size == size for name, size, _ in record.outputs
    )


def _missing(plate: str, wells: PlateWells) -> tuple[tuple[str, str], ...]:
    names = wells.metadata["well"].to_list()
    return tuple((f"{plate}/{name}", why) for name, why in zip(names, wells.status, strict=True) if why != OK)


def well_table(wells: PlateWells, sums: NDArray[np.float64]) -> pl.DataFrame:
    """One row per well: metadata, level, num_crops, status, features f32 (null where the well has no crop).

    sums: f64[wells, features], over each well's crops
    """
    means = (sums / np.maximum(wells.num_crops, 1)[:, None]).astype(np.float32)
    present = pl.Series(wells.num_crops > 0)
    frame = wells.metadata.with_columns(
        pl.lit("well").alias("level"),
        pl.Series("num_crops", wells.num_crops, dtype=pl.UInt16),
        pl.Series("status", wells.status),
    )
    features = pl.DataFrame(means, schema=[feature_name(i) for i in range(means.shape[1])], orient="row")
    return frame.hstack(features.select(pl.when(present).then(pl.all()).name.keep()))


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def _sum_per_well(
    wells: PlateWells, pixels: Pixels, encoders: Mapping[str, CropEncoder], batch: int, stage: Stage
) -> dict[str, NDArray[np.float64]]:
    """f64[wells, features] per encoder: the sum of the vectors of each well's crops, in float64 and in a fixed order."""
    sums = {source: np.zeros((wells.num_wells, encoder.num_features)) for source, encoder in encoders.items()}
    size = pixels.crop_px
    buffer = np.zeros((batch, len(pixels.channel_index), size, size), dtype=pixels.dtype)
    owner: list[int] = []

    def flush() -> None:
        buffer[len(owner) :] = 0
        for source, encoder in encoders.items():
            np.add.at(sums[source], owner, encoder.encode(buffer)[: len(owner)].astype(np.float64))
        stage.advance(len(owner))
        owner.clear()

    for well_no, crop in _crops(wells, pixels):
        np.take(crop, pixels.channel_index, axis=0, out=buffer[len(owner)])
        owner.append(well_no)
        if len(owner) == batch:
            flush()
    if owner:
        flush()
    return sums


def _crops(wells: PlateWells, pixels: Pixels) -> Iterator[tuple[int, NDArray[np.generic]]]:
    """(index of the well, crop [channels of the store, h, w]), field after field; a crop is valid until the next one."""
    work = [(well_no, field_no) for well_no, numbers in enumerate(wells.field_no) for field_no in numbers]
    for (well_no, field_no), field in zip(work, _read_ahead([no for _, no in work], pixels), strict=True):
        for y, x in _tiles(pixels, field_no):
            yield well_no, field[:, y : y + pixels.crop_px, x : x + pixels.crop_px]


def _tiles(pixels: Pixels, field_no: int) -> list[tuple[int, int]]:
    row = pixels.table[field_no]
    return tile(int(row["height"]), int(row["width"]), pixels.crop_px)


def _read_ahead(field_nos: Sequence[int], pixels: Pixels) -> Iterator[NDArray[np.generic]]:
    """Whole fields, so that a chunk is decoded once however many crops touch it; the next is read while one is encoded."""
    buffers: list[NDArray[np.generic]] = [np.empty((0, 0, 0), dtype=pixels.dtype) for _ in range(2)]

    def read(position: int) -> NDArray[np.generic]:
        row = pixels.table[field_nos[position]]
        shape = (pixels.num_channels, int(row["height"]), int(row["width"]))
        if buffers[position % 2].shape != shape:
            buffers[position % 2] = np.empty(shape, dtype=pixels.dtype)
        pixels.reader.read(field_nos[position], 0, 0, buffers[position % 2])
        return buffers[position % 2]

    with ThreadPoolExecutor(1, thread_name_prefix="embed-read") as pool:
        ahead = pool.submit(read, 0) if field_nos else None
        for position in range(len(field_nos)):
            assert ahead is not None
            field = ahead.result()
            # The other buffer is free: whoever iterates is done with the field before.
            ahead = pool.submit(read, position + 1) if position + 1 < len(field_nos) else None
            yield field
