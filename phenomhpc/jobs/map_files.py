"""A map that an evaluation left: of a run, or of the folder that holds its files."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.embed.table import feature_columns
from phenomhpc.errors import UsageError
from phenomhpc.jobs.base import Table
from phenomhpc.jobs.evaluation.lookup import known_pairs
from phenomhpc.maps import RecallDifference, compare_recalls
from phenomhpc.maps.benchmark import THRESHOLDS
from phenomhpc.maps.relate import unit_rows
from phenomhpc.maps.tails import Threshold
from phenomhpc.runs import RunPaths, find_run

MAX_SUGGESTED = 5
LABEL = "label"


@dataclass(frozen=True, kw_only=True)
class MapFiles:
    """profiles: f64[g, d], one per label; relations: known pairs with both ends in the map, by annotation.

    thresholds: those that its evaluation scored it by, () where evaluation.json is not beside it
    """

    name: str
    labels: list[str]
    profiles: NDArray[np.float64]
    relations: dict[str, list[tuple[str, str]]]
    noun: str
    thresholds: tuple[Threshold, ...]


def open_map(name: str, runs: Path) -> MapFiles:
    """The map of a run of evaluate (its ID, the beginning of one, `last`), or of a folder with a map.parquet.

    Raises UsageError where there is none.
    """
    paths = RunPaths(Path(name)) if (Path(name) / "map.parquet").is_file() else find_run(runs, name, kind="evaluate")
    if not paths.map.is_file():
        raise UsageError(f"map {name}: no {paths.map.name} in {paths.root}; name a finished run of evaluate")
    frame = pl.read_parquet(paths.map)
    if LABEL not in frame.columns:
        raise UsageError(f"map {paths.map}: no column {LABEL}; it is no map of an evaluation")
    evaluation = _evaluation(paths)
    relations: dict[str, list[tuple[str, str]]] = {}
    if paths.relations.is_file():
        for annotation, first, second in pl.read_parquet(paths.relations).iter_rows():
            relations.setdefault(annotation, []).append((first, second))
    return MapFiles(
        name=paths.root.absolute().name,
        labels=[str(label) for label in frame[LABEL]],
        profiles=frame.select(feature_columns(frame)).to_numpy().astype(np.float64),
        relations=relations,
        noun=str(evaluation.get("noun", "label")),
        thresholds=tuple(dict.fromkeys((row["lo"], row["hi"]) for row in evaluation.get("recalls", ()))),
    )


def _evaluation(paths: RunPaths) -> dict[str, Any]:
    """evaluation.json, {} for a folder that holds a map alone."""
    try:
        value = json.loads(paths.evaluation.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UsageError(f"map {paths.evaluation}: is no JSON ({error}); run evaluate again, or remove it") from error
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """One neighbour: its cosine, and the annotations that know the pair."""

    label: str
    cosine: float
    known: tuple[str, ...]


def query(found: MapFiles, label: str, top: int) -> tuple[list[Neighbour], list[Neighbour]]:
    """The `top` most alike of a label, best first, and the `top` most opposite.  Raises UsageError for an unknown label."""
    if label not in found.labels:
        raise UsageError(f"{found.noun} {label}: not in the map {found.name}; {_suggested(found, label)}")
    row = found.labels.index(label)
    unit = unit_rows(found.profiles, found.labels)
    cosines = unit @ unit[row]
    others = np.array([place for place in range(len(cosines)) if place != row], dtype=np.int64)
    order = others[np.argsort(-cosines[others], kind="stable")]
    known = known_pairs(found.labels, found.relations)
    bits = known.bits(np.full(len(cosines), row, dtype=np.int64), np.arange(len(cosines), dtype=np.int64))

    def told(place: int) -> Neighbour:
        names = tuple(name for bit, name in enumerate(known.names) if bits[place] >> bit & 1)
        return Neighbour(label=found.labels[place], cosine=float(cosines[place]), known=names)

    return [told(place) for place in order[:top]], [told(place) for place in order[::-1][:top]]


def _suggested(found: MapFiles, label: str) -> str:
    folded = {name.casefold(): name for name in found.labels}
    near = difflib.get_close_matches(label.casefold(), list(folded), MAX_SUGGESTED, 0.5)
    begins = [name for name in folded if name.startswith(label.casefold()) and name not in near]
    names = [folded[name] for name in [*near, *sorted(begins)]][:MAX_SUGGESTED]
    return f"did you mean {', '.join(names)}?" if names else f"it has {len(found.labels)}, such as {found.labels[0]}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Recall of two maps over the pairs and labels that both have.  rows: one per annotation and thresholds."""

    first: str
    second: str
    rows: tuple[dict[str, Any], ...]


def compare(first: MapFiles, second: MapFiles, *, bootstrap: int, seed: int) -> Comparison:
    """Paired: each pair is asked of both maps, by the thresholds that both were evaluated by.

    Raises UsageError where the maps share no annotation, know different pairs, or were evaluated by other thresholds.
    """
    shared = [name for name in first.relations if name in second.relations]
    if not shared:
        raise UsageError(
            f"maps compare: {first.name} knows {', '.join(first.relations) or 'no relations'}, {second.name} "
            f"{', '.join(second.relations) or 'none'}; evaluate both with the same annotations"
        )
    both = set(first.labels) & set(second.labels)
    for name in shared:
        ours, theirs = (_within(one.relations[name], both) for one in (first, second))
        if ours != theirs:
            raise UsageError(
                f"maps compare: {name} has other pairs in {first.name} than in {second.name} ({len(ours)} and "
                f"{len(theirs)} among the "
                "labels that both have); evaluate both with the same annotations"
            )
    found = compare_recalls(
        first.profiles,
        first.labels,
        second.profiles,
        second.labels,
        {name: first.relations[name] for name in shared},
        thresholds=_shared_thresholds(first, second),
        bootstrap=bootstrap,
        seed=seed,
    )
    rows = tuple(_row(name, one) for name, differences in found.items() for one in differences)
    return Comparison(first=first.name, second=second.name, rows=rows)


def _row(annotation: str, one: RecallDifference) -> dict[str, Any]:
    return {
        "annotation": annotation,
        "pairs": one.num_pairs,
        "labels": one.num_labels,
        "lo": one.lo,
        "hi": one.hi,
        "first": one.recall,
        "second": one.other_recall,
        "difference": one.difference,
        "ci_low": one.ci_low,
        "ci_high": one.ci_high,
    }


def _shared_thresholds(first: MapFiles, second: MapFiles) -> Sequence[Threshold]:
    """Those of both evaluations, in the first one's order; those of one where the other has none; the usual ones of none."""
    if not (first.thresholds and second.thresholds):
        return first.thresholds or second.thresholds or THRESHOLDS
    shared = [one for one in first.thresholds if one in second.thresholds]
    if not shared:
        told = [
            f"{one.name} by " + " and ".join(f"{lo:g}, {hi:g}" for lo, hi in one.thresholds) for one in (first, second)
        ]
        raise UsageError(
            f"maps compare: {told[0]}, {told[1]}: no thresholds in common; evaluate both with the same thresholds"
        )
    return shared


def _within(pairs: list[tuple[str, str]], labels: set[str]) -> set[tuple[str, str]]:
    return {(min(pair), max(pair)) for pair in pairs if pair[0] in labels and pair[1] in labels}


def comparison_table(found: Comparison) -> Table:
    """For a person: the difference with its interval, and whether it can be told from none."""
    lines = []
    for row in found.rows:
        interval, verdict = "", "-"
        if row["ci_low"] is not None:
            interval = f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
            better = found.second if row["ci_low"] > 0 else found.first if row["ci_high"] < 0 else ""
            verdict = f"{better} is better" if better else "no difference seen"
        lines.append(
            (row["annotation"], row["pairs"], f"{row['lo']:g}, {row['hi']:g}", row["first"], row["second"],
             f"{row['difference']:+.3f}{interval}", verdict)
        )  # fmt: skip
    return Table(
        title=f"Recall of {found.first} and {found.second}, over the same pairs [95 % interval of the difference]",
        columns=("annotation", "pairs", "thresholds", found.first, found.second, "difference", ""),
        rows=tuple(lines),
    )


def neighbour_table(found: MapFiles, label: str, sides: tuple[list[Neighbour], list[Neighbour]]) -> Table:
    """Most alike and most opposite beside each other."""
    rows = tuple(
        (
            near.label,
            f"{near.cosine:+.3f}",
            ", ".join(near.known),
            far.label,
            f"{far.cosine:+.3f}",
            ", ".join(far.known),
        )
        for near, far in zip(*sides, strict=True)
    )
    return Table(
        title=f"{label} in {found.name}, a map of {len(found.labels):,} {found.noun}s",
        columns=("most alike", "cosine", "known from", "most opposite", "cosine", "known from"),
        rows=rows,
    )
