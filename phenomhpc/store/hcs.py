"""What an exported OME-Zarr 0.5 plate says: groups, images, arrays, and a table of its wells.  Pure.

DIR/
  PLATE.zarr/zarr.json                  the plate: every row and column, wells with images; committed last
  PLATE.zarr/A/1/0/                     row, column (the well), image (its path is the site's number)
  PLATE.zarr/A/1/0/0 ... N              levels; a shard for each field, inner chunks of one channel
  PLATE.zarr/tables/wells/table.csv     what is known of the wells, as ngio's condition_table
  PLATE.left_out.csv                    fields that are not in it, and why
  .progress/PLATE/                      completion records of the wells; a copy without them is a finished export

Source: the OME-Zarr 0.5 specification.  Beside it, each image says under "phenomhpc" which fields it is made of.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenomhpc.plates.types import Well
from phenomhpc.store.fields import METADATA_COLUMNS
from phenomhpc.store.pyramid import level_size
from phenomhpc.store.shards import Geometry, sharded_array
from phenomhpc.store.spec import DatasetSpec

VERSION = "0.5"
OWN = "phenomhpc"
# Viewers fetch one channel of what they show; smaller chunks cost them requests.
CHUNK_PX = 256
# A row of the fields table.
Row = Mapping[str, Any]
Json = dict[str, Any]


@dataclass(frozen=True)
class HcsPaths:
    """Names inside a folder of exported plates."""

    root: Path

    def plate(self, plate: str) -> Path:
        return self.root / f"{plate}.zarr"

    def well(self, plate: str, well: Well) -> Path:
        return self.plate(plate) / well_path(well)

    def tables(self, plate: str) -> Path:
        return self.plate(plate) / "tables"

    def left_out(self, plate: str) -> Path:
        return self.root / f"{plate}.left_out.csv"

    @property
    def progress(self) -> Path:
        return self.root / ".progress"

    @property
    def lock(self) -> Path:
        return self.progress / "lock"

    def records(self, plate: str) -> Path:
        return self.progress / plate

    def windows(self, plate: str) -> Path:
        """Display windows, found once."""
        return self.records(plate) / "windows.json"

    def record(self, plate: str, well: Well) -> Path:
        return self.records(plate) / f"{well.name}.json"


def row_name(row: int) -> str:
    """A, B ... AF."""
    return Well(row=row, column=1).name[:-2]


def well_path(well: Well) -> str:
    """`A/1`."""
    return f"{row_name(well.row)}/{well.column}"


@dataclass(frozen=True, kw_only=True)
class SiteImage:
    """One image of a well: fields of one site, timepoint by timepoint and in it z plane by z plane.

    path: its name in the well.  timepoints, z: along the axes, one where there is no such axis.
    """

    path: str
    site: int
    timepoints: tuple[int, ...]
    z: tuple[str, ...]
    fields: tuple[Row, ...]

    @property
    def axes(self) -> str:
        """A part of tczyx."""
        return ("t" if len(self.timepoints) > 1 else "") + "c" + ("z" if len(self.z) > 1 else "") + "yx"

    def position(self, number: int) -> tuple[int, int]:
        """Position along t and z of a field by its number."""
        return divmod(number, len(self.z))


def site_images(rows: Sequence[Row]) -> list[SiteImage]:
    """The images of a well's fields, in the order of the array.

    The usable fields of a site become one image where they are every timepoint and z plane that was declared of it;
    otherwise each is an image of its own: what is missing is not made up.
    """
    sites: dict[int, list[Row]] = {}
    for row in rows:
        sites.setdefault(row["site"], []).append(row)
    images = []
    for site, declared in sites.items():
        usable = [row for row in declared if row["status"] == "ok"]
        times = tuple(sorted({row["timepoint"] for row in declared}))
        planes = tuple(dict.fromkeys(row["z"] for row in declared))
        by_place = {(row["timepoint"], row["z"]): row for row in usable}
        grid = [by_place.get((time, z)) for time in times for z in planes]
        whole = [row for row in grid if row is not None]
        if len(whole) == len(grid) == len(usable):
            images.append(SiteImage(path=str(site), site=site, timepoints=times, z=planes, fields=tuple(whole)))
            continue
        for number, row in enumerate(usable, 1):
            images.append(
                SiteImage(
                    path=f"{site}p{number}", site=site, timepoints=(row["timepoint"],), z=(row["z"],), fields=(row,)
                )
            )
    return images


def group(said: Json, own: Json | None = None) -> Json:
    """zarr.json of a group; said: its OME-Zarr metadata, own: what stands beside them."""
    attributes = {"ome": {"version": VERSION, **said}, **({OWN: own} if own else {})}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def plate_group(plate: str, size: tuple[int, int], wells: Mapping[Well, int], own: Json) -> Json:
    """The plate; wells: with the number of their images.  Every row and column of it is listed, as the specification wants."""
    most = max(wells.values())
    said = {
        "version": VERSION,
        "name": plate,
        "field_count": most,
        "acquisitions": [{"id": 0, "name": plate, "maximumfieldcount": most}],
        "rows": [{"name": row_name(row)} for row in range(1, size[0] + 1)],
        "columns": [{"name": str(column)} for column in range(1, size[1] + 1)],
        "wells": [
            {"path": well_path(well), "rowIndex": well.row - 1, "columnIndex": well.column - 1}
            for well in sorted(wells)
        ],
    }
    return group({"plate": said}, own)


def well_group(images: Sequence[SiteImage]) -> Json:
    """A well and its images."""
    return group({"well": {"version": VERSION, "images": [{"path": image.path, "acquisition": 0} for image in images]}})


def image_group(
    name: str, image: SiteImage, spec: DatasetSpec, levels: int, windows: Sequence[tuple[int, int]]
) -> Json:
    """An image: axes, levels with their transformations, channels as OMERO shows them.

    The translation is the stage's position as the microscope gave it, moved by half a pixel for what lies between the
    first pixel of level 0 and of a smaller level.
    """
    first = image.fields[0]
    pixel = first["pixel_size_um"]
    unit = {"unit": "micrometer"} if pixel is not None else {}
    kinds = {"t": {"type": "time"}, "c": {"type": "channel"}, "z": {"type": "space"}}
    scales = {
        "name": name,
        "type": "mean",
        "metadata": {"method": "mean of the 2^level x 2^level pixels of level 0, halves up"},
        "axes": [{"name": axis, **kinds.get(axis, {"type": "space", **unit})} for axis in image.axes],
        "datasets": [_dataset(image.axes, level, pixel, first) for level in range(levels)],
    }
    omero = {
        "version": VERSION,
        "channels": [
            _channel(name, rgb, spec.dtype, window)
            for name, rgb, window in zip(spec.channels, colours(spec.channels), windows, strict=True)
        ],
        "rdefs": {"defaultT": 0, "defaultZ": len(image.z) // 2, "model": "color"},
    }
    own = {
        "site": image.site,
        "timepoints": list(image.timepoints),
        "z": list(image.z),
        "fields": [row["field_index"] for row in image.fields],
    }
    return group({"multiscales": [scales], "omero": omero}, own)


def _dataset(axes: str, level: int, pixel: float | None, first: Row) -> Json:
    """A level; without a known pixel size its scale is a number of pixels, and no position can be said."""
    size = pixel if pixel is not None else 1.0
    steps: list[Json] = [{"type": "scale", "scale": [size * 2**level if axis in "yx" else 1.0 for axis in axes]}]
    known = pixel is not None and first["position_x_um"] is not None and first["position_y_um"] is not None
    corner = {"y": first["position_y_um"], "x": first["position_x_um"]} if known else {"y": 0.0, "x": 0.0}
    if known or level:
        shift = size * (2**level - 1) / 2
        moved = [corner[axis] + shift if axis in corner else 0.0 for axis in axes]
        steps.append({"type": "translation", "translation": moved})
    return {"path": str(level), "coordinateTransformations": steps}


# Usual colours of Cell Painting, by words of a channel's name in lower case: stains, then fluorophores.
_COLOURS = (
    (r"rna|syto|nucleol|488 ?long", "FFFF00"),
    (r"dna|hoechst|dapi|nucle", "0000FF"),
    (r"\ber\b|concanavalin|endoplasm", "00FF00"),
    (r"agp|actin|phalloidin|wga", "FF8000"),
    (r"golgi", "00FFFF"),
    (r"mito", "FF0000"),
    (r"\b405\b", "0000FF"),
    (r"\b488\b|gfp|fitc", "00FF00"),
    (r"\b5[4-9]\d\b|cy3|tritc", "FF8000"),
    (r"\b6[3-9]\d\b|cy5", "FF0000"),
)
_OTHER_COLOURS = ("0000FF", "00FF00", "FF0000", "00FFFF", "FF00FF", "FFFF00", "FF8000")
_TRANSMITTED = re.compile(r"bright|phase|transmi|\bbf\b", re.IGNORECASE)


def colours(names: Sequence[str]) -> list[str]:
    """RRGGBB of each channel; one whose name says nothing gets a colour that no other has, as far as there are any."""
    known = ["FFFFFF" if _TRANSMITTED.search(name) else _named_colour(name) for name in names]
    free = [rgb for rgb in _OTHER_COLOURS if rgb not in known] or list(_OTHER_COLOURS)
    others = iter(range(len(names)))
    return [rgb if rgb is not None else free[next(others) % len(free)] for rgb in known]


def _named_colour(name: str) -> str | None:
    return next((rgb for words, rgb in _COLOURS if re.search(words, name.lower())), None)


def _channel(name: str, rgb: str, dtype: str, window: tuple[int, int]) -> Json:
    return {
        "label": name,
        "color": rgb,
        "active": not _TRANSMITTED.search(name),
        "coefficient": 1.0,
        "family": "linear",
        "inverted": False,
        "window": {"min": 0, "max": 255 if dtype == "uint8" else 65535, "start": window[0], "end": window[1]},
    }


def level_geometry(geometry: Geometry, level: int) -> Geometry:
    """How a field is cut at a level: its channels take the place of a shard's fields, so that each has chunks of its own."""
    return Geometry(
        num_fields=geometry.num_channels,
        num_channels=1,
        height=level_size(geometry.height, level),
        width=level_size(geometry.width, level),
        chunk_px=CHUNK_PX,
        fields_per_shard=geometry.num_channels,
    )


def level_array(image: SiteImage, spec: DatasetSpec, cut: Geometry) -> Json:
    """zarr.json of a level."""
    lengths = {"t": len(image.timepoints), "c": cut.num_fields, "z": len(image.z), "y": cut.height, "x": cut.width}
    shard = {"c": cut.num_fields, "y": cut.chunk_rows * CHUNK_PX, "x": cut.chunk_columns * CHUNK_PX}
    chunk = {"y": CHUNK_PX, "x": CHUNK_PX}
    return sharded_array(
        spec,
        shape=[lengths[axis] for axis in image.axes],
        shard=[shard.get(axis, 1) for axis in image.axes],
        chunk=[chunk.get(axis, 1) for axis in image.axes],
        names=list(image.axes),
        attributes={},
    )


def shard_name(image: SiteImage, number: int) -> str:
    """File of a field below its level: one shard for each timepoint and z plane."""
    time, z = image.position(number)
    at = {"t": time, "z": z}
    return "c/" + "/".join(str(at.get(axis, 0)) for axis in image.axes)


# -- tables -----------------------------------------------------------------------------------------------------------

WELLS_TABLE = "wells"


def table_groups() -> dict[str, Json]:
    """zarr.json by folder below tables/, as ngio reads them."""
    condition = {"type": "condition_table", "table_version": "1", "backend": "csv"}
    return {
        "": {"zarr_format": 3, "node_type": "group", "attributes": {"tables": [WELLS_TABLE]}},
        WELLS_TABLE: {"zarr_format": 3, "node_type": "group", "attributes": condition},
    }


def wells_table(rows: Sequence[Row]) -> str:
    """CSV with a row per well: its place, and what is known of it and the same in all its fields."""
    wells: dict[str, list[Row]] = {}
    for row in rows:
        wells.setdefault(row["well"], []).append(row)
    names = (*METADATA_COLUMNS, *sorted(name for name in rows[0] if name.startswith("meta_")))
    known = [name for name in names if any(row.get(name) is not None for row in rows)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("well", "row", "column", *known))
    for well, members in wells.items():
        same = [members[0].get(name) if len({row.get(name) for row in members}) == 1 else None for name in known]
        place = Well.parse(well)
        writer.writerow((well, row_name(place.row), place.column, *(_text(value) for value in same)))
    return buffer.getvalue()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)


LEFT_OUT_COLUMNS = ("well", "site", "timepoint", "z", "status", "reason")


def left_out_table(rows: Sequence[Row]) -> str:
    """CSV of the fields that are not exported."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([LEFT_OUT_COLUMNS, *([row[name] for name in LEFT_OUT_COLUMNS] for row in rows)])
    return buffer.getvalue()
