"""Which crops make up which well: pure, from the fields of a snapshot.

A well's embedding is the mean over the non-overlapping crops of all its usable fields.  Wells come in plate order (row,
column), fields by site, crops row by row, so that the batches of a plate, and with them every last bit of its result, are a
function of the snapshot and the batch size alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.crops import tile
from phenomhpc.embed.table import METADATA, OK

TOO_SMALL = "smaller_than_crop"


@dataclass(frozen=True, kw_only=True)
class PlateWells:
    """The wells of one plate in plate order, each exactly once.

    metadata: one row per well
    field_no: per well, rows of the snapshot's table in order of site; none where the well has no crop
    num_crops: i64[wells], non-overlapping crops in those fields
    status: per well, `ok`, or why it has no embedding
    """

    metadata: pl.DataFrame
    field_no: tuple[tuple[int, ...], ...]
    num_crops: NDArray[np.int64]
    status: tuple[str, ...]

    @property
    def num_wells(self) -> int:
        return len(self.status)


def plan_wells(fields: pl.DataFrame, table: NDArray[np.void], crop_px: int) -> PlateWells:
    """Group the fields of one plate into wells.

    fields: the plate's rows of `Snapshot.fields()`: set-aside fields too, whose `field_no` is null
    table: the snapshot's table, for heights and widths
    """
    groups = fields.sort("row", "column", "site", "field_index").partition_by("row", "column", maintain_order=True)
    names = [name for name in METADATA if name in fields.columns]
    names += [name for name in fields.columns if name.startswith("meta_")]
    usable = [tuple(group["field_no"].drop_nulls().to_list()) for group in groups]
    crops = [sum(_num_tiles(table[no], crop_px) for no in numbers) for numbers in usable]
    status = [
        OK if count else TOO_SMALL if numbers else str(group["status"][0])
        for group, numbers, count in zip(groups, usable, crops, strict=True)
    ]
    return PlateWells(
        metadata=pl.concat([group.select(names).head(1) for group in groups]),
        field_no=tuple(numbers if count else () for numbers, count in zip(usable, crops, strict=True)),
        num_crops=np.array(crops, dtype=np.int64),
        status=tuple(status),
    )


def _num_tiles(row: np.void, crop_px: int) -> int:
    return len(tile(int(row["height"]), int(row["width"]), crop_px))
