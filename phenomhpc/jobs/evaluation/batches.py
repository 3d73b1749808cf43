"""Batch effects to look at: wells as points before and after alignment, and how much of the controls' variance batches explain."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.jobs.evaluation.groups import group_name
from phenomhpc.jobs.evaluation.held import pieces_of
from phenomhpc.jobs.evaluation.wells import Wells
from phenomhpc.maps import aggregate_blocks
from phenomhpc.maps.bootstrap import DRAWN_WELLS, keyed
from phenomhpc.maps.checks import Rows, read_rows
from phenomhpc.maps.moments import moments_of
from phenomhpc.report import Colouring, Section, scatter_figure, themed

Array = NDArray[np.float64]
MAX_POINTS = 4000  # wells that are drawn
MAX_PATHWAYS = 8  # groups with a colour of their own
BEFORE, AFTER = "before alignment", "after alignment"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Wells to be drawn: rows i64[m] of the table; stages: (name, points f64[m, 2]).

    explained: by stage, the share of the variance of control wells that lies between batches, None with a single batch
    shares: by stage, the share of the drawn wells' variance along the two components
    """

    rows: NDArray[np.intp]
    stages: tuple[tuple[str, Array], ...]
    explained: tuple[float | None, ...]
    shares: tuple[float, ...]


def look(wells: Wells, aligned: Rows | None, seed: int) -> Seen:
    """Two principal components of at most MAX_POINTS wells, of the features as they came and, if given, aligned."""
    rows = np.arange(len(wells.label))
    if len(rows) > MAX_POINTS:
        rows = np.sort(keyed(seed, DRAWN_WELLS).choice(rows, MAX_POINTS, replace=False))
    raw = read_rows(wells.features, rows)
    spread = raw.std(axis=0)
    # Features of different units: each counts the same.  Aligned ones are in units of the controls already.
    found: list[tuple[str, Array, Rows]] = [(BEFORE, raw / np.where(spread > 0, spread, 1.0), wells.features)]
    if aligned is not None:
        found.append((AFTER, read_rows(aligned, rows), aligned))
    drawn = [(name, *_components(chosen)) for name, chosen, _ in found]
    return Seen(
        rows=rows,
        stages=tuple((name, points) for name, points, _ in drawn),
        shares=tuple(share for _, _, share in drawn),
        explained=tuple(between_batches(features, wells.batch, wells.is_control) for _, _, features in found),
    )


def _components(features: Array) -> tuple[Array, float]:
    """The first two principal components f64[m, 2], and their share of the variance."""
    centred = features - features.mean(axis=0)
    is_wide = features.shape[0] < features.shape[1]
    # Of the smaller product: for a picture the digits that squaring costs do not matter, and it takes a tenth of the time.
    scatter = centred @ centred.T if is_wide else centred.T @ centred
    values, vectors = np.linalg.eigh(scatter)
    largest, top = values[::-1][:2].clip(min=0.0), vectors[:, ::-1][:, :2]
    points = np.zeros((len(features), 2))
    points[:, : top.shape[1]] = top * np.sqrt(largest) if is_wide else centred @ top
    total = float(np.trace(scatter))
    return points, float(largest.sum() / total) if total > 0 else 0.0


def between_batches(features: Rows, batch: list[str], is_control: NDArray[np.bool_]) -> float | None:
    """Share of the controls' variance that lies between batches (eta squared), the mean over features that vary."""
    controls = np.flatnonzero(is_control)
    names, counts = np.unique(np.array(batch)[controls], return_counts=True)
    if len(names) < 2 or len(controls) <= len(names):
        return None
    means, _ = aggregate_blocks(pieces_of(features, controls), batch, ~is_control)
    moments = moments_of((block for _, block in pieces_of(features, controls)), features.shape[1])
    total = moments.variance * len(controls)
    between = (counts[:, None] * (means - moments.mean) ** 2).sum(axis=0)
    largest = np.max([np.abs(block).max(axis=0) for _, block in pieces_of(features, controls)], axis=0)
    varies = total > 1e-12 * np.maximum(largest**2, 1e-300)
    return float((between[varies] / total[varies]).mean()) if varies.any() else None


def batches_section(wells: Wells, seen: Seen, labels: list[str], annotation: str, groups: list[int]) -> Section:
    """Wells coloured by plate, experiment and batch, as far as these differ, and by pathway.

    groups: of each label of the map, -1 for none
    """
    colourings = _colourings(wells, seen, labels, annotation, groups)
    facts = tuple(
        (f"controls' variance between batches, {name}", f"{share:.0%}")
        for (name, _), share in zip(seen.stages, seen.explained, strict=True)
        if share is not None
    )
    many = len(wells.label)
    drawn = f"{len(seen.rows):,} wells" if len(seen.rows) < many else f"all {many:,} wells"
    shares = ", ".join(f"{share:.0%} {name}" for (name, _), share in zip(seen.stages, seen.shares, strict=True))
    picture = themed(
        scatter_figure,
        seen.stages,
        colourings,
        name="wells",
        alt=f"Scatter of {drawn}, coloured by {', '.join(one.title for one in colourings)}. "
        + "; ".join(f"{name}: {value}" for name, value in facts),
        caption=f"Each point is a well ({drawn}), placed by the first two principal components (PCA), which hold "
        f"{shares} of the variance.",
    )
    return Section(
        title="Batch effects, before and after",
        text=(
            "Points of one plate should not lie together: where they do, the numbers tell plates apart and not "
            "biology. After alignment "
            "plates should mix, and colours of a pathway should gather.",
        ),
        facts=facts,
        pictures=(picture,),
        details=(
            "Principal components of the drawn wells, each stage on its own; features as they came are divided by their standard "
            "deviation first. A scatter of two components shows a small part of what there is.",
            "Controls' variance between batches: the sum of squares between the batches' means over the total, of "
            "control wells, the mean "
            "over features. Chance alone leaves (batches - 1) / (controls - 1).",
        ),
    )  # fmt: skip


def _colourings(
    wells: Wells, seen: Seen, labels: list[str], annotation: str, groups: list[int]
) -> tuple[Colouring, ...]:
    rows = seen.rows.tolist()
    said = {
        "plate": _plates(wells),
        "experiment": wells.experiment,
        "batch": wells.batch_named,
        "batch of the alignment": wells.batch,
    }
    found: list[Colouring] = []
    for title, values in said.items():
        one = _by_name(title, [values[row] for row in rows])
        # Another name of what is shown already, or of all wells, would be a panel that says nothing.
        if len(one.names) > 1 and not any(_same_parts(one.code, other.code) for other in found):
            found.append(one)
    found.append(
        _by_pathway([wells.label[row] for row in rows], wells.is_control[seen.rows], labels, annotation, groups)
    )
    return tuple(found)


def _plates(wells: Wells) -> list[str]:
    """Plates by name; with their experiment where two experiments have a plate of one name."""
    both = list(zip(wells.experiment, wells.plate, strict=True))
    if len(set(both)) > len(set(wells.plate)):
        return [f"{experiment}/{plate}" if plate else "" for experiment, plate in both]
    return wells.plate


def _same_parts(code: NDArray[np.int64], other: NDArray[np.int64]) -> bool:
    """Whether two colourings part the points in the same way."""
    pairs = len(set(zip(code.tolist(), other.tolist(), strict=True)))
    return pairs == len(set(code.tolist())) == len(set(other.tolist()))


def _by_name(title: str, values: list[str]) -> Colouring:
    """Wells without a value are of no colour."""
    names = sorted({value for value in values if value})
    place = {name: number for number, name in enumerate(names)}
    return Colouring(
        title=title, names=tuple(names), code=np.array([place.get(value, -1) for value in values], dtype=np.int64)
    )


def _by_pathway(
    values: list[str], is_control: NDArray[np.bool_], labels: list[str], annotation: str, groups: list[int]
) -> Colouring:
    """The largest groups in colours; where there are none, controls against all others."""
    if not annotation:
        return Colouring(title="control wells", names=("controls",), code=np.where(is_control, 0, -1).astype(np.int64))
    sizes = Counter(group for group in groups if group >= 0)
    shown = [group for group, _ in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))[:MAX_PATHWAYS]]
    of_label = dict(zip(labels, groups, strict=True))
    place = {group: number for number, group in enumerate(shown)}
    names = [group_name([label for label, of in zip(labels, groups, strict=True) if of == group]) for group in shown]
    code = [place.get(of_label.get(value, -1), -1) for value in values]
    return Colouring(title=f"pathway ({annotation})", names=tuple(names), code=np.array(code, dtype=np.int64))
