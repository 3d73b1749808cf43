"""What there is to say of each plate: its wells' values, what lies apart from the rest, what is set aside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phenomhpc.jobs.quality.limits import conditions_of, left_out
from phenomhpc.jobs.quality.measures import (
    Array,
    Measure,
    flagged,
    measures_of,
    medians_of,
    robust_z,
    well_medians,
    with_values,
)
from phenomhpc.plates import Well
from phenomhpc.progress import Progress

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Flag:
    """A value that lies apart.  measure: its place; value, usual (the plate's median), z: see measures.robust_z.

    sites: of single fields, where the well as a whole is as others are; () when it is the well's median.
    """

    well: Well
    measure: int
    value: float
    usual: float
    z: float
    sites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Fields of a well that a condition of the limits leaves out."""

    well: Well
    condition: int
    fields: int


@dataclass(frozen=True, kw_only=True)
class SetAside:
    """Fields of a plate that are not usable for one reason, in these wells."""

    status: str
    reason: str
    fields: int
    wells: tuple[Well, ...]


@dataclass(frozen=True, kw_only=True)
class PlateQuality:
    """One plate.  rows, columns: of the plate as it is made.

    values f64 (M, rows, columns): medians over a well's measured fields, NaN where there are none; usable, set_aside
    i64 (rows, columns): its fields.  first: well -> field_no of the field to show.  quartiles f64 (M, 3) of the wells.
    """

    plate: str
    rows: int
    columns: int
    values: Array
    usable: NDArray[np.int64]
    set_aside: NDArray[np.int64]
    first: Mapping[Well, int]
    quartiles: Array
    wells_apart: tuple[Flag, ...]
    fields_apart: tuple[Flag, ...]
    left_out: tuple[LeftOut, ...]
    fields_left_out: int
    reasons: tuple[SetAside, ...]

    @property
    def num_fields(self) -> int:
        return int(self.usable.sum() + self.set_aside.sum())

    @property
    def flagged_wells(self) -> frozenset[Well]:
        """Wells whose median lies apart in any measure."""
        return frozenset(flag.well for flag in self.wells_apart)

    @property
    def widespread(self) -> dict[int, int]:
        """Conditions that leave out fields of more than half of the usable wells, and of how many of them."""
        counts: dict[int, int] = {}
        for entry in self.left_out:
            counts[entry.condition] = counts.get(entry.condition, 0) + 1
        return {condition: wells for condition, wells in counts.items() if 2 * wells > len(self.first)}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """All plates looked at, in key order.  conditions: of the fixed limits, () when none were asked for or can be."""

    channels: tuple[str, ...]
    measures: tuple[Measure, ...]
    conditions: tuple[str, ...]
    plates: tuple[PlateQuality, ...]
    plates_apart: tuple[tuple[int, int, float], ...]  # (place in plates, measure, z of its median among the plates')


def quality_of(
    fields: pl.DataFrame,
    sizes: Mapping[str, tuple[int, int]],
    channels: Sequence[str],
    where: str,
    progress: Progress,
) -> Quality:
    """Look at the plates named in `sizes` (rows, columns).

    fields: as Snapshot.fields() gives them.  where: the fixed limits ("": none).  Raises UsageError for limits that are
    not understood.
    """
    import polars as pl

    fields = fields.filter(pl.col("plate").is_in(list(sizes)))
    measures = measures_of(fields, channels)
    conditions = conditions_of(where) if where else ()
    values = with_values(fields, measures)
    out = left_out(fields, conditions, channels)
    wells = well_medians(values, len(measures))
    rows_of = dict(fields.with_row_index("at").group_by("plate").agg(pl.col("at").sort()).iter_rows())
    plates = []
    with progress.stage("look at plates", len(sizes), "plates") as stage:
        for plate in sorted(sizes):
            rows = np.array(rows_of[plate])
            own, own_values = fields[rows], _matrix(values[rows], measures)
            plates.append(_plate(plate, sizes[plate], own, own_values, wells.filter(plate=plate), measures, out[rows]))
            stage.advance()
    return Quality(
        channels=tuple(channels),
        measures=measures,
        conditions=conditions,
        plates=tuple(plates),
        plates_apart=_plates_apart(plates, measures),
    )


def _matrix(values: pl.DataFrame, measures: Sequence[Measure]) -> Array:
    """The measures of a table as f64 (n, M), NaN for null."""
    columns = [values[str(place)].fill_null(np.nan).to_numpy() for place in range(len(measures))]
    return np.stack(columns, axis=1) if columns else np.empty((values.height, 0))


def _plate(
    plate: str,
    size: tuple[int, int],
    fields: pl.DataFrame,
    values: Array,
    wells: pl.DataFrame,
    measures: Sequence[Measure],
    out: NDArray[np.bool_],
) -> PlateQuality:
    y, x = wells["row"].to_numpy().astype(int) - 1, wells["column"].to_numpy().astype(int) - 1
    names = [Well(row=row + 1, column=column + 1) for row, column in zip(y.tolist(), x.tolist(), strict=True)]
    medians = _matrix(wells, measures)
    grid = np.full((len(measures), *size), np.nan)
    grid[:, y, x] = medians.T
    counts = np.zeros((2, *size), np.int64)
    counts[0, y, x], counts[1, y, x] = wells["usable"].to_numpy(), wells["set_aside"].to_numpy()
    apart, field_wells = _flags(names, medians, measures), _wells(fields)
    return PlateQuality(
        plate=plate,
        rows=size[0],
        columns=size[1],
        values=grid,
        usable=counts[0],
        set_aside=counts[1],
        first=_first(fields, field_wells),
        quartiles=_quartiles(medians),
        wells_apart=apart,
        fields_apart=_single_fields(
            fields, field_wells, values, measures, {(flag.well, flag.measure) for flag in apart}
        ),
        left_out=_left_out(field_wells, out),
        fields_left_out=int(out.any(axis=1).sum()),
        reasons=_reasons(fields),
    )


def _wells(fields: pl.DataFrame) -> list[Well]:
    """The well of each field; one object for each well, since a screen has a million fields."""
    made: dict[tuple[int, int], Well] = {}
    for place in fields.select("row", "column").unique().iter_rows():
        made[place] = Well(row=place[0], column=place[1])
    return [made[place] for place in fields.select("row", "column").iter_rows()]


def _flags(wells: Sequence[Well], medians: Array, measures: Sequence[Measure]) -> tuple[Flag, ...]:
    """The wells apart, the farthest first."""
    z, usual = robust_z(medians, measures), medians_of(medians)
    found = [
        Flag(well=wells[at], measure=place, value=medians[at, place], usual=usual[place], z=z[at, place])
        for at, place in np.argwhere(flagged(z, measures)).tolist()
    ]
    return tuple(sorted(found, key=lambda flag: -abs(flag.z)))


def _single_fields(
    fields: pl.DataFrame,
    wells: Sequence[Well],
    values: Array,
    measures: Sequence[Measure],
    known: set[tuple[Well, int]],
) -> tuple[Flag, ...]:
    """Of wells that as a whole are as others are the fields apart from the plate's other fields; the farthest stands for them."""
    z, usual = robust_z(values, measures), medians_of(values)
    names = _site_names(fields)
    groups: dict[tuple[Well, int], list[int]] = {}
    for at, place in np.argwhere(flagged(z, measures)).tolist():
        if (wells[at], place) not in known:
            groups.setdefault((wells[at], place), []).append(at)
    found = []
    for (well, place), members in groups.items():
        worst = max(members, key=lambda at: abs(z[at, place]))
        sites = tuple(names[at] for at in members)
        found.append(
            Flag(
                well=well, measure=place, value=values[worst, place], usual=usual[place], z=z[worst, place], sites=sites
            )
        )
    return tuple(sorted(found, key=lambda flag: -abs(flag.z)))


def _site_names(fields: pl.DataFrame) -> list[str]:
    """`site 2`, with timepoint and z plane where a plate has several of them."""
    parts = [[f"site {site}" for site in fields["site"].to_list()]]
    for column, short in (("timepoint", "t"), ("z", "z")):
        if fields[column].n_unique() > 1:
            parts.append([f"{short}{value}" for value in fields[column].to_list()])
    return [" ".join(words) for words in zip(*parts, strict=True)]


def _first(fields: pl.DataFrame, wells: Sequence[Well]) -> dict[Well, int]:
    """Of each well the field to show: first timepoint, first usable site, of its z planes the middle one."""
    groups: dict[Well, list[tuple[int, int, int, str, int]]] = {}
    rows = fields.select("timepoint", "site", "z", "field_no").iter_rows()
    for well, (timepoint, site, z, number) in zip(wells, rows, strict=True):
        if number is not None:
            groups.setdefault(well, []).append((timepoint or 0, site or 0, len(z or ""), z or "", number))
    chosen = {}
    for well, members in groups.items():
        members.sort()
        planes = [entry for entry in members if entry[:2] == members[0][:2]]
        chosen[well] = planes[len(planes) // 2][-1]
    return chosen


def _quartiles(medians: Array) -> Array:
    """f64 (M, 3): a quarter, half and three quarters of the wells lie below."""
    columns = [column[~np.isnan(column)] for column in medians.T]
    rows = [np.percentile(column, (25, 50, 75)) if column.size else np.full(3, np.nan) for column in columns]
    return np.array(rows).reshape(-1, 3)


def _left_out(wells: Sequence[Well], out: NDArray[np.bool_]) -> tuple[LeftOut, ...]:
    counts: dict[tuple[Well, int], int] = {}
    for at, condition in np.argwhere(out).tolist():
        counts[wells[at], condition] = counts.get((wells[at], condition), 0) + 1
    return tuple(LeftOut(well=well, condition=place, fields=number) for (well, place), number in sorted(counts.items()))


def _reasons(fields: pl.DataFrame) -> tuple[SetAside, ...]:
    """What is set aside, the most frequent reason first."""
    aside = fields.filter(fields["status"] != "ok")
    groups: dict[tuple[str, str], list[Well]] = {}
    for well, status, reason in zip(_wells(aside), aside["status"].to_list(), aside["reason"].to_list(), strict=True):
        groups.setdefault((status, reason or ""), []).append(well)
    found = [
        SetAside(status=status, reason=reason, fields=len(wells), wells=tuple(sorted(set(wells))))
        for (status, reason), wells in groups.items()
    ]
    return tuple(sorted(found, key=lambda entry: (-entry.fields, entry.status, entry.reason)))


def _plates_apart(plates: Sequence[PlateQuality], measures: Sequence[Measure]) -> tuple[tuple[int, int, float], ...]:
    """Plates whose median lies apart from those of the others, the farthest first."""
    medians = np.array([plate.quartiles[:, 1] for plate in plates]).reshape(len(plates), len(measures))
    z = robust_z(medians, measures)
    found = [(at, place, float(z[at, place])) for at, place in np.argwhere(flagged(z, measures)).tolist()]
    return tuple(sorted(found, key=lambda entry: -abs(entry[2])))
