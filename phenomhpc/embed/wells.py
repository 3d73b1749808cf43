"""Which crops make up which well: pure, from the fields of a snapshot.

A well's embedding is the mean over the non-overlapping crops of all its usable fields.  Wells come in plate order (row, column),
fields by site, crops row by row, so that the batches of a plate, and with them every last bit of its result, are a function of
the snapshot and the batch size alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.crops.tile import tile
from phenomhpc.embed.table import METADATA, OK

SAME_PER_WELL = (*METADATA,)


@dataclass(frozen=True, kw_only=True)
class WellPlan:
    """One well of a plate: what it is and which fields it is made of.

    field_no: rows of the snapshot's table, in order of site; empty where the well has no usable field
    num_crops: non-overlapping crops in those fields
    status: `ok`, or why the well has no embedding
    """

    metadata: dict[str, object]
    field_no: tuple[int, ...]
    num_crops: int
    status: str


def plan_wells(fields: pl.DataFrame, table: NDArray[np.void], crop_px: int) -> list[WellPlan]:
    """Wells of one plate in plate order, each exactly once.

    fields: the plate's rows of `Snapshot.fields()`, set-aside ones too, with `field_no` (null where not usable)
    table: the snapshot's table, for heights and widths
    """
    wells: list[WellPlan] = []
    for rows in fields.sort("row", "column", "site", "field_index").partition_by("row", "column", maintain_order=True):
        first = rows.row(0, named=True)
        usable = rows.filter(pl.col("field_no").is_not_null())["field_no"].to_list()
        crops = sum(len(tile(int(table[no]["height"]), int(table[no]["width"]), crop_px)) for no in usable)
        metadata = {name: first[name] for name in rows.columns if name in SAME_PER_WELL or name.startswith("meta_")}
        if crops:
            status = OK
        elif usable:
            status = "smaller_than_crop"
        else:
            status = str(first["status"])
        wells.append(
            WellPlan(metadata=metadata, field_no=tuple(usable) if crops else (), num_crops=crops, status=status)
        )
    return wells
