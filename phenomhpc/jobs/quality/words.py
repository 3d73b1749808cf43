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
MAX_REASONS = 6  # of one well


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


def flag_words(flag: Flag, measures: Sequence[Measure]) -> str:
    """What is apart, by how much, from what."""
    measure = measures[flag.measure]
    value, usual = number(measure.kind, flag.value), number(measure.kind, flag.usual)
    sites = f" at {', '.join(flag.sites)}" if flag.sites else ""
    z = f"{flag.z:+.1f}".replace("-", "−")
    return f"{measure.label} {value}{sites} (plate {usual}, z {z})"


def flagged_table(plate: PlateQuality, quality: Quality) -> tuple[Table, ...]:
    """One row for each well with something apart or left out, the farthest apart first; () where there is none."""
    columns: tuple[dict[Well, list[str]], ...] = ({}, {}, {})
    for column, flags in ((0, plate.wells_apart), (1, plate.fields_apart)):
        for flag in flags:
            columns[column].setdefault(flag.well, []).append(flag_words(flag, quality.measures))
    for entry in plate.left_out:
        if entry.condition not in plate.widespread:
            usable = plate.usable[entry.well.row - 1, entry.well.column - 1]
            words = f"{quality.conditions[entry.condition]} ({entry.fields} of {plural(int(usable), 'field')})"
            columns[2].setdefault(entry.well, []).append(words)
    wells = list(dict.fromkeys(well for column in columns for well in column))
    if not wells:
        return ()
    rows = [(well.name, *(_listed(column.get(well, [])) for column in columns)) for well in wells]
    heads = ("well", "apart from the plate's other wells", "single fields apart", "left out by limits")
    kept = [0, *(place for place, column in enumerate(columns, 1) if column)]
    shown = [tuple(row[place] for place in kept) for row in rows]
    return (_cut("Wells to look at", tuple(heads[place] for place in kept), shown),)


def _listed(parts: Sequence[str]) -> str:
    more = len(parts) - MAX_REASONS
    return "; ".join(parts[:MAX_REASONS]) + (f"; and {more} more" if more > 0 else "")


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
