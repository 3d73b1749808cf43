"""What is looked at: each measure of quality of each channel, and nuclei; how far apart a value must be to be flagged.

Values in, values out: no files, no words for a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

Array = NDArray[np.float64]
# A median absolute deviation of normal values is their standard deviation by this.
MAD_TO_DEVIATION = 1.4826
LIMIT = 5.0  # robust z beyond which a value is flagged
# Of fewer values nobody can say what is usual.
FEWEST = 8


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A measure of quality as data.where names it.

    low, high: is a value suspect that lies so far below, above the others?  ratio: is it held against them by its logarithm (of
    levels, what counts is how many times brighter one is)?  floor: a smaller spread is taken as so large, or an even plate
    would have outliers that no eye can tell.  least: what colours and axes span at the least.
    """

    name: str
    unit: str
    low: bool
    high: bool
    floor: float
    least: float
    ratio: bool = False

    @property
    def column(self) -> str:
        return f"qc_{self.name}"


# LIMIT times the floor is never flagged: 0.1 of focus, 0.5 % of pixels, 1.3 and 1.6 times as bright, 5 nuclei.
FOCUS = Kind(name="focus", unit="0 blurred to 1", low=True, high=False, floor=0.02, least=0.1)
SATURATED = Kind(name="saturated", unit="share of pixels", low=False, high=True, floor=0.001, least=0.01)
BACKGROUND = Kind(name="background", unit="grey levels", low=True, high=True, floor=0.05, least=2.0, ratio=True)
SIGNAL = Kind(name="signal", unit="grey levels above it", low=True, high=True, floor=0.1, least=2.0, ratio=True)
NUCLEI = Kind(name="nuclei", unit="in a field", low=True, high=True, floor=1.0, least=2.0)
OF_CHANNELS = (FOCUS, SATURATED, BACKGROUND, SIGNAL)


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One kind of one channel (its place in the store's order and its name), or of the field as a whole (None, "")."""

    kind: Kind
    channel: int | None = None
    channel_name: str = ""

    @property
    def label(self) -> str:
        return f"{self.kind.name} {self.channel_name}".strip()


def measures_of(fields: pl.DataFrame, channels: Sequence[str]) -> tuple[Measure, ...]:
    """The measures that have a value in any of the fields, channel by channel; none of a store converted without them."""
    measured = {name for name in fields.columns if name.startswith("qc_") and fields[name].null_count() < fields.height}
    of_channels = [
        Measure(kind=kind, channel=place, channel_name=name)
        for place, name in enumerate(channels)
        for kind in OF_CHANNELS
        if kind.column in measured
    ]
    return (*of_channels, *([Measure(kind=NUCLEI)] if NUCLEI.column in measured else []))


def with_values(fields: pl.DataFrame, measures: Sequence[Measure]) -> pl.DataFrame:
    """plate, row, column, usable (is the status ok) and the measures as columns "0", "1", ... f64; null: not measured."""
    import polars as pl

    def value(measure: Measure) -> pl.Expr:
        column = pl.col(measure.kind.column)
        one = column if measure.channel is None else column.list.get(measure.channel, null_on_oob=True)
        return one.cast(pl.Float64)

    values = [value(measure).alias(str(place)) for place, measure in enumerate(measures)]
    return fields.select("plate", "row", "column", (pl.col("status") == "ok").alias("usable"), *values)


def well_medians(values: pl.DataFrame, num_measures: int) -> pl.DataFrame:
    """One row per plate, row and column: usable and set_aside count its fields, "0", "1", ... are medians over the measured."""
    import polars as pl

    counts = (pl.col("usable").sum().cast(pl.Int64), (~pl.col("usable")).sum().cast(pl.Int64).alias("set_aside"))
    medians = [pl.col(str(place)).median() for place in range(num_measures)]
    return values.group_by("plate", "row", "column").agg(*counts, *medians).sort("plate", "row", "column")


def medians_of(values: Array) -> Array:
    """Median of each column f64 (n, M) -> (M,), NaN left out; NaN where nothing is left."""
    columns = [column[~np.isnan(column)] for column in values.T]
    return np.array([np.median(column) if column.size else np.nan for column in columns])


def robust_z(values: Array, measures: Sequence[Measure]) -> Array:
    """(value - median) / (1.4826 MAD) of each column f64 (n, M), of logarithms where the kind says so, the spread no smaller than
    the kind's floor; NaN: too few values to tell.

    Iglewicz and Hoaglin, How to Detect and Handle Outliers (ASQC, 1993).
    """
    ratios = np.array([measure.kind.ratio for measure in measures], bool)
    compared = np.where(ratios, np.log(np.maximum(values, 1.0)), values)
    centre = medians_of(compared)
    spread = MAD_TO_DEVIATION * medians_of(np.abs(compared - centre))
    z: Array = (compared - centre) / np.maximum(spread, np.array([measure.kind.floor for measure in measures]))
    z[:, np.count_nonzero(~np.isnan(values), axis=0) < FEWEST] = np.nan
    return z


def flagged(z: Array, measures: Sequence[Measure], limit: float = LIMIT) -> NDArray[np.bool_]:
    """bool (n, M): where a value lies so far on a side that is suspect."""
    low = np.array([measure.kind.low for measure in measures], bool)
    high = np.array([measure.kind.high for measure in measures], bool)
    with np.errstate(invalid="ignore"):
        found: NDArray[np.bool_] = ((z < -limit) & low) | ((z > limit) & high)
    return found
