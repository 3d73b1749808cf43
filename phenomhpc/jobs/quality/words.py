"""Numbers and findings in words, the same on the page and in its tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from phenomhpc.jobs.quality.measures import FOCUS, SATURATED, Kind, Measure
from phenomhpc.jobs.quality.plates import Flag, PlateQuality, Quality
from phenomhpc.plates import Well
from phenomhpc.report import Table

MAX_ROWS = 60  # of a table of one plate
MAX_WELLS = 16  # named one by one


def number(kind: Kind, value: float) -> str:
    """A value as people read it: shares in percent, levels with three digits or whole."""
    if math.isnan(value):
        return "–"
    if kind == SATURATED:
        return f"{value * 100:.2g} %" if value else "0 %"
    if kind == FOCUS:
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}"


def wells_in_words(wells: Sequence[Well]) -> str:
    named = ", ".join(well.name for well in wells[:MAX_WELLS])
    return named if len(wells) <= MAX_WELLS else f"{named} and {len(wells) - MAX_WELLS} more"


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def flag_row(flag: Flag, measures: Sequence[Measure]) -> tuple[str, str, str]:
    """well, what, why."""
    measure = measures[flag.measure]
    side = "below" if flag.z < 0 else "above"
    what = measure.label + (f", {', '.join(flag.sites)}" if flag.sites else "")
    usual = f"{'fields' if flag.sites else 'wells'} of the plate {number(measure.kind, flag.usual)}"
    return (
        flag.well.name,
        what,
        f"{number(measure.kind, flag.value)}: {side} the others ({usual}, robust z {flag.z:+.1f})",
    )


def flagged_tables(plate: PlateQuality, quality: Quality) -> tuple[Table, ...]:
    """Wells apart, single fields apart, and wells that the fixed limits leave out; each with its reason."""
    measures = quality.measures
    limits = [
        (entry.well.name, quality.conditions[entry.condition],
         f"does not hold for {entry.fields} of {plate.usable[entry.well.row - 1, entry.well.column - 1]} usable fields")
        for entry in plate.left_out if entry.condition not in common_conditions(plate, quality)
    ]  # fmt: skip
    parts = (
        ("Wells apart from the plate's others", [flag_row(flag, measures) for flag in plate.wells_apart]),
        (
            "Single fields apart, in wells that are as others are",
            [flag_row(flag, measures) for flag in plate.fields_apart],
        ),
        ("Left out by the fixed limits", limits),
    )
    return tuple(_cut(caption, ("well", "what", "why"), rows) for caption, rows in parts if rows)


def common_conditions(plate: PlateQuality, quality: Quality) -> dict[int, int]:
    """Conditions that leave out fields of more than half of the plate's wells, and of how many: a word on the plate, no rows."""
    counts = dict.fromkeys(range(len(quality.conditions)), 0)
    for entry in plate.left_out:
        counts[entry.condition] += 1
    return {place: wells for place, wells in counts.items() if 2 * wells > len(plate.first) and wells > 1}


def aside_table(plate: PlateQuality) -> tuple[Table, ...]:
    """What of a plate is set aside, by reason."""
    rows = [(entry.status, entry.reason, entry.fields, wells_in_words(entry.wells)) for entry in plate.reasons]
    return (_cut("Set aside", ("status", "reason", "fields", "wells"), rows),) if rows else ()


def _cut(caption: str, columns: tuple[str, ...], rows: Sequence[tuple[str | int, ...]]) -> Table:
    """A table of the first rows; its caption says how many there are."""
    more = (
        f" ({len(rows):,}; the first {MAX_ROWS} here, all with --json)" if len(rows) > MAX_ROWS else f" ({len(rows)})"
    )
    return Table(caption=caption + more, columns=columns, rows=tuple(rows[:MAX_ROWS]), numeric=False)
