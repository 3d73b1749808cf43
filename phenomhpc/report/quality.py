"""The page on the quality of a screen: an overview of all plates, how they drift, and each plate's maps and pictures.

One file, complete in itself.  Its one script (quality.js) filters, sorts and shows values under the pointer; what is to be
seen is there without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc import __version__
from phenomhpc.report.page import Table, data_uri, script_digest, script_json, template
from phenomhpc.report.platemap import (
    DRIFT_HEIGHT,
    DRIFT_WIDTH,
    Scale,
    boxes,
    colour_stops,
    crosses,
    drift,
    jpeg_uri,
    outlines,
    plate_symbols,
    value_picture,
    view_box,
)

Counts = NDArray[np.int64]
SIGNIFICANT = 4  # digits of a value under the pointer


@dataclass(frozen=True, kw_only=True)
class ValueMap:
    """A measure on a plate.  measure: its place in QualityPage.measures; values f64 and flagged bool (rows, columns).

    low, high: the ends of the scale in words.
    """

    measure: int
    values: NDArray[np.float64]
    flagged: NDArray[np.bool_]
    scale: Scale
    low: str
    high: str


@dataclass(frozen=True, kw_only=True)
class PlateView:
    """What is shown of a plate.

    maps: (name of the row, its maps).  montage, closer: JPEG, b"" for none; closer_text: its caption; closer_names: what stands
    below each of its pictures; colours: (channel, CSS colour) of the pictures.  usable, set_aside: fields of each well.
    """

    plate: str
    summary: str
    text: tuple[str, ...]
    tables: tuple[Table, ...]
    maps: tuple[tuple[str, tuple[ValueMap, ...]], ...]
    usable: Counts
    set_aside: Counts
    montage: bytes
    closer: bytes
    closer_text: str
    closer_names: tuple[tuple[str, str], ...]
    colours: tuple[tuple[str, str], ...]
    is_flagged: bool
    is_open: bool


@dataclass(frozen=True, kw_only=True)
class OverviewCell:
    """text, a small one below it, whether it asks for a look, and what the column is sorted by."""

    text: str
    small: str = ""
    warn: bool = False
    order: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OverviewRow:
    """A plate in the overview; shown: is it further down the page?"""

    plate: str
    cells: tuple[OverviewCell, ...]
    shown: bool
    is_flagged: bool


@dataclass(frozen=True, kw_only=True)
class MeasureView:
    """A measure: where it stands among the maps (row's name, column's), its unit; is it a share, shown in percent?"""

    row: str
    column: str
    unit: str
    percent: bool


@dataclass(frozen=True, kw_only=True)
class DriftView:
    """A measure from plate to plate: quartiles f64 (plates, 3) of its wells, apart bool (plates,); scale and its ends in words."""

    measure: int
    quartiles: NDArray[np.float64]
    apart: NDArray[np.bool_]
    scale: Scale
    low: str
    high: str


@dataclass(frozen=True, kw_only=True)
class QualityPage:
    """All but the plates themselves.  columns: of the overview, the first names the plate; notes: what is not shown, and why;
    sizes: (rows, columns) of the plates there are."""

    title: str
    lead: str
    made: str
    facts: tuple[tuple[str, str], ...]
    text: tuple[str, ...]
    notes: tuple[str, ...]
    columns: tuple[str, ...]
    overview: tuple[OverviewRow, ...]
    measures: tuple[MeasureView, ...]
    drifts: tuple[tuple[str, tuple[DriftView, ...]], ...]
    plates_apart: tuple[Table, ...]
    set_aside: tuple[Table, ...]
    details: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


def render_plate(view: PlateView, measures: Sequence[MeasureView]) -> str:
    """A plate's part of the page, to be given to render_quality."""
    rows, columns = view.usable.shape
    num_fields = view.usable + view.set_aside
    return str(
        template("quality_plate.html.j2").render(
            view=view,
            measures=measures,
            rows=rows,
            columns=columns,
            coarse_box=view_box(rows, columns),
            fine_box=view_box(rows, columns, every=True),
            there=boxes(num_fields > 0),
            unusable=crosses((num_fields > 0) & (view.usable == 0)),
            partly=outlines((view.usable > 0) & (view.set_aside > 0)),
            picture=lambda of: data_uri(value_picture(of.values, of.scale)),
            outlines=outlines,
            jpeg_uri=jpeg_uri,
            figures=_figures(view),
        )
    )


def render_quality(page: QualityPage, plates: Sequence[str]) -> str:
    """The page.  plates: from render_plate, in the order they are to stand in."""
    script = _script()
    return str(
        template("quality.html.j2").render(
            title=page.title,
            lead=page.lead,
            made=page.made,
            version=__version__,
            page=page,
            plates=plates,
            stops=colour_stops(),
            symbols=plate_symbols(page.sizes),
            drift=drift,
            drift_size=(DRIFT_WIDTH, DRIFT_HEIGHT),
            figures=script_json({"measures": [_words(measure) for measure in page.measures],
                           "plates": [row.plate for row in page.overview], "drift": _drift_figures(page)}),
            script=script,
            script_digest=script_digest(script),
        )
    )  # fmt: skip


@cache
def _script() -> str:
    return files("phenomhpc.report").joinpath("quality.js").read_text()


def _words(measure: MeasureView) -> dict[str, Any]:
    return {"row": measure.row, "column": measure.column, "percent": measure.percent}


def _rounded(values: NDArray[np.float64]) -> list[float | int | None]:
    """Values with the digits that are worth showing; None for NaN."""
    rounded = (None if np.isnan(value) else float(f"{value:.{SIGNIFICANT}g}") for value in values.ravel().tolist())
    return [int(value) if value is not None and value.is_integer() else value for value in rounded]


def _figures(view: PlateView) -> str:
    """What the pointer can ask for: the values of each well, row by row, and its fields."""
    values = {of.measure: _rounded(of.values) for _, maps in view.maps for of in maps}
    return script_json({
        "rows": view.usable.shape[0],
        "columns": view.usable.shape[1],
        "values": values,
        "usable": view.usable.ravel().tolist(),
        "aside": view.set_aside.ravel().tolist(),
    })  # fmt: skip


def _drift_figures(page: QualityPage) -> dict[int, list[list[float | int | None]]]:
    return {one.measure: [_rounded(row) for row in one.quartiles] for _, group in page.drifts for one in group}
