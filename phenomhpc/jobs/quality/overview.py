"""All plates at once: the overview's rows, how measures move from plate to plate, what is set aside and why."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from phenomhpc.jobs.base import kind_of_reason
from phenomhpc.jobs.quality.measures import (
    BACKGROUND,
    FOCUS,
    NUCLEI,
    SATURATED,
    SIGNAL,
    Array,
    Kind,
    Measure,
    medians_of,
)
from phenomhpc.jobs.quality.plates import PlateQuality, Quality
from phenomhpc.jobs.quality.words import number, plural
from phenomhpc.report import DriftView, MeasureView, OverviewCell, OverviewRow, Scale, Table

MAX_REASONS = 40


def grouped(measures: Sequence[Measure]) -> list[tuple[str, list[int]]]:
    """The measures' places by row of a grid of maps: each channel's own, then the field's."""
    rows: dict[str, list[int]] = {}
    for place, measure in enumerate(measures):
        rows.setdefault(measure.channel_name or "Whole field", []).append(place)
    return list(rows.items())


def measure_views(measures: Sequence[Measure]) -> tuple[MeasureView, ...]:
    return tuple(
        MeasureView(
            row=measure.channel_name or "Whole field",
            column=measure.kind.name,
            unit="% of pixels" if measure.kind == SATURATED else measure.kind.unit,
            percent=measure.kind == SATURATED,
        )
        for measure in measures
    )


def drift_views(quality: Quality) -> tuple[tuple[str, tuple[DriftView, ...]], ...]:
    """Quartiles of each measure over the plates; () for a single plate."""
    if len(quality.plates) < 2:
        return ()
    apart = {(plate, measure) for plate, measure, _ in quality.plates_apart}

    def view(place: int) -> DriftView:
        quartiles = np.array([plate.quartiles[place] for plate in quality.plates])
        kind = quality.measures[place].kind
        scale = Scale.of(quartiles, (0.0, 100.0), kind.least)
        flags = np.array([(at, place) in apart for at in range(len(quality.plates))])
        return DriftView(
            measure=place,
            quartiles=quartiles,
            apart=flags,
            scale=scale,
            low=number(kind, scale.low),
            high=number(kind, scale.high),
        )

    return tuple((name, tuple(view(place) for place in places)) for name, places in grouped(quality.measures))


def overview(quality: Quality, shown: Collection[str]) -> tuple[tuple[str, ...], tuple[OverviewRow, ...]]:
    """Columns and rows.  shown: the plates that stand further down the page."""
    columns = ["plate", "fields", "set aside", "wells flagged", "single fields"]
    if quality.conditions:
        columns.append("left out by limits")
    kinds = [kind for kind in _EXTREME if any(measure.kind == kind for measure in quality.measures)]
    if len(quality.plates) == 1:
        kinds = [kind for kind in kinds if kind not in (BACKGROUND, SIGNAL)]
    columns += [_EXTREME[kind][0] for kind in kinds]
    medians = np.array([plate.quartiles[:, 1] for plate in quality.plates]).reshape(len(quality.plates), -1)
    usual = medians_of(medians)
    apart = {(plate, measure) for plate, measure, _ in quality.plates_apart}
    rows = []
    for at, plate in enumerate(quality.plates):
        flags = len(plate.flagged_wells)
        aside = int(plate.set_aside.sum())
        cells = [
            _count(plate.num_fields),
            _count(aside, warn=aside > 0),
            _count(flags, warn=flags > 0),
            _count(len(plate.fields_apart)),
        ]
        if quality.conditions:
            cells.append(_count(plate.fields_left_out, warn=bool(plate.widespread)))
        for kind in kinds:
            places = [place for place, measure in enumerate(quality.measures) if measure.kind == kind]
            warn = any((at, place) in apart for place in places)
            cells.append(_extreme(kind, quality.measures, places, medians[at], usual, warn=warn))
        rows.append(
            OverviewRow(
                plate=plate.plate, cells=tuple(cells), shown=plate.plate in shown, is_flagged=_asks(plate, at, apart)
            )
        )
    return tuple(columns), tuple(rows)


def _asks(plate: PlateQuality, at: int, apart: set[tuple[int, int]]) -> bool:
    """Is there anything to look at on the plate?"""
    return bool(
        plate.flagged_wells
        or plate.fields_apart
        or plate.reasons
        or plate.widespread
        or any(which == at for which, _ in apart)
    )


def is_flagged(quality: Quality, at: int) -> bool:
    """Is there anything to look at on the plate at this place?"""
    return _asks(quality.plates[at], at, {(plate, measure) for plate, measure, _ in quality.plates_apart})


def _count(value: int, *, warn: bool = False) -> OverviewCell:
    return OverviewCell(text=f"{value:,}", warn=warn, order=value)


def _relative(median: Array, usual: Array) -> Array:
    """How far a plate is from the plates' median, as a share of it."""
    return (median - usual) / np.maximum(np.abs(usual), 1e-9)


# What a column says of several channels: the one most in need of a look.
Pick = Callable[[Array, Array], int]
_EXTREME: dict[Kind, tuple[str, Pick]] = {
    FOCUS: ("focus, lowest", lambda median, usual: int(np.nanargmin(median))),
    SATURATED: ("saturated, highest", lambda median, usual: int(np.nanargmax(median))),
    BACKGROUND: (
        "background to other plates",
        lambda median, usual: int(np.nanargmax(np.abs(_relative(median, usual)))),
    ),
    SIGNAL: ("signal to other plates", lambda median, usual: int(np.nanargmax(np.abs(_relative(median, usual))))),
    NUCLEI: ("nuclei", lambda median, usual: 0),
}


def _extreme(
    kind: Kind, measures: Sequence[Measure], places: Sequence[int], medians: Array, usual: Array, *, warn: bool
) -> OverviewCell:
    """The plate's median of the channel that the column is about, and that channel's name."""
    own, others = medians[list(places)], usual[list(places)]
    if np.isnan(own).all():
        return OverviewCell(text="–", order=-1.0)
    at = _EXTREME[kind][1](own, others)
    name, value = measures[places[at]].channel_name, float(own[at])
    if kind not in (BACKGROUND, SIGNAL):
        return OverviewCell(text=number(kind, value), small=name if value else "", warn=warn, order=value)
    away = float(_relative(own, others)[at])
    shown = f"{away:+.0%}".replace("-", "−")
    return OverviewCell(text=shown, small=f"{name} {number(kind, value)}", warn=warn, order=abs(away))


def apart_table(quality: Quality) -> tuple[Table, ...]:
    """Plates whose median is apart from the others', the farthest first."""
    if not quality.plates_apart:
        return ()
    medians = np.array([plate.quartiles[:, 1] for plate in quality.plates])
    usual = medians_of(medians)
    rows = []
    for at, place, z in quality.plates_apart[:MAX_REASONS]:
        measure = quality.measures[place]
        value, centre = (number(measure.kind, float(of)) for of in (medians[at, place], usual[place]))
        why = f"{value}: {'below' if z < 0 else 'above'} the other plates ({centre}, robust z {z:+.1f})"
        rows.append((quality.plates[at].plate, measure.label, why))
    return (
        Table(
            caption=f"Plates apart from the others ({len(quality.plates_apart)})",
            columns=("plate", "what", "why"),
            rows=tuple(rows),
            numeric=False,
        ),
    )


def reasons_table(quality: Quality) -> tuple[Table, ...]:
    """What is set aside on all plates, by reason; what differs from file to file is left out of the reasons."""
    fields: dict[tuple[str, str], int] = {}
    plates: dict[tuple[str, str], set[str]] = {}
    for plate in quality.plates:
        for entry in plate.reasons:
            key = entry.status, kind_of_reason(entry.reason)
            fields[key] = fields.get(key, 0) + entry.fields
            plates.setdefault(key, set()).add(plate.plate)
    if not fields:
        return ()
    ranked = sorted(fields, key=lambda key: (-fields[key], key))
    rows = tuple(
        (status, reason, fields[status, reason], _plates_in_words(sorted(plates[status, reason])))
        for status, reason in ranked[:MAX_REASONS]
    )
    total = plural(sum(fields.values()), "field")
    more = "" if len(ranked) <= MAX_REASONS else f", the {MAX_REASONS} most frequent of {len(ranked)} reasons"
    return (
        Table(
            caption=f"{total} set aside{more}",
            columns=("status", "reason", "fields", "plates"),
            rows=rows,
            numeric=False,
        ),
    )


def _plates_in_words(plates: Sequence[str]) -> str:
    return ", ".join(plates) if len(plates) <= 4 else f"{', '.join(plates[:3])} and {len(plates) - 3} more"


__all__ = [
    "apart_table", "drift_views", "grouped", "is_flagged", "measure_views", "overview", "reasons_table",
]  # fmt: skip
