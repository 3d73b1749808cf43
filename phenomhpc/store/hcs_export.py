"""From a snapshot to OME-Zarr plates: a unit is a well, with a completion record beside the plates.

Begin of a plate = remove its zarr.json, which is committed last: without it a folder is no plate.  Begin of a well = remove
its record, then its folder.  What holds when killed
  while a well is written    no record: the well is written again
  after its record           done, until a field of it, its metadata or a setting changes
  before the plate's end     no plate yet; a second run writes what is missing and ends it
"""

from __future__ import annotations

import difflib
import io
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.plates.types import Well, plate_format
from phenomhpc.runs import (
    CompletionRecord,
    commit,
    digest_of,
    make_folder,
    now,
    read_record,
    remove_temporaries,
    write_record,
)
from phenomhpc.store.hcs import (
    CHUNK_PX,
    HcsPaths,
    Json,
    Row,
    SiteImage,
    group,
    image_group,
    left_out_table,
    level_array,
    level_geometry,
    plate_group,
    row_name,
    shard_name,
    site_images,
    table_groups,
    well_group,
    well_path,
    wells_table,
)
from phenomhpc.store.pyramid import MAX_LEVELS, num_levels, pyramid
from phenomhpc.store.reader import ShardReader
from phenomhpc.store.shards import Geometry, read_geometry
from phenomhpc.store.shardwriter import ShardWriter
from phenomhpc.store.snapshot import Snapshot

KIND = "export-hcs"
SAMPLED_FIELDS, STRIDE = 16, 4
WINDOW_PERCENTILES = (1.0, 99.8)
# What a fields table has that decides what is written of a field.
_BINDING = (
    "field_index", "crc32c", "site", "timepoint", "z", "status", "position_x_um", "position_y_um", "pixel_size_um",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PlateExport:
    """What is to be written of one plate.

    size: rows and columns of the plate.  windows: start and end for display, by channel; () until find_windows() found
    them.  wells: rows of the fields table
    (set-aside ones too) of each well that has a usable field.  left_out: rows of all set-aside fields.
    """

    plate: str
    size: tuple[int, int]
    geometry: Geometry
    levels: int
    windows: tuple[tuple[int, int], ...]
    wells: Mapping[Well, tuple[Row, ...]]
    left_out: tuple[Row, ...]
    own: Json

    @property
    def split_sites(self) -> list[tuple[Well, int]]:
        """Sites whose timepoints and z planes are no full grid, so that each is an image of its own."""
        return [
            (well, site)
            for well, rows in self.wells.items()
            for site in sorted({image.site for image in site_images(rows) if not image.path.isdigit()})
        ]


def refuse_plates(snapshot: Snapshot, out: HcsPaths, plates: Sequence[str], levels: int | None) -> None:
    """Raise UsageError, before anything is written, for what cannot be exported in this way."""
    if levels is not None and not 1 <= levels <= MAX_LEVELS:
        raise UsageError(f"--levels {levels}: 1 to {MAX_LEVELS}")
    if out.root.exists() and not out.root.is_dir():
        raise UsageError(f"--to {out.root}: is a file; choose a folder")
    if (out.root / snapshot.store.paths.dataset.name).exists():
        raise UsageError(f"--to {out.root}: is a store; choose another folder")
    for plate in plates:
        if plate not in snapshot.plates:
            near = difflib.get_close_matches(plate, snapshot.plates, 3, 0.4) or snapshot.plates[:3]
            raise UsageError(f"--plate {plate}: the store has no such plate; it has {', '.join(near)}")
        if out.plate(plate).exists() and not out.records(plate).is_dir():
            raise UsageError(f"--to {out.root}: {plate}.zarr is there and is no export of it; choose another folder")


def plan_plate(snapshot: Snapshot, out: HcsPaths, plate: str, levels: int | None) -> PlateExport:
    """Look at a plate of a snapshot; reads no pixel.  levels: None for as many as bring it down to one chunk."""
    import polars as pl

    paths = snapshot.store.paths
    rows = snapshot.fields().filter(pl.col("plate") == plate).drop("sources").to_dicts()
    with_image = {row["well"] for row in rows if row["field_no"] is not None}
    wells: dict[Well, list[Row]] = {}
    for row in rows:
        if row["well"] in with_image:
            wells.setdefault(Well.parse(row["well"]), []).append(row)
    facts = paths.facts(plate)
    said = json.loads(facts.read_bytes()) if facts.is_file() else {}
    size = (said["rows"], said["columns"]) if said else plate_format([Well.parse(row["well"]) for row in rows])
    attributes = json.loads((paths.images(plate) / "zarr.json").read_bytes())["attributes"]
    geometry = read_geometry(paths, plate)
    return PlateExport(
        plate=plate,
        size=size,
        geometry=geometry,
        levels=levels or num_levels(geometry.height, geometry.width, CHUNK_PX),
        windows=_known_windows(out.windows(plate), len(snapshot.channels)),
        wells={well: tuple(members) for well, members in wells.items()},
        left_out=tuple(row for row in rows if row["field_no"] is None),
        # How grey levels came about: the look-up table of 8-bit stores, what is known of uneven light.
        own={name: value for name, value in attributes.items() if name != "channels"},
    )


def _known_windows(path: Path, num_channels: int) -> tuple[tuple[int, int], ...]:
    try:
        known = tuple((int(start), int(end)) for start, end in json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return ()
    return known if len(known) == num_channels else ()


def find_windows(snapshot: Snapshot, reader: ShardReader, out: HcsPaths, export: PlateExport) -> PlateExport:
    """With display windows: percentiles of every fourth pixel of every fourth row of up to 16 fields, spread over the plate.

    Found once they stay, so that an export that grows keeps its looks and what was written of it.
    """
    if export.windows:
        return export
    usable = [row["field_no"] for rows in export.wells.values() for row in rows if row["field_no"] is not None]
    counts = np.zeros((len(snapshot.channels), 2**16), np.int64)
    for at in np.unique(np.linspace(0, len(usable) - 1, SAMPLED_FIELDS).astype(int)):
        for channel, plane in enumerate(read_field(snapshot, reader, usable[at])):
            counts[channel] += np.bincount(plane[::STRIDE, ::STRIDE].ravel(), minlength=2**16)
    share = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    start, end = ((share < percentile / 100).sum(axis=1) for percentile in WINDOW_PERCENTILES)
    windows = tuple((int(low), int(max(high, low + 1))) for low, high in zip(start, end, strict=True))
    commit(out.windows(export.plate), json.dumps(windows) + "\n")
    return replace(export, windows=windows)


def read_field(snapshot: Snapshot, reader: ShardReader, field_no: int) -> NDArray[Any]:
    """A whole field (C, H, W).  Raises WorkError where it is not what its checksum says: damage is not passed on."""
    row = snapshot.table[field_no]
    pixels = np.empty((len(snapshot.channels), int(row["height"]), int(row["width"])), snapshot.dtype)
    reader.read(field_no, 0, 0, pixels)
    if crc32c(pixels) != int(row["crc32c"]):
        plate = snapshot.plates[int(row["plate"])]
        raise WorkError(
            f"store {snapshot.store.paths.root}: plate {plate}, field {int(row['field'])}: the pixels do not match their "
            "checksum; see store verify"
        )
    return pixels


# -- one well ---------------------------------------------------------------------------------------------------------


def _digest(snapshot: Snapshot, export: PlateExport, well: Well) -> str:
    settings = {
        "spec": asdict(snapshot.store.spec), "levels": export.levels, "chunk_px": CHUNK_PX, "windows": export.windows,
        "plate": export.plate, "well": well.name,
    }  # fmt: skip
    return digest_of(KIND, settings, [[row[name] for name in _BINDING] for row in export.wells[well]])


def pending_wells(snapshot: Snapshot, out: HcsPaths, export: PlateExport) -> list[Well]:
    """Wells that are still to be written: without a record that fits, or with a file that is not as large as it was."""

    def holds(well: Well) -> bool:
        record = read_record(out.record(export.plate, well))
        if record is None or record.digest != _digest(snapshot, export, well):
            return False
        return all(_size(out.root / path) == num_bytes for path, num_bytes, _ in record.outputs)

    return [well for well in export.wells if not holds(well)]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def export_well(
    snapshot: Snapshot,
    reader: ShardReader,
    out: HcsPaths,
    export: PlateExport,
    well: Well,
    token: str,
    advance: Callable[[int], None],
) -> None:
    """Write one well and its record; `advance(raw bytes)` is called after each field.

    Memory: a field, its pyramid, and one encoded level.  Raises WorkError for a damaged field.
    """
    started, spec = now(), snapshot.store.spec
    record, folder = out.record(export.plate, well), out.well(export.plate, well)
    record.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    outputs: list[tuple[str, int, int]] = []

    def write(path: Path, data: bytes | str | Json) -> None:
        content = _bytes(data)
        commit(path, content, token=token)
        outputs.append((str(path.relative_to(out.root)), len(content), crc32c(content)))

    images = site_images(export.wells[well])
    for image in images:
        _write_image(snapshot, reader, export, image, folder / image.path, write, advance)
        name = f"{export.plate} {well.name} site {image.site}"
        write(folder / image.path / "zarr.json", image_group(name, image, spec, export.levels, export.windows))
    write(folder / "zarr.json", well_group(images))
    write_record(
        record,
        CompletionRecord(
            unit_id=f"{export.plate}/{well.name}",
            digest=_digest(snapshot, export, well),
            attempt=1,
            task=0,
            token=token,
            started=started,
            ended=now(),
            outputs=tuple(outputs),
        ),
    )


def _bytes(data: bytes | str | Json) -> bytes:
    if isinstance(data, bytes):
        return data
    return (data if isinstance(data, str) else json.dumps(data, indent=2) + "\n").encode()


def _write_image(
    snapshot: Snapshot,
    reader: ShardReader,
    export: PlateExport,
    image: SiteImage,
    folder: Path,
    write: Callable[[Path, bytes | str | Json], None],
    advance: Callable[[int], None],
) -> None:
    spec = snapshot.store.spec
    cuts = [level_geometry(export.geometry, level) for level in range(export.levels)]
    for number, row in enumerate(image.fields):
        pixels = read_field(snapshot, reader, row["field_no"])
        for level, scaled in enumerate(pyramid(pixels, export.levels)):
            buffer = io.BytesIO()
            writer = ShardWriter(buffer, spec, cuts[level])
            for channel in range(len(scaled)):
                writer.append(scaled[channel : channel + 1])
            writer.finish()
            write(folder / str(level) / shard_name(image, number), buffer.getvalue())
        advance(pixels.nbytes)
    for level, cut in enumerate(cuts):
        write(folder / str(level) / "zarr.json", level_array(image, spec, cut))


# -- the plate around its wells ---------------------------------------------------------------------------------------


def begin_plate(out: HcsPaths, export: PlateExport) -> None:
    """From here on until finish_plate() the folder is no plate."""
    make_folder(out.plate(export.plate))
    (out.plate(export.plate) / "zarr.json").unlink(missing_ok=True)


def finish_plate(out: HcsPaths, export: PlateExport) -> None:
    """Take out wells that are no longer part of the plate, and commit rows, tables and, last, the plate; a plate without
    wells is taken out.

    Writes nothing that is there with the same bytes.
    """
    plate = out.plate(export.plate)
    remove_temporaries(out.root, out.left_out(export.plate).name)
    if export.left_out:
        _commit_new(out.left_out(export.plate), left_out_table(export.left_out).encode())
    else:
        out.left_out(export.plate).unlink(missing_ok=True)
    if not export.wells:
        if plate.is_dir():
            begin_plate(out, export)
            shutil.rmtree(plate)
        shutil.rmtree(out.records(export.plate), ignore_errors=True)
        return
    wells = {well: len(site_images(rows)) for well, rows in export.wells.items()}
    _remove_stale(out, export)
    files: dict[Path, bytes] = {}
    for row in sorted({well.row for well in wells}):
        files[plate / row_name(row) / "zarr.json"] = _bytes(group({}))
    tables = out.tables(export.plate)
    files |= {tables / name / "zarr.json": _bytes(content) for name, content in table_groups().items()}
    rows = [row for members in export.wells.values() for row in members if row["field_no"] is not None]
    files[tables / "wells" / "table.csv"] = wells_table(rows).encode()
    files[plate / "zarr.json"] = _bytes(plate_group(export.plate, export.size, wells, export.own))
    for folder in {path.parent for path in files} | {out.records(export.plate)}:
        remove_temporaries(folder)
    for path, content in files.items():
        _commit_new(path, content)


def _commit_new(path: Path, content: bytes) -> None:
    if not path.is_file() or path.read_bytes() != content:
        commit(path, content)


def _remove_stale(out: HcsPaths, export: PlateExport) -> None:
    """Wells of an earlier export that have no usable field any more."""
    plate = out.plate(export.plate)
    rows = {row_name(well.row) for well in export.wells}
    paths = {well_path(well) for well in export.wells}
    stale = [entry for entry in _folders(plate) if entry.name not in {*rows, "tables"}]
    stale += [entry for name in rows for entry in _folders(plate / name) if f"{name}/{entry.name}" not in paths]
    if stale:
        begin_plate(out, export)
    names = {out.record(export.plate, well).name for well in export.wells}
    for record in out.records(export.plate).glob("*.json"):
        if record.name not in names and record != out.windows(export.plate):
            record.unlink()
    for entry in stale:
        shutil.rmtree(entry)


def _folders(folder: Path) -> Iterable[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
