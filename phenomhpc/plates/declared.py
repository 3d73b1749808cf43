"""A plate as its layout declared it, as bytes: parsed once, read by every task that converts a part of it."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from phenomhpc.plates.types import Channel, Field, Plane, Plate, Stack, Well

_HEADER = b"plate"


def dump_plate(plate: Plate) -> bytes:
    """Parquet: a row per field; what is said of the whole plate stands in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    header = {
        "key": plate.key,
        "experiment": plate.experiment,
        "plate": plate.plate,
        "measurement": plate.measurement,
        "rows": plate.rows,
        "columns": plate.columns,
        "channels": [asdict(channel) for channel in plate.channels],
        "root": str(plate.root),
        "layout": plate.layout,
        "metadata": {well: dict(values) for well, values in plate.metadata.items()},
        "projection": plate.projection,
        "illumination": plate.illumination,
        "strays": plate.strays,
    }
    rows = [_row(field) for field in plate.fields]
    table = pa.Table.from_pylist(rows, schema=_schema()).replace_schema_metadata({_HEADER: json.dumps(header).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def load_plate(data: bytes) -> Plate:
    """The plate that dump_plate() wrote."""
    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(data))
    return replace(load_head(data), fields=tuple(_field(row) for row in table.to_pylist()))


def load_head(data: bytes) -> Plate:
    """The same without its fields: what is said of the whole plate."""
    import pyarrow.parquet as pq

    header: dict[str, Any] = json.loads(pq.read_schema(io.BytesIO(data)).metadata[_HEADER])
    header["channels"] = tuple(Channel(**channel) for channel in header["channels"])
    header["root"] = Path(header["root"])
    header["illumination"] = tuple(header["illumination"])
    header["strays"] = tuple((thing, reason) for thing, reason in header["strays"])
    return Plate(**header, fields=())


def _schema() -> Any:
    import pyarrow as pa

    plane = pa.struct([("path", pa.string()), ("index", pa.list_(pa.int32()))])
    return pa.schema(
        [
            ("index", pa.uint32()),
            ("row", pa.uint16()),
            ("column", pa.uint16()),
            ("site", pa.uint16()),
            ("timepoint", pa.uint16()),
            ("z", pa.string()),
            ("planes", pa.list_(pa.list_(plane))),
            ("problem", pa.list_(pa.string())),
            ("position_x_um", pa.float64()),
            ("position_y_um", pa.float64()),
            ("pixel_size_um", pa.float64()),
        ]
    )


def _row(field: Field) -> dict[str, Any]:
    return {
        "index": field.index,
        "row": field.well.row,
        "column": field.well.column,
        "site": field.site,
        "timepoint": field.timepoint,
        "z": field.z,
        "planes": [[_plane_row(plane) for plane in stack] for stack in field.planes],
        "problem": field.problem,
        "position_x_um": field.position_x_um,
        "position_y_um": field.position_y_um,
        "pixel_size_um": field.pixel_size_um,
    }


def _plane_row(plane: Plane | None) -> dict[str, Any] | None:
    return None if plane is None else {"path": str(plane.path), "index": plane.index}


def _field(row: dict[str, Any]) -> Field:
    well = Well(row=row.pop("row"), column=row.pop("column"))
    planes = tuple(_stack(stack) for stack in row.pop("planes"))
    problem = row.pop("problem")
    return Field(well=well, planes=planes, problem=None if problem is None else (problem[0], problem[1]), **row)


def _stack(rows: list[dict[str, Any] | None]) -> Stack:
    return tuple(
        None if row is None else Plane(Path(row["path"]), None if row["index"] is None else tuple(row["index"]))
        for row in rows
    )
