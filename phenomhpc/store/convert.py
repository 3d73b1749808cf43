"""One unit of conversion: the fields of one shard, from raw planes to a committed shard and its record.

Begin = remove the record, then what an earlier try left of the shard.  What holds when killed
  before the shard's rename   no shard, no record: the unit is pending
  between shard and record    a whole shard that nobody believes in: the unit is done again, with the same bytes
  after the record            done, until a source or a setting changes
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from phenomhpc.errors import WorkError
from phenomhpc.plates import Field, Plane, Plate, plane_stat
from phenomhpc.plates.types import OK
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
from phenomhpc.store.fieldpixels import FieldReader, Treatment
from phenomhpc.store.layout import StorePaths, unit_id
from phenomhpc.store.shards import Geometry
from phenomhpc.store.shardwriter import ShardWriter
from phenomhpc.store.spec import DatasetSpec, Store
from phenomhpc.store.verify import check_shard

KIND = "convert"
# One core reads, decodes and encodes about this much (raw bytes per second); for packing only.
ASSUMED_BYTES_PER_S = 60e6


def unit_settings(
    plate: Plate, spec: DatasetSpec, geometry: Geometry, fields: range, treatment: Treatment
) -> dict[str, Any]:
    """What else than the sources decides the shard's bytes."""
    settings = {"spec": asdict(spec), "geometry": asdict(geometry), "fields": [fields.start, fields.stop]}
    declared = [
        [field.well.name, field.site, field.timepoint, field.z, field.problem, field.position_x_um, field.position_y_um,
         field.pixel_size_um] for field in plate.fields[fields.start : fields.stop]
    ]  # fmt: skip
    return {**settings, **treatment.settings(), "declared": declared, "projection": plate.projection}


def pending_shards(
    paths: StorePaths, plate: Plate, spec: DatasetSpec, geometry: Geometry, treatment: Treatment
) -> list[int]:
    """The shards of a plate that are still to be written.

    One is done when its record's digest fits the settings and the planes have the sizes and times they had.
    """

    def holds(shard: int) -> bool:
        fields = geometry.fields_of(shard)
        record = read_record(paths.record(plate.key, shard))
        settings = unit_settings(plate, spec, geometry, fields, treatment)
        return record is not None and _still_holds(
            record, settings, plate.fields[fields.start : fields.stop], paths, shard
        )

    return [shard for shard in range(geometry.num_shards) if not holds(shard)]


def shard_unit(plate: str, spec: DatasetSpec, geometry: Geometry, shard: int) -> Unit:
    """The unit of work that is one shard."""
    fields = geometry.fields_of(shard)
    field_bytes = geometry.num_channels * geometry.height * geometry.width * spec.itemsize
    return Unit(
        unit_id=unit_id(plate, shard),
        kind=KIND,
        plate=plate,
        first=fields.start,
        count=len(fields),
        cost_s=field_bytes * len(fields) / ASSUMED_BYTES_PER_S,
    )


def _still_holds(
    record: CompletionRecord, settings: Mapping[str, Any], fields: Sequence[Field], paths: StorePaths, shard: int
) -> bool:
    if record.pending != _stats(fields):
        return False
    sources = [source for row in record.rows for source in row["sources"]]
    plate = record.unit_id.rsplit("/", 1)[0]
    same = record.digest == digest_of(KIND, settings, sources)
    return same and paths.shard(plate, shard).is_file()


def _stats(fields: Iterable[Field]) -> tuple[tuple[str, int, int], ...]:
    return tuple(_stat(plane) for field in fields for stack in field.planes for plane in stack)


def _stat(plane: Plane | None) -> tuple[str, int, int]:
    """[path, bytes, mtime_ns] of a declared plane; sizes of -1 where it is not there."""
    if plane is None:
        return ("", -1, -1)
    try:
        return (str(plane.path), *plane_stat(plane))
    except OSError:
        return (str(plane.path), -1, -1)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Who converts, and the fence to pass before anything is committed.  verify: read back what was written."""

    attempt: int
    task: int
    token: str
    check_fence: Callable[[], None]
    verify: bool = False


def convert_unit(
    store: Store,
    plate: Plate,
    geometry: Geometry,
    unit: Unit,
    work: Work,
    treatment: Treatment,
    advance: Callable[[int], None],
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
    if not paths.dataset.is_file():  # an empty folder where a file system was mounted would take the rest
        raise WorkError(
            f"store {paths.root}: its dataset.json is gone; is the file system still mounted? run again when it is"
        )
    make_folder(shard_path.parent)
    record_path.unlink(missing_ok=True)
    shard_path.unlink(missing_ok=True)
    remove_temporaries(shard_path.parent, shard_path.name)
    pending = _stats(fields)
    rows: list[dict[str, Any]] = []
    written = _write_shard(store, plate, geometry, unit, work, treatment, rows, advance)
    if work.verify and _damage(store, plate, geometry, unit, rows):
        rows.clear()
        written = _write_shard(store, plate, geometry, unit, work, treatment, rows, lambda num_bytes: None)
        if damage := _damage(store, plate, geometry, unit, rows):
            shard_path.unlink(missing_ok=True)
            raise WorkError(f"{shard_path}: what was written twice is not what is read back ({damage}); check the disk")
    sources = [source for row in rows for source in row["sources"]]
    record = CompletionRecord(
        unit_id=unit.unit_id,
        digest=digest_of(
            KIND, unit_settings(plate, store.spec, geometry, geometry.fields_of(shard), treatment), sources
        ),
        attempt=work.attempt,
        task=work.task,
        token=work.token,
        started=started,
        ended=now(),
        outputs=((str(shard_path.relative_to(paths.root)), written.size, written.crc),),
        set_aside=tuple((_name(plate, row), row["reason"]) for row in rows if row["status"] != OK),
        rows=tuple(rows),
        pending=pending,
    )
    write_record(record_path, record)
    return record


def _write_shard(
    store: Store,
    plate: Plate,
    geometry: Geometry,
    unit: Unit,
    work: Work,
    treatment: Treatment,
    rows: list[dict[str, Any]],
    advance: Callable[[int], None],
) -> ShardWriter:
    """Commit the shard and append its fields' rows; its writer, which knows what was written."""
    shard_path = store.paths.shard(plate.key, unit.first // geometry.fields_per_shard)
    with committing(shard_path, token=work.token) as file:
        writer = ShardWriter(file, store.spec, geometry)
        with contextlib.closing(FieldReader(plate, store.spec, geometry, treatment)) as reader:
            for field in plate.fields[unit.first : unit.first + unit.count]:
                found = reader.read(field)
                writer.append(found.pixels)
                rows.append(dict(found.row))
                advance(found.num_bytes)
        writer.finish()
        work.check_fence()
    return writer


def _damage(store: Store, plate: Plate, geometry: Geometry, unit: Unit, rows: Sequence[dict[str, Any]]) -> str:
    """What is wrong with the shard as the disk has it: the page cache is asked to forget it first."""
    shard = unit.first // geometry.fields_per_shard
    with store.paths.shard(plate.key, shard).open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return "; ".join(
        f"{entry.thing}: {entry.reason}" for entry in check_shard(store, plate.key, geometry, shard, rows)[:1]
    )


def _name(plate: Plate, row: Mapping[str, Any]) -> str:
    return f"{plate.key} {row['well']} site {row['site']}"


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
        "projection": plate.projection,
        "illumination": plate.illumination,
        "strays": plate.strays,
        "metadata": {well: dict(values) for well, values in plate.metadata.items()},
    }
    text, path = json.dumps(facts, sort_keys=True) + "\n", paths.facts(plate.key)
    if not path.is_file() or path.read_text() != text:
        commit(path, text)
