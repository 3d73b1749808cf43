"""One plate: read its fields, encode their crops, write one row per well, commit.

What holds when killed here: before the record is committed the plate counts as not done, whatever tables lie there, and is
embedded anew; after it, all its tables are whole and are its own.  Running again writes the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.embed.feeding import Pixels, batches
from phenomhpc.embed.folder import EmbeddingsPaths
from phenomhpc.embed.table import OK, feature_name
from phenomhpc.embed.wells import PlateWells
from phenomhpc.progress import Stage
from phenomhpc.runs import CompletionRecord, commit, now, read_record, write_record

if TYPE_CHECKING:
    from phenomhpc.embed.encode import CropEncoder

CHECKPOINT = "checkpoint"


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes: the attempt, the task, its token, and the fence to pass before each commit."""

    attempt: int
    task: int
    token: str
    check_fence: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """What one encoder made of a plate: f64[wells, features], the sum over each well's crops; f32[crops, features] in their
    order, where they were asked for."""

    sums: NDArray[np.float64]
    crops: list[NDArray[np.float32]] = field(default_factory=list)


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
    blocks: Sequence[int] = (),
    crops: bool = False,
) -> CompletionRecord:
    """Embed a plate by every encoder in one pass over its pixels; commits the tables, then the record.

    encoders: by source; `checkpoint` goes to EMB/PLATE.parquet, any other to EMB/baselines/SOURCE/PLATE.parquet
    blocks: numbers of the further blocks whose vectors follow the first one's in the checkpoint's, for EMB/blocks/NN
    crops: also the checkpoint's vector of each crop, into EMB/crops
    The result is a function of the snapshot, the encoders and `batch`.  Advances `stage` by crops.
    """
    started = now()
    writer.check_fence()
    paths.record(plate).unlink(missing_ok=True)
    found = encode_wells(wells, pixels, encoders, batch, stage, keep=(CHECKPOINT,) if crops else ())
    outputs = []
    for source, encoder in encoders.items():
        first = paths if source == CHECKPOINT else paths.baseline(source)
        folders = [first, *(paths.block(number) for number in blocks if source == CHECKPOINT)]
        cuts = np.cumsum(encoder.widths)[:-1]
        tables = [
            (folder, well_table(wells, sums))
            for folder, sums in zip(folders, np.split(found[source].sums, cuts, axis=1), strict=True)
        ]
        if crops and source == CHECKPOINT:
            none = np.empty((0, sum(encoder.widths)), dtype=np.float32)
            tables.append((paths.crops, crop_table(wells, np.concatenate([none, *found[source].crops]))))
        for folder, table in tables:
            content = _parquet(table)
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


def crop_table(wells: PlateWells, vectors: NDArray[np.float32]) -> pl.DataFrame:
    """One row per crop, in the wells' order: metadata of the well, field_index, site, level, crop_y, crop_x, features.

    vectors: f32[crops, features]
    """
    fields = [found for fields in wells.fields for found in fields]
    counts = [len(found.corners) for found in fields]
    corners = np.concatenate([np.empty((0, 2), np.int64), *(found.corners for found in fields)])
    placed = pl.DataFrame(
        {
            "field_index": _spread([found.field_index for found in fields], counts, pl.UInt32),
            "site": _spread([found.site for found in fields], counts, pl.UInt16),
            "level": pl.repeat("crop", len(corners), eager=True),
            "crop_y": pl.Series(corners[:, 0], dtype=pl.UInt32),
            "crop_x": pl.Series(corners[:, 1], dtype=pl.UInt32),
            "num_crops": pl.repeat(1, len(corners), dtype=pl.UInt16, eager=True),
            "status": pl.repeat(OK, len(corners), eager=True),
        }
    )
    metadata = wells.metadata[np.repeat(np.arange(wells.num_wells), wells.num_crops)]
    features = pl.DataFrame(vectors, schema=[feature_name(i) for i in range(vectors.shape[1])], orient="row")
    return metadata.hstack(placed).hstack(features)


def _spread(values: Sequence[int], counts: Sequence[int], dtype: type[pl.DataType]) -> pl.Series:
    return pl.Series(np.repeat(np.array(values, np.int64), np.array(counts, np.int64)), dtype=dtype)


def _parquet(frame: pl.DataFrame) -> bytes:
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", statistics=False)
    return buffer.getvalue()


def encode_wells(
    wells: PlateWells,
    pixels: Pixels,
    encoders: Mapping[str, CropEncoder],
    batch: int,
    stage: Stage,
    keep: Sequence[str] = (),
) -> dict[str, Vectors]:
    """Per encoder the sum of the vectors of each well's crops, in float64 and in a fixed order.

    keep: encoders of which the vector of each crop is kept, too
    """
    found = {source: Vectors(sums=np.zeros((wells.num_wells, sum(each.widths)))) for source, each in encoders.items()}
    with ThreadPoolExecutor(1, thread_name_prefix="embed-host") as host:
        for ready in batches(wells, pixels, batch):
            beside = {
                source: host.submit(each.encode, ready.pixels) for source, each in encoders.items() if each.on_host
            }
            # Crops of a well follow each other: one run of rows for each well in the batch.
            owners, first = np.unique(ready.owner, return_index=True)
            for source, encoder in encoders.items():
                encoded = beside[source].result() if source in beside else encoder.encode(ready.pixels)
                vectors = encoded[: len(ready.owner)]
                found[source].sums[owners] += np.add.reduceat(vectors, first, axis=0, dtype=np.float64)
                if source in keep:
                    found[source].crops.append(vectors)
            stage.advance(len(ready.owner))
    return found
