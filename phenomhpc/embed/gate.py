"""The parity gate: whatever is not fp32 torch is held against it on some wells before it may embed.

Two figures decide: the least cosine of a well's embedding to that of fp32 torch, and how far recall moves.  Recall is that of
maps (`relationship_recall`) over pairs of the sample's wells that belong together, wells being centred on the sample's mean: else
all cosines lie near 1.  It is the mean over thresholds (t, 1 - t) for t in 0.01, 0.02 ... 0.25, since of a few hundred pairs a
single one that crosses a single threshold would be more than a tenth of a point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from phenomhpc.embed.table import OK
from phenomhpc.embed.wells import FieldCrops, PlateWells
from phenomhpc.errors import UsageError
from phenomhpc.maps import relationship_recall

THRESHOLDS = tuple((hundredths / 100, 1 - hundredths / 100) for hundredths in range(1, 26))
# What may make a pair of wells, the first that makes enough of them and not nearly all.
RELATIONS = ("perturbation", "gene", "plate", "row", "column")
MIN_PAIRS = 3
MAX_SHARE = 0.5
WELLS_OF_PLATE = 8
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """A backend against fp32 torch.

    worst: the well with the least cosine; relation: what the pairs have in common, "" where no pair could be made
    reference_recall, recall: of fp32 torch and of the backend, shares; None where no pair could be made
    """

    num_wells: int
    num_crops: int
    min_cosine: float
    worst: str
    relation: str
    num_pairs: int
    reference_recall: float | None
    recall: float | None

    @property
    def recall_change(self) -> float | None:
        """None where no pair could be made."""
        if self.recall is None or self.reference_recall is None:
            return None
        return abs(self.recall - self.reference_recall)

    def words(self) -> str:
        recall = (
            f"recall not looked at, since no relation ({', '.join(RELATIONS)}) makes {MIN_PAIRS} pairs of these wells"
        )
        if self.relation:
            recall = f"recall of {self.num_pairs} pairs of the same {self.relation} {self.recall:.4f} ({self.reference_recall:.4f})"
        return (
            f"{self.num_wells} wells, {self.num_crops} crops: least cosine to fp32 torch {self.min_cosine:.7f} ({self.worst}), "
            f"{recall}"
        )


def some_plates(plates: Sequence[str], num_wells: int) -> list[str]:
    """The plates from which so many wells are taken, about eight of each, at even distances."""
    return _spread(plates, max(1, num_wells // WELLS_OF_PLATE))


def sample_wells(plates: Mapping[str, PlateWells], num_wells: int, num_crops: int) -> PlateWells:
    """Up to so many wells with pixels, at even distances in each of these plates, with up to so many crops of each, at even
    distances over its fields.  The metadata are the wells'.
    """
    per_plate = -(-num_wells // len(plates))
    metadata, fields = [], []
    for wells in plates.values():
        for number in _spread([i for i, found in enumerate(wells.fields) if found], per_plate):
            metadata.append(wells.metadata[number])
            fields.append(_some_crops(wells.fields[number], num_crops))
    return PlateWells(
        metadata=pl.concat(metadata, how="diagonal_relaxed") if metadata else pl.DataFrame(),
        fields=tuple(fields),
        num_crops=np.array([sum(len(field.corners) for field in found) for found in fields], dtype=np.int64),
        status=(OK,) * len(fields),
    )


def _spread(entries: Sequence[T], number: int) -> list[T]:
    """So many of them at even distances, all where there are fewer."""
    number = min(number, len(entries))
    return [entries[i * len(entries) // number] for i in range(number)]


def _some_crops(fields: Sequence[FieldCrops], number: int) -> tuple[FieldCrops, ...]:
    every = [(field, corner) for field in fields for corner in field.corners]
    chosen = _spread(every, number)
    return tuple(
        FieldCrops(field_no=f.field_no, field_index=f.field_index, site=f.site, corners=np.array(corners))
        for f in fields
        if (corners := [corner for own, corner in chosen if own is f])
    )


def compare(
    wells: PlateWells, reference: NDArray[np.float64], candidate: NDArray[np.float64], widths: Sequence[int]
) -> list[Parity]:
    """Both: f64[wells, sum(widths)], the sum over each well's crops, of one or more blocks side by side: one result each.

    A vector that is no number has cosine -1.
    """
    cuts = np.cumsum(widths)[:-1]
    parts = zip(np.split(reference, cuts, axis=1), np.split(candidate, cuts, axis=1), strict=True)
    return [_compare(wells, a, b) for a, b in parts]


def _compare(wells: PlateWells, reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Parity:
    names = [f"{plate}/{well}" for plate, well in wells.metadata.select("plate", "well").rows()]
    cosines = _cosines(reference, candidate)
    worst = int(np.argmin(cosines))
    relation, pairs = _pairs(wells.metadata, names)
    recalls: list[float | None] = [None, None] if not pairs else [0.0, 0.0]
    if pairs and np.isfinite(candidate).all():
        recalls = [_recall(vectors / wells.num_crops[:, None], names, pairs) for vectors in (reference, candidate)]
    return Parity(
        num_wells=len(names),
        num_crops=int(wells.num_crops.sum()),
        min_cosine=float(cosines[worst]),
        worst=names[worst],
        relation=relation,
        num_pairs=len(pairs),
        reference_recall=recalls[0],
        recall=recalls[1],
    )


def require(parities: Sequence[Parity], what: str, *, min_cosine: float, max_recall_change: float) -> Parity:
    """The one with the least cosine.  Raises UsageError with the figures where one is not what it must be, and where there are no
    pairs, so that recall says nothing, unless `max_recall_change` is 1: then whatever recall does is allowed.

    what: the backend, for the message
    """
    for parity in sorted(parities, key=lambda parity: parity.min_cosine):
        change = parity.recall_change
        if parity.min_cosine >= min_cosine and change is None and max_recall_change < 1:
            raise UsageError(
                f"embed: {what} cannot be held against fp32 torch: {parity.words()}; raise gate_wells, use backend=torch "
                "precision=fp32, or go by cosines alone with max_recall_change=1"
            )
        if not (parity.min_cosine >= min_cosine and (change is None or change <= max_recall_change)):
            raise UsageError(
                f"embed: {what} does not give what fp32 torch gives: {parity.words()}; allowed are cosines from {min_cosine:g} "
                f"on (min_cosine) and a change of recall of {max_recall_change:g} (max_recall_change); use backend=torch "
                "precision=fp32"
            )
    return min(parities, key=lambda parity: parity.min_cosine)


def _cosines(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", over="ignore"):
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    return np.where(np.isfinite(cosines), cosines, -1.0)


def _pairs(metadata: pl.DataFrame, names: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
    """The first relation that pairs some of the wells and not nearly all, and its pairs."""
    every = len(names) * (len(names) - 1) // 2
    for relation in RELATIONS:
        if relation not in metadata.columns:
            continue
        values = metadata[relation].to_list()
        pairs = [
            (names[i], names[j])
            for i in range(len(names))
            for j in range(i + 1, len(names))
            if values[i] is not None and values[i] == values[j]
        ]
        if MIN_PAIRS <= len(pairs) <= MAX_SHARE * every:
            return relation, pairs
    return "", []


def _recall(vectors: NDArray[np.float64], names: list[str], pairs: list[tuple[str, str]]) -> float:
    centred = vectors - vectors.mean(axis=0)
    return float(np.mean([found.recall for found in relationship_recall(centred, names, pairs, THRESHOLDS)]))
