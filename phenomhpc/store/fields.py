"""fields.parquet: one row per field of a plate, from completion records and the plate's facts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from phenomhpc.plates import Well
from phenomhpc.plates.types import plate_format
from phenomhpc.runs import commit, read_record
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.shards import Geometry

SOURCE = pl.Struct({"channel": pl.String, "path": pl.String, "sha256": pl.String, "bytes": pl.Int64})

PIXEL_COLUMNS: dict[str, Any] = {
    "field_index": pl.UInt32,
    "plate": pl.String,
    "well": pl.String,
    "row": pl.UInt16,
    "column": pl.UInt16,
    "site": pl.UInt16,
    "timepoint": pl.UInt16,
    "z": pl.String,
    "status": pl.String,
    "reason": pl.String,
    "position_x_um": pl.Float64,
    "position_y_um": pl.Float64,
    "pixel_size_um": pl.Float64,
    "sources": pl.List(SOURCE),
    "crc32c": pl.UInt32,
    "qc_focus": pl.List(pl.Float32),
    "qc_saturated": pl.List(pl.Float32),
    "qc_background": pl.List(pl.Float32),
    "qc_signal": pl.List(pl.Float32),
    "qc_nuclei": pl.Int32,
}
# What a metadata table says of a well; a plate's reader maps its own names to these, the rest becomes meta_*.
METADATA_COLUMNS: dict[str, Any] = {
    "perturbation": pl.String,
    "perturbation_type": pl.String,
    "gene": pl.String,
    "treatment": pl.String,
    "smiles": pl.String,
    "concentration_um": pl.Float64,
    "cell_type": pl.String,
    "experiment": pl.String,
    "batch": pl.String,
    "is_control": pl.Boolean,
}
_TRUE = {"true", "1", "yes", "t"}


def _typed(name: str, text: str | None) -> Any:
    """A metadata value of a CSV as its column's type; null where it does not say one."""
    if text is None or text == "":
        return None
    dtype = METADATA_COLUMNS.get(name, pl.String)
    if dtype == pl.Boolean:
        return text.strip().lower() in _TRUE
    if dtype == pl.Float64:
        try:
            return float(text)
        except ValueError:
            return None
    return text


def plate_fields(paths: StorePaths, plate: str, geometry: Geometry) -> tuple[pl.DataFrame, int]:
    """The fields of the plate's converted shards, in array order, and how many shards are not converted."""
    facts: Mapping[str, Any] = {}
    if paths.facts(plate).is_file():
        facts = json.loads(paths.facts(plate).read_bytes())
    metadata: Mapping[str, Mapping[str, str]] = facts.get("metadata", {})
    later = read_annotations(paths, plate)
    rows: list[dict[str, Any]] = []
    missing = 0
    for shard in range(geometry.num_shards):
        record = read_record(paths.record(plate, shard))
        if record is None or not paths.shard(plate, shard).is_file():
            missing += 1
            continue
        for row in record.rows:
            texts = {**metadata.get(row["well"], {}), **later.get(row["well"], {})}
            said = {name: _typed(name, text) for name, text in texts.items()}
            experiment = facts.get("experiment")
            rows.append({"experiment": experiment, "batch": experiment, **said, **row, "plate": plate})
    extra = sorted({name for row in rows for name in row} - set(PIXEL_COLUMNS) - set(METADATA_COLUMNS))
    schema = {**PIXEL_COLUMNS, **METADATA_COLUMNS, **dict.fromkeys(extra, pl.String)}
    complete = [{name: row.get(name) for name in schema} for row in rows]
    return pl.DataFrame(complete, schema=schema, orient="row"), missing


SET_ASIDE_COLUMNS = ("plate", "well", "site", "timepoint", "z", "status", "reason")
STRAY = "stray"


def write_set_aside(paths: StorePaths, fields: pl.DataFrame) -> None:
    """Commit the table of what is not usable: fields of every plate, and listed images that had no place on one."""
    rows = fields.filter(pl.col("status") != "ok").select(SET_ASIDE_COLUMNS).rows()
    for plate in fields["plate"].unique().sort().to_list():
        if paths.facts(plate).is_file():
            strays = json.loads(paths.facts(plate).read_bytes()).get("strays", ())
            rows += [(plate, None, None, None, None, STRAY, f"{thing}: {reason}") for thing, reason in strays]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([SET_ASIDE_COLUMNS, *rows])
    if not paths.set_aside.is_file() or paths.set_aside.read_text() != buffer.getvalue():
        commit(paths.set_aside, buffer.getvalue())


def read_annotations(paths: StorePaths, plate: str) -> dict[str, dict[str, str]]:
    """Well -> column -> text of the tables that came later; empty where none did."""
    try:
        found: dict[str, dict[str, str]] = json.loads(paths.annotations(plate).read_bytes())
    except FileNotFoundError:
        return {}
    return found


def annotated(fields: pl.DataFrame, later: Mapping[str, Mapping[str, str]]) -> pl.DataFrame:
    """A fields table with what later tables say of its wells, in place of what it says itself."""
    rows = fields.to_dicts()
    for row in rows:
        row |= {name: _typed(name, text) for name, text in later.get(row["well"], {}).items()}
    names = {name for row in rows for name in row} | set(fields.schema)
    # In plate_fields' order, so that a store gets the same snapshot with and without its .progress.
    known = [name for name in (*PIXEL_COLUMNS, *METADATA_COLUMNS) if name in names]
    order = (*known, *sorted(names - set(known)))
    schema = {name: fields.schema.get(name, METADATA_COLUMNS.get(name, pl.String)) for name in order}
    return pl.DataFrame([{name: row.get(name) for name in schema} for row in rows], schema=schema, orient="row")


def write_fields(paths: StorePaths, plate: str, fields: pl.DataFrame) -> None:
    """Commit PLATE.fields.parquet, unless it is there with the same bytes."""
    buffer = io.BytesIO()
    fields.write_parquet(buffer)
    path, data = paths.fields(plate), buffer.getvalue()
    if not path.is_file() or path.read_bytes() != data:
        commit(path, data)


def read_fields(paths: StorePaths, plate: str) -> pl.DataFrame:
    """PLATE.fields.parquet."""
    return pl.read_parquet(paths.fields(plate).read_bytes())


def plate_size(paths: StorePaths, plate: str, extent: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the plate as it is made.

    extent: its wells' last row and column, from which it is guessed in a store copied without its .progress.
    """
    try:
        facts = json.loads(paths.facts(plate).read_bytes())
        said = int(facts["rows"]), int(facts["columns"])
    except (FileNotFoundError, KeyError):
        said = plate_format([Well(row=extent[0], column=extent[1])])
    return max(said[0], extent[0]), max(said[1], extent[1])
