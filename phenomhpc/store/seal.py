"""seal: fields tables, shard indices, and an immutable snapshot of what a store holds now.  Idempotent."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.philox import philox
from phenomhpc.progress import Progress
from phenomhpc.store.fields import annotated, plate_fields, read_annotations, read_fields, write_fields, write_set_aside
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.reader import ShardReader
from phenomhpc.store.shardindex import write_shard_index
from phenomhpc.store.shards import Geometry, read_geometry
from phenomhpc.store.snapshot import TABLE_DTYPE, Snapshot, write_snapshot
from phenomhpc.store.spec import Store
from phenomhpc.store.sums import write_sums

# For uint16, pixels are divided by this percentile over a keyed sample of fields before standardisation.
SCALE_PERCENTILE = 99.9
SCALE_FIELDS = 32
SCALE_SEED, SCALE_PURPOSE = 0, 100


def seal(store: Store, progress: Progress) -> Snapshot:
    """Write what readers need and return the new (or same) snapshot.

    A plate that is not fully converted is sealed with the shards it has, and said so.  A store copied without its
    .progress is a finished one: its fields tables stand, and sealing it again writes nothing.  Raises UsageError when no
    field at all is usable, WorkError for a damaged shard and where nothing can be written.
    """
    try:
        return _seal(store, progress)
    except OSError as error:
        raise WorkError(f"store {store.paths.root}: cannot be sealed ({error}); what was committed stays") from error


def _seal(store: Store, progress: Progress) -> Snapshot:
    plates = store.paths.converted_plates()
    kept: list[str] = []
    tables: list[NDArray[np.void]] = []
    frames: list[pl.DataFrame] = []
    with progress.stage("seal", len(plates), "plates") as stage:
        for plate in plates:
            geometry = read_geometry(store.paths, plate)
            fields, missing = _fields_of(store.paths, plate, geometry)
            if missing:
                stage.note(f"plate {plate}: {missing} of {geometry.num_shards} shards are not converted yet")
            if fields is not None and fields.height:
                try:
                    write_shard_index(store.paths, plate, geometry)
                except ValueError as error:
                    raise WorkError(f"store {store.paths.root}: {error}; convert it again") from error
                tables.append(_table(fields, len(kept), geometry))
                frames.append(fields)
                kept.append(plate)
            stage.advance()
    table = np.concatenate(tables) if tables else np.empty(0, TABLE_DTYPE)
    if not len(table):
        raise UsageError(f"store {store.paths.root}: no usable field to seal; convert plates first")
    fields_now = pl.concat(frames, how="diagonal_relaxed")
    digest = write_snapshot(store, kept, table, fields_now, _scale(store, kept, table))
    if store.paths.progress.is_dir() or not store.paths.set_aside.is_file():
        write_set_aside(store.paths, fields_now)
    write_sums(store.paths)
    return Snapshot.open(store, digest)


def _fields_of(paths: StorePaths, plate: str, geometry: Geometry) -> tuple[pl.DataFrame | None, int]:
    """A plate's fields whose shards are there (None: never converted), and how many shards are not."""
    if paths.records(plate).is_dir():
        fields, missing = plate_fields(paths, plate, geometry)
        if fields.height:
            write_fields(paths, plate, fields)
        return fields, missing
    if not paths.fields(plate).is_file():
        return None, geometry.num_shards
    absent = [shard for shard in range(geometry.num_shards) if not paths.shard(plate, shard).is_file()]
    shard_of = pl.col("field_index") // geometry.fields_per_shard
    fields = read_fields(paths, plate)
    later = read_annotations(paths, plate)
    if later:
        fields = annotated(fields, later)
        write_fields(paths, plate, fields)
    return fields.filter(~shard_of.is_in(absent)), len(absent)


def _table(fields: pl.DataFrame, plate_no: int, geometry: Geometry) -> NDArray[np.void]:
    usable = fields.filter(pl.col("status") == "ok")
    table = np.zeros(usable.height, TABLE_DTYPE)
    table["plate"] = plate_no
    table["field"] = usable["field_index"].to_numpy()
    table["height"], table["width"] = geometry.height, geometry.width
    table["crc32c"] = usable["crc32c"].to_numpy()
    return table


def _scale(store: Store, plates: list[str], table: NDArray[np.void]) -> NDArray[np.float32]:
    """f32 (C,): 255 for uint8; for uint16 the percentile over a keyed sample of whole fields, by exact histogram."""
    channels = len(store.spec.channels)
    if store.spec.dtype == "uint8":
        return np.full(channels, 255, np.float32)
    order = np.argsort(philox(SCALE_SEED, SCALE_PURPOSE, np.arange(len(table)))[:, 0], kind="stable")
    sample = np.sort(order[:SCALE_FIELDS])
    provisional = Snapshot(
        store=store,
        digest="",
        table=table,
        plates=tuple(plates),
        channels=store.spec.channels,
        dtype=store.spec.dtype,
        scale=np.ones(channels, np.float32),
    )
    counts = np.zeros((channels, 2**16), np.int64)
    with ShardReader(store, provisional) as reader:
        for field_no in sample:
            row = table[field_no]
            pixels = np.empty((channels, int(row["height"]), int(row["width"])), np.uint16)
            reader.read(int(field_no), 0, 0, pixels)
            for channel in range(channels):
                counts[channel] += np.bincount(pixels[channel].ravel(), minlength=2**16)
    cumulative = np.cumsum(counts, axis=1)
    wanted = np.ceil(cumulative[:, -1] * (SCALE_PERCENTILE / 100))
    levels = (cumulative < wanted[:, None]).sum(axis=1)
    scale: NDArray[np.float32] = np.maximum(levels, 1).astype(np.float32)
    return scale
