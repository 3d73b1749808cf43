"""A copy of a store: the same fields in another codec, chunk edge or shard size.  The unit of work is a shard of the copy.

    source shard 0 | 1 | 2 | 3        each field is read whole, checked against its crc32c, and appended:
              \\    |   |    /         a damaged one is never copied as good
    copy shard   0     |    1         a shard is made when all of its fields are in the source

What holds when killed: what convert promises.  A shard of an earlier copy stays until the new one is whole; the record goes
right before the new shard takes its place, and a new one is committed after it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.plates.types import OK
from phenomhpc.runs import (
    CompletionRecord,
    Unit,
    committing,
    digest_of,
    now,
    read_record,
    remove_temporaries,
    write_record,
)
from phenomhpc.store.convert import Work
from phenomhpc.store.fields import PIXEL_COLUMNS, read_fields
from phenomhpc.store.layout import StorePaths, unit_id
from phenomhpc.store.shards import Geometry, read_geometry
from phenomhpc.store.shardwriter import ShardWriter
from phenomhpc.store.spec import DatasetSpec, Store, fields_per_shard, refuse_difference
from phenomhpc.store.verify import check_shard
from phenomhpc.store.wholefields import DamagedField, Stat, WholeFields

KIND = "rechunk"
# One core reads, decodes, checks and encodes about this much (raw bytes per second); for packing only.
ASSUMED_BYTES_PER_S = 250e6


def copy_spec(
    source: Store,
    codec: tuple[str, int, str] | None,
    chunk_px: int | None,
    shard_mb: int | None,
    there: DatasetSpec | None = None,
) -> DatasetSpec:
    """What the copy holds; None: as in the source.  there: what the target is already.

    Fields per shard follow the size of the first plate, as in a conversion; a target goes on with the number it has, if that
    is the number of any plate.  Raises UsageError naming what differs.
    """
    spec = source.spec
    counts = [spec.fields_per_shard]
    if shard_mb is not None:
        geometries = [read_geometry(source.paths, plate) for plate in copied_plates(source.paths)]
        counts = [
            fields_per_shard(shard_mb, each.num_channels, each.height, each.width, spec.itemsize) for each in geometries
        ]
    count = there.fields_per_shard if there is not None and there.fields_per_shard in counts else counts[0]
    return DatasetSpec(
        channels=spec.channels,
        dtype=spec.dtype,
        chunk_px=chunk_px or spec.chunk_px,
        fields_per_shard=count,
        codec=codec,
    )


def refuse_other_spec(target: StorePaths, have: DatasetSpec, want: DatasetSpec) -> None:
    """Raise UsageError when a target is a copy in other settings."""
    refuse_difference(target.root, have, want, "this copy")
    for name in ("dtype", "fields_per_shard"):
        if getattr(have, name) != getattr(want, name):
            raise UsageError(
                f"store {target.root}: has {name}={getattr(have, name)}, this copy would be {getattr(want, name)}; "
                "use another --to, or the settings it was made with"
            )


def copied_plates(paths: StorePaths) -> list[str]:
    """Plates of a source that have an array; a conversion that was killed at the start of one has left only its group."""
    return [plate for plate in paths.converted_plates() if (paths.images(plate) / "zarr.json").is_file()]


def attributes_of(paths: StorePaths, plate: str) -> dict[str, Any]:
    """What is written beside a plate's pixels (light, look-up table, ...), without its channels."""
    attributes: dict[str, Any] = json.loads((paths.images(plate) / "zarr.json").read_bytes())["attributes"]
    return {name: value for name, value in attributes.items() if name != "channels"}


class SourceRows:
    """Rows of the fields table that belong to a plate's pixels: from its completion records, in a store without them from its
    fields table."""

    def __init__(self, paths: StorePaths, plate: str, geometry: Geometry) -> None:
        self._paths, self._plate, self._geometry = paths, plate, geometry
        self._shard = -1
        self._rows: Sequence[dict[str, Any]] = ()
        self._table = None if paths.records(plate).is_dir() else read_fields(paths, plate)

    def of(self, fields: range) -> list[dict[str, Any]]:
        """One row per field, in order.  Raises WorkError where one is not there."""
        if self._table is not None:
            names = [name for name in self._table.columns if name in PIXEL_COLUMNS and name != "plate"]
            index = self._table["field_index"]
            rows = self._table.filter((index >= fields.start) & (index < fields.stop)).select(names).to_dicts()
        else:
            size = self._geometry.fields_per_shard
            shards = range(fields.start // size, -(-fields.stop // size))
            rows = [row for shard in shards for row in self._of_shard(shard) if row["field_index"] in fields]
        if [row["field_index"] for row in rows] != list(fields):
            raise WorkError(
                f"store {self._paths.root}: plate {self._plate}: its shards have changed meanwhile; run again"
            )
        return rows

    def _of_shard(self, shard: int) -> Sequence[dict[str, Any]]:
        if shard != self._shard:
            record = read_record(self._paths.record(self._plate, shard))
            self._shard, self._rows = shard, () if record is None else record.rows
        return self._rows


@dataclass(frozen=True, kw_only=True)
class PlateCopy:
    """One plate of a copy.  spec: the copy's; have, want: how the plate is cut in the source and in the copy."""

    source: Store
    paths: StorePaths
    spec: DatasetSpec
    plate: str
    have: Geometry
    want: Geometry

    @classmethod
    def of(cls, source: Store, paths: StorePaths, spec: DatasetSpec, plate: str) -> PlateCopy:
        have = read_geometry(source.paths, plate)
        want = Geometry(
            num_fields=have.num_fields,
            num_channels=have.num_channels,
            height=have.height,
            width=have.width,
            chunk_px=spec.chunk_px,
            fields_per_shard=min(spec.fields_per_shard, max(1, have.num_fields)),
        )
        return cls(source=source, paths=paths, spec=spec, plate=plate, have=have, want=want)

    def sources(self, shard: int) -> range:
        """The source's shards that the fields of a shard of the copy lie in."""
        fields, size = self.want.fields_of(shard), self.have.fields_per_shard
        return range(fields.start // size, -(-fields.stop // size))

    def ready(self) -> list[int]:
        """Shards of the copy whose fields are all in the source."""
        there = set(self.source.paths.converted_shards(self.plate))
        return [shard for shard in range(self.want.num_shards) if there.issuperset(self.sources(shard))]

    def is_done(self, shard: int) -> bool:
        """Has it been copied with these settings, from the files that the source has now?"""
        record = read_record(self.paths.record(self.plate, shard))
        return (
            record is not None
            and record.pending == self._stats(shard)
            and record.digest == self.digest(shard, record.rows)
            and self.paths.shard(self.plate, shard).is_file()
        )

    def _stats(self, shard: int) -> tuple[Stat, ...]:
        found = []
        for number in self.sources(shard):
            path = self.source.paths.shard(self.plate, number)
            try:
                status = path.stat()
            except FileNotFoundError:
                return ()
            found.append((str(path.relative_to(self.source.paths.root)), status.st_size, status.st_mtime_ns))
        return tuple(found)

    def digest(self, shard: int, rows: Sequence[Mapping[str, Any]]) -> str:
        """Of what decides a shard's bytes: how it is cut and packed, and its pixels through their checksums."""
        fields = self.want.fields_of(shard)
        settings = {"spec": asdict(self.spec), "geometry": asdict(self.want), "fields": [fields.start, fields.stop]}
        return digest_of(KIND, settings, [[row["field_index"], row["crc32c"]] for row in rows])

    def unit(self, shard: int) -> Unit:
        """The unit of work that is one shard."""
        fields = self.want.fields_of(shard)
        return Unit(
            unit_id=unit_id(self.plate, shard),
            kind=KIND,
            plate=self.plate,
            first=fields.start,
            count=len(fields),
            cost_s=field_bytes(self.want, self.spec) * len(fields) / ASSUMED_BYTES_PER_S,
        )


def field_bytes(geometry: Geometry, spec: DatasetSpec) -> int:
    """Raw bytes of one field."""
    return geometry.num_channels * geometry.height * geometry.width * spec.itemsize


def copy_shard(copy: PlateCopy, shard: int, work: Work, advance: Callable[[int], None]) -> CompletionRecord:
    """Write one shard of a copy and its record; `advance(raw bytes)` is called after each field.

    Memory: one field and a row of chunks.  Raises DamagedField when the source is not what was recorded, OSError when the copy
    cannot be written; what was there before then stays.
    """
    paths, plate = copy.paths, copy.plate
    started = now()
    work.check_fence()
    if not paths.dataset.is_file():  # an empty folder where a file system was mounted would take the rest
        raise WorkError(
            f"store {paths.root}: its dataset.json is gone; is the file system still mounted? run again when it is"
        )
    rows = SourceRows(copy.source.paths, plate, copy.have).of(copy.want.fields_of(shard))
    shard_path, record_path = paths.shard(plate, shard), paths.record(plate, shard)
    remove_temporaries(shard_path.parent, shard_path.name)
    with committing(shard_path, token=work.token) as file:
        writer = ShardWriter(file, copy.spec, copy.want)
        stats = _write_fields(copy, rows, writer, advance)
        work.check_fence()
        record_path.unlink(missing_ok=True)
    if work.verify:
        _refuse_other_bytes(copy, shard, rows)
    record = CompletionRecord(
        unit_id=unit_id(plate, shard),
        digest=copy.digest(shard, rows),
        attempt=work.attempt,
        task=work.task,
        token=work.token,
        started=started,
        ended=now(),
        outputs=((str(shard_path.relative_to(paths.root)), writer.size, writer.crc),),
        set_aside=tuple(
            (f"{plate} {row['well']} site {row['site']}", row["reason"]) for row in rows if row["status"] != OK
        ),
        rows=tuple(rows),
        pending=stats,
    )
    write_record(record_path, record)
    return record


def _write_fields(
    copy: PlateCopy, rows: Sequence[Mapping[str, Any]], writer: ShardWriter, advance: Callable[[int], None]
) -> tuple[Stat, ...]:
    """Append the fields of these rows and the index; the stats of the shards they came from."""
    stats: dict[Stat, None] = {}
    size = field_bytes(copy.want, copy.spec)
    with WholeFields(copy.source, copy.plate, copy.have) as fields:
        for row in rows:
            number = int(row["field_index"])
            try:
                stats[fields.open(number // copy.have.fields_per_shard)] = None
                writer.append(fields.read(number, int(row["crc32c"])) if row["status"] == OK else None)
            except DamagedField as error:
                named = f"{error.where} ({row['well']} site {row['site']})" if "field" in error.where else error.where
                raise DamagedField(copy.source, named, error.reason) from error
            advance(size)
    writer.finish()
    return tuple(stats)


def _refuse_other_bytes(copy: PlateCopy, shard: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """Read a shard back as the disk has it: the page cache is asked to forget it first."""
    path = copy.paths.shard(copy.plate, shard)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    damage = check_shard(Store(paths=copy.paths, spec=copy.spec), copy.plate, copy.want, shard, rows)
    if damage:
        path.unlink(missing_ok=True)
        raise WorkError(f"{path}: what was written is not what is read back ({damage[0].reason}); check the disk")
