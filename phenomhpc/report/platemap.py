"""Plates as drawings: maps of values, montages of pictures, and how a value moves from plate to plate.

A map is an SVG in units of wells, labels and wells drawn once a page (plate_symbols), values as a picture of a few pixels a
well.  Numbers in, markup out; no text of anybody's comes into it.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLOUR_MAP = "viridis"  # even steps to the eye, and to people of any colour vision
PX_OF_WELL = 4
JPEG_LEVEL = 75
LETTERS = 26
DRIFT_WIDTH, DRIFT_HEIGHT = 240, 72


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is dark and what is bright; one for all plates.  beyond: do values lie below, above it?"""

    low: float
    high: float
    beyond: tuple[bool, bool] = (False, False)

    @classmethod
    def of(cls, values: NDArray[np.float64], percentiles: tuple[float, float], least: float) -> Scale:
        """Between percentiles of all values (NaN left out), `least` wide or more."""
        known = values[~np.isnan(values)]
        if not known.size:
            return cls(low=0.0, high=least)
        low, high = (float(value) for value in np.percentile(known, percentiles))
        high = max(high, low + least)
        return cls(low=low, high=high, beyond=(bool((known < low).any()), bool((known > high).any())))


def jpeg(picture: NDArray[np.floating[Any]]) -> bytes:
    """A picture f[h, w, 3] in [0, 1] as JPEG."""
    import imagecodecs

    data = imagecodecs.jpeg8_encode(
        np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), level=JPEG_LEVEL, optimize=True
    )
    return bytes(data)


@cache
def _colours() -> NDArray[np.uint8]:
    """u8 (256, 4)."""
    from matplotlib import colormaps

    table: NDArray[np.uint8] = np.round(colormaps[COLOUR_MAP](np.arange(256)) * 255).astype(np.uint8)
    return table


def colour_stops(num: int = 9) -> str:
    """The colour map as the stops of a CSS gradient."""
    places = np.linspace(0, 255, num).astype(int)
    return ", ".join("#{:02x}{:02x}{:02x}".format(*_colours()[place, :3].tolist()) for place in places)


def value_picture(values: NDArray[np.float64], scale: Scale) -> bytes:
    """A map's values f64 (rows, columns) as PNG, some pixels a well; what is NaN is transparent."""
    import imagecodecs

    share = (np.nan_to_num(values, nan=scale.low) - scale.low) / max(scale.high - scale.low, 1e-12)
    picture = _colours()[np.clip(np.round(share * 255), 0, 255).astype(int)].copy()
    picture[np.isnan(values)] = 0
    data = imagecodecs.png_encode(np.repeat(np.repeat(picture, PX_OF_WELL, 0), PX_OF_WELL, 1), level=9)
    return bytes(data)


def row_letters(row: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    letters, number = "", row + 1
    while number:
        number, rest = divmod(number - 1, LETTERS)
        letters = chr(ord("A") + rest) + letters
    return letters


def _font(rows: int, columns: int, *, every: bool) -> float:
    """Size of labels, in wells: about as large on the page for every plate.  every: beside a montage, not a small map."""
    return (columns + 1) / 90 if every else max(columns, 1.4 * rows) / 24


def view_box(rows: int, columns: int, *, every: bool = False) -> str:
    """The SVG's viewBox.  every: with labels of every row and column, as around a montage; else of as many as fit a small map."""
    font = _font(rows, columns, every=every)
    left, top = 1.75 * font, 1.45 * font
    return f"{-left:.3g} {-top:.3g} {columns + left + 0.1:.4g} {rows + top + 0.1:.4g}"


def plate_symbols(sizes: Sequence[tuple[int, int]]) -> str:
    """Definitions that maps of plates of these sizes (rows, columns) refer to: labels, and a faint well everywhere."""
    parts = []
    for rows, columns in sizes:
        wells = "".join(f"M{x + 0.5} {y + 0.5}h0" for y in range(rows) for x in range(columns))
        for name, every, dot in (("fine", True, 0.14), ("coarse", False, 0.42)):
            faint = f'<path class="wells" stroke-width="{dot}" d="{wells}"/>'
            parts.append(f'<g id="{name}-{rows}x{columns}">{_labels(rows, columns, every=every)}{faint}</g>')
    return f'<svg class="defs" aria-hidden="true" width="0" height="0"><defs>{"".join(parts)}</defs></svg>'


def _labels(rows: int, columns: int, *, every: bool) -> str:
    font = _font(rows, columns, every=every)
    step = 1 if every else max(1, math.ceil(1.8 * font))
    up = "".join(f'<text x="{x + 0.5}" y="{-0.4 * font:.3g}">{x + 1}</text>' for x in range(0, columns, step))
    side = "".join(
        f'<text x="{-0.4 * font:.3g}" y="{y + 0.5 + 0.35 * font:.3g}">{row_letters(y)}</text>'
        for y in range(0, rows, step)
    )
    return f'<g class="up" font-size="{font:.3g}">{up}</g><g class="side" font-size="{font:.3g}">{side}</g>'


def boxes(mask: NDArray[np.bool_]) -> str:
    """A path around each well of bool (rows, columns), neighbours in a row as one."""
    parts = []
    for y, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[False], line, [False]]).astype(np.int8)))
        parts += [f"M{start} {y}h{end - start}v1h{start - end}z" for start, end in edges.reshape(-1, 2).tolist()]
    return "".join(parts)


def outlines(mask: NDArray[np.bool_]) -> str:
    """A path of a square in each well of bool (rows, columns)."""
    return "".join(f"M{x + 0.06} {y + 0.06}h.88v.88h-.88z" for y, x in np.argwhere(mask).tolist())


def crosses(mask: NDArray[np.bool_]) -> str:
    """A path of a cross in each well of bool (rows, columns)."""
    return "".join(f"M{x + 0.2} {y + 0.2}l.6.6m0-.6l-.6.6" for y, x in np.argwhere(mask).tolist())


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One value from plate to plate: paths of the middle halves, of medians, and of the medians that lie apart."""

    spans: str
    medians: str
    apart: str


def drift(quartiles: NDArray[np.float64], apart: NDArray[np.bool_], scale: Scale) -> Drift:
    """quartiles f64 (plates, 3), NaN where a plate has no value; apart bool (plates,); scale: bottom and top."""
    room = (scale.high - scale.low) * 0.08
    x = (np.arange(len(quartiles)) + 0.5) * DRIFT_WIDTH / max(len(quartiles), 1)
    y = DRIFT_HEIGHT * (1 - (quartiles - scale.low + room) / (scale.high - scale.low + 2 * room))
    there = [at for at in range(len(quartiles)) if not np.isnan(y[at]).any()]
    return Drift(
        spans="".join(f"M{x[at]:.1f} {y[at, 0]:.1f}V{y[at, 2]:.1f}" for at in there),
        medians="".join(f"M{x[at]:.1f} {y[at, 1]:.1f}h0" for at in there if not apart[at]),
        apart="".join(f"M{x[at]:.1f} {y[at, 1]:.1f}h0" for at in there if apart[at]),
    )


def jpeg_uri(data: bytes) -> str:
    """A JPEG as it can stand in a page."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
