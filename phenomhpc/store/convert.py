"""One unit of conversion: the fields of one shard, from raw planes to a committed shard and its record.

Begin = remove the record, then what an earlier try left of the shard.  What holds when killed
  before the shard's rename   no shard, no record: the unit is pending
  between shard and record    a whole shard that nobody believes in: the unit is done again, with the same bytes
  after the record            done, until a source or a setting changes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from google_crc32c import extend
from google_crc32c import value as crc32c

from phenomhpc.plates import Field, Plate, UnreadableImage, read_plane
from phenomhpc.runs import (
    CompletionRecord,
    Unit,
    commit,
    committing,
    digest_of,
    make_folder,
    now,
    read_record,
    remove_temporaries,
    write_record,
)
from phenomhpc.store.layout import StorePaths, unit_id
from phenomhpc.store.shards import Geometry, Pixels, ShardWriter
from phenomhpc.store.spec import DatasetSpec, Store

KIND = "convert"
OK, MISSING_PLANE, UNREADABLE, BAD_SHAPE, DUPLICATE = "ok", "missing_plane", "unreadable", "bad_shape", "duplicate"
# One core reads, decodes and encodes about this much (raw bytes per second); for packing only.
ASSUMED_BYTES_PER_S = 60e6


@dataclass(frozen=True, kw_only=True)
class Source:
    """One raw plane as it was read: what the digest binds to."""

    channel: str
    path: str
    sha256: str
    bytes: int


def unit_settings(spec: DatasetSpec, geometry: Geometry, fields: range) -> dict[str, Any]:
    """What else than the sources decides the shard's bytes."""
    return {"spec": asdict(spec), "geometry": asdict(geometry), "fields": [fields.start, fields.stop]}


def plan_units(paths: StorePaths, plate: Plate, spec: DatasetSpec, geometry: Geometry) -> tuple[list[Unit], int]:
    """The units of a plate that are still to be done, and how many are done: one unit per shard.

    A unit is done when its record's digest fits the settings and the planes have the sizes and times they had.
    """
    field_bytes = geometry.num_channels * geometry.height * geometry.width * spec.itemsize
    pending: list[Unit] = []
    for shard in range(geometry.num_shards):
        fields = geometry.fields_of(shard)
        settings = unit_settings(spec, geometry, fields)
        record = read_record(paths.record(plate.key, shard))
        if record and _still_holds(record, settings, plate.fields[fields.start : fields.stop], paths, shard):
            continue
        cost = field_bytes * len(fields) / ASSUMED_BYTES_PER_S
        unit = Unit(
            unit_id=unit_id(plate.key, shard),
            kind=KIND,
            plate=plate.key,
            first=fields.start,
            count=len(fields),
            cost_s=cost,
        )
        pending.append(unit)
    return pending, geometry.num_shards - len(pending)


def _still_holds(
    record: CompletionRecord, settings: Mapping[str, Any], fields: Sequence[Field], paths: StorePaths, shard: int
) -> bool:
    if record.pending != tuple(_stat(path) for field in fields for path in field.planes):
        return False
    sources = [source for row in record.rows for source in row["sources"]]
    plate = record.unit_id.rsplit("/", 1)[0]
    same = record.digest == digest_of(KIND, settings, sources)
    return same and paths.shard(plate, shard).is_file()


def _stat(path: Path | None) -> tuple[str, int, int]:
    """[path, bytes, mtime_ns] of a declared plane; sizes of -1 where it is not there."""
    if path is None:
        return ("", -1, -1)
    try:
        status = path.stat()
    except OSError:
        return (str(path), -1, -1)
    return (str(path), status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Who converts, and the fence to pass before anything is committed."""

    attempt: int
    task: int
    token: str
    check_fence: Callable[[], None]


def convert_unit(
    store: Store, plate: Plate, geometry: Geometry, unit: Unit, work: Work, advance: Callable[[int], None]
) -> CompletionRecord:
    """Write one shard and its record; `advance(bytes read)` is called after each field.

    Planes that are missing, unreadable or of another size or dtype set their field aside: its slot holds zeros.
    Memory: three fields at the most.  Raises OSError when the store cannot be written (nothing half-written stays).
    """
    paths, shard = store.paths, unit.first // geometry.fields_per_shard
    record_path, shard_path = paths.record(plate.key, shard), paths.shard(plate.key, shard)
    started = now()
    fields = plate.fields[unit.first : unit.first + unit.count]
    work.check_fence()
    make_folder(shard_path.parent)
    record_path.unlink(missing_ok=True)
    shard_path.unlink(missing_ok=True)
    remove_temporaries(shard_path.parent, shard_path.name)
    pending = tuple(_stat(path) for field in fields for path in field.planes)
    rows: list[dict[str, Any]] = []
    with committing(shard_path, token=work.token) as file:
        counted = _Counted(file)
        writer = ShardWriter(cast(BinaryIO, counted), store.spec, geometry)
        for field in fields:
            pixels, row, num_bytes = _read_field(field, plate, store.spec, geometry)
            writer.append(pixels)
            rows.append(row)
            advance(num_bytes)
        writer.finish()
        work.check_fence()
    sources = [source for row in rows for source in row["sources"]]
    record = CompletionRecord(
        unit_id=unit.unit_id,
        digest=digest_of(KIND, unit_settings(store.spec, geometry, geometry.fields_of(shard)), sources),
        attempt=work.attempt,
        task=work.task,
        token=work.token,
        started=started,
        ended=now(),
        outputs=((str(shard_path.relative_to(paths.root)), counted.size, counted.crc),),
        set_aside=tuple((_name(plate, row), row["reason"]) for row in rows if row["status"] != OK),
        rows=tuple(rows),
        pending=pending,
    )
    write_record(record_path, record)
    return record


def _name(plate: Plate, row: Mapping[str, Any]) -> str:
    return f"{plate.key} {row['well']} site {row['site']}"


class _Counted:
    """A file that counts and checksums what is written through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size, self.crc = 0, 0

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)
        self.crc = extend(self.crc, data)


def _read_field(
    field: Field, plate: Plate, spec: DatasetSpec, geometry: Geometry
) -> tuple[Pixels | None, dict[str, Any], int]:
    """A field's pixels (C, H, W), or None when set aside; its row; and the bytes read."""
    pixels = np.empty((geometry.num_channels, geometry.height, geometry.width), np.dtype(spec.dtype).newbyteorder("<"))
    sources: list[dict[str, Any]] = []
    problems: list[tuple[str, str]] = []
    for position, source, plane, problem in _read_planes(field, plate):
        if source is not None:
            sources.append(asdict(source))
        if problem is None and plane is not None:
            problem = _misfit(plane, spec, geometry)
            if problem is None:
                pixels[position] = plane
        if problem is not None:
            problems.append((problem[0], f"{plate.channels[position].name}: {problem[1]}"))
    status, reason = problems[0] if problems else (OK, None)
    row = {
        "field_index": field.index,
        "well": field.well.name,
        "row": field.well.row,
        "column": field.well.column,
        "site": field.site,
        "timepoint": field.timepoint,
        "z": field.z,
        "status": status,
        "reason": reason,
        "position_x_um": field.position_x_um,
        "position_y_um": field.position_y_um,
        "pixel_size_um": field.pixel_size_um,
        "sources": sources,
        "crc32c": None if problems else crc32c(pixels.tobytes()),
    }
    return (None if problems else pixels), row, sum(source["bytes"] for source in sources)


Problem = tuple[str, str]


def _read_planes(field: Field, plate: Plate) -> Iterator[tuple[int, Source | None, Pixels | None, Problem | None]]:
    """Each declared plane, read once: hashed and decoded from the same bytes."""
    for position, path in enumerate(field.planes):
        if path is None:
            yield position, None, None, (MISSING_PLANE, "no plane")
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            yield position, None, None, (MISSING_PLANE, f"{path.name} does not exist")
            continue
        except OSError as error:
            yield position, None, None, (UNREADABLE, f"{path.name}: {error.strerror}")
            continue
        name = str(path.relative_to(plate.root)) if path.is_relative_to(plate.root) else str(path)
        channel = plate.channels[position].name
        source = Source(channel=channel, path=name, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        try:
            yield position, source, read_plane(data, path.name), None
        except UnreadableImage as error:
            yield position, source, None, (UNREADABLE, f"{path.name}: {error}")


def _misfit(plane: Pixels, spec: DatasetSpec, geometry: Geometry) -> Problem | None:
    if plane.shape != (geometry.height, geometry.width):
        have, want = "x".join(map(str, plane.shape)), f"{geometry.height}x{geometry.width}"
        return BAD_SHAPE, f"{have} pixels, the plate has {want}"
    if plane.dtype != np.dtype(spec.dtype):
        return BAD_SHAPE, f"{plane.dtype}, the store has {spec.dtype}"
    return None


def write_facts(paths: StorePaths, plate: Plate) -> None:
    """Commit what the raw plate says beside its pixels, unless it is there already."""
    facts = {
        "key": plate.key,
        "experiment": plate.experiment,
        "plate": plate.plate,
        "rows": plate.rows,
        "columns": plate.columns,
        "layout": plate.layout,
        "root": str(plate.root),
        "metadata": {well: dict(values) for well, values in plate.metadata.items()},
    }
    text, path = json.dumps(facts, sort_keys=True) + "\n", paths.facts(plate.key)
    if not path.is_file() or path.read_text() != text:
        commit(path, text)
