"""Which crops make up which well: pure, from the fields of a snapshot.

A well's embedding is the mean over crops of all its usable fields: those that fit side by side, or ones drawn at random.  Wells
come in plate order (row, column), fields by site, crops row by row (as drawn, where they are random), so that the batches of a
plate, and with them every last bit of its result, are a function of the snapshot and the settings alone.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.crops import tile
from phenomhpc.embed.table import METADATA, OK
from phenomhpc.philox import OFFSET, philox, uniform

TOO_SMALL = "smaller_than_crop"
# Random crops of a field have the draws FIELD_DRAWS * its index in the plate's array and on.
_FIELD_DRAWS = 2**32


@dataclass(frozen=True, kw_only=True)
class Placing:
    """Where crops lie.

    crop_px: their edge; per_field: how many of each field are drawn, None: as many as would fit side by side; seed: of the draws
    """

    crop_px: int
    kind: Literal["tiled", "random"] = "tiled"
    per_field: int | None = None
    seed: int = 0

    def corners(self, plate: str, field_index: int, height: int, width: int) -> NDArray[np.int64]:
        """(y, x) of a field's crops, i64[n, 2]; none where it is smaller than one.

        Random ones are a function of the seed, the plate's name and the field's place in its array, so that they are the
        same in every snapshot.
        """
        tiled = _tiled(height, width, self.crop_px)
        if self.kind == "tiled" or not len(tiled):
            return tiled
        key = int.from_bytes(hashlib.sha256(plate.encode()).digest()[:8], "little")
        draws = field_index * _FIELD_DRAWS + np.arange(self.per_field or len(tiled), dtype=np.uint64)
        room = np.array([height - self.crop_px + 1, width - self.crop_px + 1])
        drawn = uniform(philox(self.seed, OFFSET, np.uint64(key), draws)[:, :2])
        corners: NDArray[np.int64] = np.floor(drawn * room).astype(np.int64)
        return corners


@cache
def _tiled(height: int, width: int, crop_px: int) -> NDArray[np.int64]:
    """The same, read-only array for every field of a size: a screen has millions of them."""
    corners = np.array(tile(height, width, crop_px), dtype=np.int64).reshape(-1, 2)
    corners.flags.writeable = False
    return corners


@dataclass(frozen=True, kw_only=True)
class FieldCrops:
    """A field, its row in the snapshot's table, and its crops' corners i64[n, 2]."""

    field_no: int
    field_index: int
    site: int
    corners: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class PlateWells:
    """The wells of one plate in plate order, each exactly once.

    metadata: one row per well
    fields: per well, its fields in order of site; none where the well has no crop
    num_crops: i64[wells]
    status: per well, `ok`, or why it has no embedding
    """

    metadata: pl.DataFrame
    fields: tuple[tuple[FieldCrops, ...], ...]
    num_crops: NDArray[np.int64]
    status: tuple[str, ...]

    @property
    def num_wells(self) -> int:
        return len(self.status)


def plan_wells(fields: pl.DataFrame, table: NDArray[np.void], placing: Placing) -> PlateWells:
    """Group the fields of one plate into wells.

    fields: the plate's rows of `Snapshot.fields()`: set-aside fields too, whose `field_no` is null
    table: the snapshot's table, for heights and widths
    """
    groups = fields.sort("row", "column", "site", "field_index").partition_by("row", "column", maintain_order=True)
    names = [name for name in METADATA if name in fields.columns]
    names += [name for name in fields.columns if name.startswith("meta_")]
    usable = [_usable(group, table, placing) for group in groups]
    crops = [sum(len(field.corners) for field in found) for found in usable]
    status = [
        OK if count else TOO_SMALL if found else str(group["status"][0])
        for group, found, count in zip(groups, usable, crops, strict=True)
    ]
    return PlateWells(
        metadata=pl.concat([group.select(names).head(1) for group in groups]),
        fields=tuple(found if count else () for found, count in zip(usable, crops, strict=True)),
        num_crops=np.array(crops, dtype=np.int64),
        status=tuple(status),
    )


def _usable(group: pl.DataFrame, table: NDArray[np.void], placing: Placing) -> tuple[FieldCrops, ...]:
    rows = group.filter(pl.col("field_no").is_not_null()).select("plate", "field_no", "field_index", "site").rows()
    return tuple(
        FieldCrops(
            field_no=number,
            field_index=index,
            site=site,
            corners=placing.corners(plate, index, int(table[number]["height"]), int(table[number]["width"])),
        )
        for plate, number, index, site in rows
    )
