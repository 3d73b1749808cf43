"""`store qc`: a screen's quality as a page that a person looks at, and as figures of each well.

measures  what is looked at, robust z: arrays in, arrays out
limits    fixed limits in the language of data.where
plates    what there is to say of each plate, from the fields tables alone
pictures  montages and closer looks, from the pixels
words, overview, page   the findings as the page's tables, maps and words
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from phenomhpc.errors import UsageError
from phenomhpc.jobs.quality.limits import DEFAULT
from phenomhpc.jobs.quality.page import BuiltPage, build_page
from phenomhpc.jobs.quality.plates import PlateQuality, Quality, quality_of
from phenomhpc.progress import Progress
from phenomhpc.store.fields import plate_size

if TYPE_CHECKING:
    from phenomhpc.store import Snapshot

__all__ = ["BuiltPage", "build_page", "figures", "look_at"]


def look_at(snapshot: Snapshot, plates: Sequence[str], where: str | None, progress: Progress) -> Quality:
    """What the fields tables say of these plates (none named: all).  where: fixed limits; None: the usual ones.

    Raises UsageError for a plate that is not there and for limits that are not understood.
    """
    import polars as pl

    for plate in plates:
        if plate not in snapshot.plates:
            near = difflib.get_close_matches(plate, snapshot.plates, 3, 0.3) or snapshot.plates[:3]
            raise UsageError(
                f"--plate {plate}: not in snapshot {snapshot.digest[:12]}; there are such as {', '.join(near)}"
            )
    fields = snapshot.fields()
    measured = "qc_focus" in fields.columns and fields["qc_focus"].null_count() < fields.height
    chosen = list(dict.fromkeys(plates)) or list(snapshot.plates)
    extents = fields.group_by("plate").agg(pl.col("row").max(), pl.col("column").max()).iter_rows()
    extent_of = {plate: (row, column) for plate, row, column in extents}
    sizes = {plate: plate_size(snapshot.store.paths, plate, extent_of[plate]) for plate in chosen}
    limits = (DEFAULT if measured else "") if where is None else where
    return quality_of(fields.filter(pl.col("plate").is_in(chosen)), sizes, snapshot.channels, limits, progress)


def figures(snapshot: Snapshot, quality: Quality) -> dict[str, Any]:
    """For --json: every well's values, what is flagged and why, what is set aside."""
    return {
        "store": str(snapshot.store.paths.root),
        "snapshot": snapshot.digest,
        "channels": list(quality.channels),
        "limits": list(quality.conditions),
        "plates_apart": [
            {"plate": quality.plates[at].plate, "what": quality.measures[place].label, "z": round(z, 2)}
            for at, place, z in quality.plates_apart
        ],
        "plates": [_plate_figures(plate, quality) for plate in quality.plates],
    }


def _plate_figures(plate: PlateQuality, quality: Quality) -> dict[str, Any]:
    return {
        "plate": plate.plate,
        "rows": plate.rows,
        "columns": plate.columns,
        "fields": plate.num_fields,
        "set_aside": int(plate.set_aside.sum()),
        "left_out": plate.fields_left_out,
        "flagged_wells": [well.name for well in sorted(plate.flagged_wells)],
        "wells": _wells(plate, quality),
        "flags": [
            {"well": flag.well.name, "what": quality.measures[flag.measure].label, "value": flag.value,
             "usual": flag.usual, "z": round(flag.z, 2), "sites": list(flag.sites)}
            for flag in (*plate.wells_apart, *plate.fields_apart)
        ],
        "limits": [
            {"well": entry.well.name, "condition": quality.conditions[entry.condition], "fields": entry.fields}
            for entry in plate.left_out
        ],
        "reasons": [
            {"status": entry.status, "reason": entry.reason, "fields": entry.fields,
             "wells": [well.name for well in entry.wells]}
            for entry in plate.reasons
        ],
    }  # fmt: skip


def _wells(plate: PlateQuality, quality: Quality) -> list[dict[str, Any]]:
    """Every well with fields: counts, and the medians, of channels as a list in the store's order; null: not measured."""
    from phenomhpc.plates import Well

    rows = []
    for y, x in np.argwhere(plate.usable + plate.set_aside).tolist():
        row: dict[str, Any] = {
            "well": Well(row=y + 1, column=x + 1).name,
            "usable": int(plate.usable[y, x]),
            "set_aside": int(plate.set_aside[y, x]),
        }
        for place, measure in enumerate(quality.measures):
            value = None if np.isnan(plate.values[place, y, x]) else float(plate.values[place, y, x])
            if measure.channel is None:
                row[measure.kind.name] = value
            else:
                row.setdefault(measure.kind.name, [None] * len(quality.channels))[measure.channel] = value
        rows.append(row)
    return rows
