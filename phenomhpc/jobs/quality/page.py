"""The page on quality, from a store: reads what the fields tables say and the wells' pictures, and composes it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from phenomhpc.jobs.quality.measures import BACKGROUND, FEWEST, FOCUS, LIMIT, NUCLEI, SATURATED, SIGNAL, robust_z
from phenomhpc.jobs.quality.overview import (
    apart_table,
    drift_views,
    grouped,
    is_flagged,
    measure_views,
    overview,
    reasons_table,
)
from phenomhpc.jobs.quality.pictures import CLOSE_PX, Montage, PlateCamera, shown_channels
from phenomhpc.jobs.quality.plates import PlateQuality, Quality
from phenomhpc.jobs.quality.words import aside_table, flagged_table, number, plural
from phenomhpc.plates import Well
from phenomhpc.progress import Progress
from phenomhpc.report import (
    PlateView,
    QualityPage,
    Scale,
    ValueMap,
    channel_colours,
    render_plate,
    render_quality,
)
from phenomhpc.store import ShardReader, Snapshot

# What a browser opens without waiting: some 100 plates of 384 wells and six channels.
MAX_BYTES = 48 * 2**20
MAX_PLATES = 200
MAX_THREADS = 8
# A closer look: so many of the wells farthest apart, beside so many that are as the others are.
CLOSER_APART, CLOSER_USUAL = 6, 2
# Ends of a map's colours, percentiles over the wells of all plates; focus and saturation from 0.
_ENDS = {FOCUS: (1.0, 99.0), SATURATED: (0.0, 99.5), BACKGROUND: (1.0, 99.0), SIGNAL: (1.0, 99.0), NUCLEI: (1.0, 99.0)}


@dataclass(frozen=True, kw_only=True)
class BuiltPage:
    """The page; how many of the plates it shows in full; what could not be read, one line each."""

    html: str
    shown: int
    unreadable: tuple[str, ...]


def build_page(
    snapshot: Snapshot, quality: Quality, made: str, progress: Progress, *, max_bytes: int = MAX_BYTES
) -> BuiltPage:
    """Compose the page.  Plates with most to look at come into it first, until it has `max_bytes` or MAX_PLATES plates.

    Memory: the page, and what pictures.PlateCamera takes.  A well whose pixels cannot be read is named on the page.
    """
    scales, views = _scales(quality), measure_views(quality.measures)
    order = sorted(range(len(quality.plates)), key=lambda at: (-_weight(quality, at), at))[:MAX_PLATES]
    parts: dict[int, str] = {}
    unreadable: list[str] = []
    size = 0
    wells = sum(len(quality.plates[at].first) for at in order)
    with ShardReader(snapshot.store, snapshot) as reader, progress.stage("look at wells", wells, "wells") as stage:
        camera = PlateCamera(reader, snapshot, min(MAX_THREADS, len(os.sched_getaffinity(0))))
        for at in order:
            if size >= max_bytes:
                left = len(order) - len(parts)
                stage.note(f"the page has {size / 2**20:.0f} MiB: {left} plates are in its overview only")
                break
            plate = quality.plates[at]
            montage = camera.montage(plate.first, plate.rows, plate.columns, stage)
            view = _plate_view(quality, at, scales, montage, camera)
            parts[at] = render_plate(view, views)
            size += len(parts[at])
            if montage is not None:
                unreadable += [f"{plate.plate}/{well.name}: {why}" for well, why in montage.unreadable.items()]
    shown = sorted(parts)
    page = _page(snapshot, quality, made, {quality.plates[at].plate for at in shown})
    return BuiltPage(
        html=render_quality(page, [parts[at] for at in shown]), shown=len(shown), unreadable=tuple(unreadable)
    )


def _weight(quality: Quality, at: int) -> int:
    plate = quality.plates[at]
    drifted = sum(1 for which, _, _ in quality.plates_apart if which == at)
    return len(plate.flagged_wells) + int(plate.set_aside.sum()) + len(plate.fields_apart) + drifted


def _scales(quality: Quality) -> tuple[Scale, ...]:
    """Of each measure one for all plates."""

    def scale(place: int) -> Scale:
        kind = quality.measures[place].kind
        start = [0.0] if kind == SATURATED else []
        values = np.concatenate([start, *(plate.values[place].ravel() for plate in quality.plates)])
        return Scale.of(values, _ENDS[kind], kind.least)

    return tuple(scale(place) for place in range(len(quality.measures)))


def _plate_view(
    quality: Quality, at: int, scales: Sequence[Scale], montage: Montage | None, camera: PlateCamera
) -> PlateView:
    plate = quality.plates[at]
    closer = _closer_wells(plate, quality)
    close = camera.closer(plate.first, [well for well, _ in closer]) if closer else b""
    return PlateView(
        plate=plate.plate,
        summary=_summary(plate),
        text=_plate_text(plate, quality, montage),
        tables=(*flagged_table(plate, quality), *aside_table(plate)),
        maps=tuple(
            (name, tuple(_map(plate, quality, place, scales[place]) for place in places))
            for name, places in grouped(quality.measures)
        ),
        usable=plate.usable,
        set_aside=plate.set_aside,
        montage=montage.jpeg if montage is not None else b"",
        closer=close,
        closer_text=f"The middle {CLOSE_PX} pixels of a field: wells that are as others are, and those farthest apart",
        closer_names=tuple((well.name, words) for well, words in closer),
        colours=_colours(quality.channels),
        is_flagged=is_flagged(quality, at),
        is_open=len(quality.plates) == 1,
    )


def _colours(channels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    shown = shown_channels(channels)
    return tuple(zip((channels[at] for at in shown), channel_colours(len(shown)), strict=True))


def _map(plate: PlateQuality, quality: Quality, place: int, scale: Scale) -> ValueMap:
    flags = np.zeros((plate.rows, plate.columns), bool)
    for flag in plate.wells_apart:
        if flag.measure == place:
            flags[flag.well.row - 1, flag.well.column - 1] = True
    kind = quality.measures[place].kind
    return ValueMap(
        measure=place,
        values=plate.values[place],
        flagged=flags,
        scale=scale,
        low=number(kind, scale.low),
        high=number(kind, scale.high),
    )


def _summary(plate: PlateQuality) -> str:
    parts = [f"{len(plate.first)} of {plate.rows * plate.columns} wells", plural(plate.num_fields, "field")]
    if plate.flagged_wells:
        parts.append(f"{plural(len(plate.flagged_wells), 'well')} flagged")
    if plate.fields_apart:
        parts.append(f"single fields of {plural(len({flag.well for flag in plate.fields_apart}), 'well')} apart")
    if plate.reasons:
        parts.append(f"{plural(int(plate.set_aside.sum()), 'field')} set aside")
    return " · ".join(parts)


def _plate_text(plate: PlateQuality, quality: Quality, montage: Montage | None) -> tuple[str, ...]:
    text = []
    if not plate.first:
        text.append("No field of this plate is usable.")
    elif quality.measures and np.isnan(plate.values).all():
        text.append(
            "Nothing was measured on this plate: it was converted with qc=false. Convert it again with qc=true."
        )
    for condition, wells in plate.widespread.items():
        text.append(
            f"{quality.conditions[condition]} does not hold in {wells} of {len(plate.first)} wells: "
            "a limit for other plates, or a plate to look at."
        )
    if montage is not None and montage.unreadable:
        well, why = next(iter(montage.unreadable.items()))
        text.append(f"{plural(len(montage.unreadable), 'picture')} could not be read, first {well.name}: {why}")
    return tuple(text)


def _closer_wells(plate: PlateQuality, quality: Quality) -> tuple[tuple[Well, str], ...]:
    """The wells farthest apart, and some that are as the others are, each with a word on why; () where none is apart."""
    found: dict[Well, str] = {}
    # First of each measure the farthest, so that eight wells of one fault do not hide another.
    heads = {flag.measure: flag for flag in reversed(plate.wells_apart)}
    for flag in (*sorted(heads.values(), key=lambda head: -abs(head.z)), *plate.wells_apart):
        measure = quality.measures[flag.measure]
        if flag.well in plate.first and flag.well not in found and len(found) < CLOSER_APART:
            found[flag.well] = f"{measure.label} {number(measure.kind, flag.value)}"
    if not found:
        return ()
    wells = [well for well in sorted(plate.first) if well not in plate.flagged_wells]
    values = np.array([plate.values[:, well.row - 1, well.column - 1] for well in wells]).reshape(len(wells), -1)
    z = np.nan_to_num(robust_z(values, quality.measures), nan=0.0)
    usual = np.argsort(np.abs(z).max(axis=1, initial=0.0), kind="stable")[:CLOSER_USUAL].tolist()
    return (*((wells[at], "as the others are") for at in usual), *found.items())


def _page(snapshot: Snapshot, quality: Quality, made: str, shown: set[str]) -> QualityPage:
    plates = quality.plates
    columns, rows = overview(quality, shown)
    num_flagged = sum(row.is_flagged for row in rows)
    notes = []
    if not quality.measures:
        notes.append(
            "The store holds no measures of quality: it was converted with qc=false, or by an older version. "
            "Convert it again with qc=true; montages and what is set aside are shown all the same."
        )
    if len(shown) < len(plates):
        notes.append(
            f"{len(shown)} of {len(plates)} plates are shown in full, those with most to look at; phenomhpc store qc "
            f"{snapshot.store.paths.root.name} --plate PLATE shows any other."
        )
    where = " and ".join(quality.conditions)
    left = sum(plate.fields_left_out for plate in plates)
    usable = sum(int(plate.usable.sum()) for plate in plates)
    text = [
        "Whatever has an orange frame lies far from the plate's other wells; colours mean the same on every plate, "
        "so that plates can be compared."
    ]
    if where:
        text.append(f'Training would leave out {left:,} of {usable:,} usable fields with data.where="{where}".')
    return QualityPage(
        title=f"Quality of {snapshot.store.paths.root.name}",
        lead=f"{plural(len(plates), 'plate')}, {num_flagged or 'none'} with something to look at.",
        made=f"{made}; snapshot {snapshot.digest[:12]}",
        facts=_facts(quality),
        text=tuple(text) if quality.measures else (),
        notes=tuple(notes),
        columns=columns,
        overview=rows,
        measures=measure_views(quality.measures),
        drifts=drift_views(quality),
        plates_apart=apart_table(quality),
        set_aside=reasons_table(quality),
        details=_DETAILS,
        sizes=tuple(sorted({(plate.rows, plate.columns) for plate in plates})),
    )


def _facts(quality: Quality) -> tuple[tuple[str, str], ...]:
    plates = quality.plates
    fields, aside = sum(plate.num_fields for plate in plates), sum(int(plate.set_aside.sum()) for plate in plates)
    facts = [
        ("plates", f"{len(plates):,}"),
        ("wells with images", f"{sum(len(plate.first) for plate in plates):,}"),
        ("fields", f"{fields:,}"),
        ("set aside", f"{aside:,} ({aside / max(fields, 1):.2%})"),
    ]
    if quality.measures:
        facts.append(("wells flagged", f"{sum(len(plate.flagged_wells) for plate in plates):,}"))
        facts.append(("channels", f"{len(quality.channels)}"))
    return tuple(facts)


_DETAILS = (
    "Focus is 1 - r(12 px) / r(1 px) of the autocorrelation, saturated the share of pixels at the camera's ceiling, "
    "background the 5th percentile, signal the 99.5th above it, nuclei the peaks of the DNA channel above Otsu's "
    "threshold. They were measured while the plates were converted, before pixels became 8 bits.",
    "A well's value is the median over its usable fields: sites, and z planes and timepoints where these are fields "
    "of their own. A montage shows of each well the first usable site, of a stack the middle plane, in false colours; "
    "contrast is one for a plate and channel.",
    f"A well is apart when its value is more than {LIMIT:g} robust deviations (1.4826 times the median absolute deviation) "
    "from the median of the plate's wells: focus below, saturated above, the others on either side; background and signal "
    "by their logarithms. What lies within 0.1 of focus, 0.5 % of pixels, 1.3 times the background, 1.6 times the signal "
    "or 5 nuclei is never apart. Single fields are held against the plate's other fields, plates' medians against those "
    f"of the other plates, in the same way. Of fewer than {FEWEST} nothing is said.",
    "The fixed limits are conditions of data.where, as training takes them; --where sets others. What they leave out is "
    "listed beside what is apart: a plate that is blurred everywhere has no well apart from the others.",
    "A map's colours span the 1st to the 99th percentile of all plates' wells (saturated: from 0); what lies "
    "beyond has the colour of the end.",
)
