"""Wells to perturbations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import Features, as_features, as_labels


def aggregate(
    features: ArrayLike, labels: Sequence[str] | NDArray[np.str_], how: str = "mean"
) -> tuple[Features, list[str]]:
    """One profile per label: (f64[g, d], the g labels in sorted order).

    features: f64[n, d]; labels: the perturbation of every row; how: "mean" or "median" over the rows of a label
    Leave control rows out beforehand: a map holds perturbations only.  Raises UsageError for a missing label.
    """
    array = as_features(features)
    unique, code = np.unique(np.array(as_labels(labels, len(array))), return_inverse=True)
    order = np.argsort(code, kind="stable")
    counts = np.bincount(code)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    if how == "mean":
        profiles = np.add.reduceat(array[order], starts, axis=0) / counts[:, None]
    elif how == "median":
        profiles = np.stack([np.median(rows, axis=0) for rows in np.split(array[order], starts[1:])])
    else:
        raise UsageError(f"how={how}: unknown; there is mean and median")
    return profiles, [str(name) for name in unique]
