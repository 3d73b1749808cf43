"""Wells to perturbations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import Features, as_features, as_labels, as_mask


def aggregate(
    features: ArrayLike, labels: Sequence[str] | NDArray[np.str_], how: str = "mean"
) -> tuple[Features, list[str]]:
    """One profile per label: (f64[g, d], the g labels in sorted order).

    features: f64[n, d]; labels: the perturbation of every row; how: "mean" or "median" over the rows of a label
    Leave control rows out beforehand: a map holds perturbations only.  Raises UsageError for a missing label.
    """
    array = as_features(features)
    unique, code = np.unique(np.array(as_labels(labels, len(array))), return_inverse=True)
    names = [str(name) for name in unique]
    if how == "mean":
        return _means([(np.arange(len(array)), array)], code, names), names
    if how != "median":
        raise UsageError(f"how={how}: unknown; there is mean and median")
    order = np.argsort(code, kind="stable")
    starts = np.cumsum(np.bincount(code))[:-1]
    profiles = np.stack([np.median(array[rows], axis=0) for rows in np.split(order, starts)])
    return profiles, names


def aggregate_blocks(
    blocks: Iterable[tuple[NDArray[np.intp], Features]],
    labels: Sequence[str | None] | NDArray[np.str_],
    is_left_out: ArrayLike,
) -> tuple[Features, list[str]]:
    """`aggregate` by the mean of rows that come in blocks, such as `Alignment.blocks`: memory of the map and of one block.

    blocks: (row numbers i64[m], f64[m, d]); labels: of all n rows; is_left_out: bool[n], rows that are no perturbation
    (controls), whose label does not matter.  Raises UsageError for a missing label, and where all rows are left out.
    """
    mask = as_mask(is_left_out, len(labels), "is_left_out")
    kept = np.flatnonzero(~mask)
    if not len(kept):
        raise UsageError(f"aggregate: all {len(labels)} rows are controls; a map needs perturbations")
    of_row = np.array(as_labels(labels, len(labels), ignored=mask))
    unique, code_of_kept = np.unique(of_row[kept], return_inverse=True)
    code = np.full(len(labels), -1, dtype=np.intp)
    code[kept] = code_of_kept
    names = [str(name) for name in unique]
    return _means(blocks, code, names), names


def _means(blocks: Iterable[tuple[NDArray[np.intp], Features]], code: NDArray[np.intp], names: list[str]) -> Features:
    """Means of the rows of every code, which is the place of a label's name; rows of code -1 are left out."""
    sums: Features | None = None
    counts = np.zeros(len(names), np.int64)
    for rows, block in blocks:
        mine = code[rows]
        order = np.argsort(mine, kind="stable")
        order = order[np.searchsorted(mine[order], 0) :]
        if sums is None:
            sums = np.zeros((len(names), block.shape[1]))
        if len(order):
            present, starts = np.unique(mine[order], return_index=True)
            sums[present] += np.add.reduceat(block[order], starts, axis=0)
        counts += np.bincount(mine[order], minlength=len(names))
    if sums is None or not counts.all():
        absent = np.flatnonzero(counts == 0)
        raise UsageError(
            f"aggregate: no block has a row of {names[absent[0]]} ({len(absent)} of {len(names)} labels); give every row once"
        )
    sums /= counts[:, None]
    return sums
