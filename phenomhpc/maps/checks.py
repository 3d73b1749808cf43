"""What every function of maps/ asks of its arrays; each refusal is one line that names the thing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError

Features = NDArray[np.float64]
Rows = NDArray[np.floating]  # features as they come: float32, float64, mapped from a file

BLOCK_ROWS = 4096  # rows read at once: 55 MB of float64 at 1,664 features


def as_rows(features: ArrayLike) -> Rows:
    """`features` as a floating-point array [n, d], not copied where it is one already (a mapped file, say).

    Raises UsageError as `as_features` does, looking at some rows at a time.
    """
    array = features if isinstance(features, np.ndarray) else np.asarray(features)
    if not np.issubdtype(array.dtype, np.floating):
        array = np.asarray(array, dtype=np.float64)
    if array.ndim != 2 or not array.size:
        raise UsageError(f"features: shape {array.shape}; a map needs (rows, features), both at least 1")
    num_bad, first = 0, ""
    for start in range(0, len(array), BLOCK_ROWS):
        finite = np.isfinite(array[start : start + BLOCK_ROWS])
        if finite.all():
            continue
        row, column = np.argwhere(~finite)[0]
        first = first or f"row {start + row}, column {column} is {array[start + row, column]}"
        num_bad += int((~finite).any(axis=1).sum())
    if num_bad:
        raise UsageError(f"features: {first} ({num_bad} rows hold such values); drop or fill them")
    return array


def read_rows(array: Rows, rows: NDArray[np.intp]) -> Features:
    """Rows of an array as float64, a copy; neighbours in one piece, since mapped files like that."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (np.diff(rows) == 1).all():
        return np.array(array[rows[0] : rows[-1] + 1], dtype=np.float64)
    return np.asarray(array[rows], dtype=np.float64)


def as_features(features: ArrayLike) -> Features:
    """`features` as f64[n, d].  Raises UsageError for another shape, no rows or columns, NaN or infinity (naming the first)."""
    return np.asarray(as_rows(features), dtype=np.float64)


def as_labels(
    labels: Sequence[str | None] | NDArray[np.str_],
    num_rows: int,
    what: str = "label",
    ignored: NDArray[np.bool_] | None = None,
) -> list[str]:
    """`labels` as a list of text.  Raises UsageError for another length, or a missing one (naming its row).

    ignored: bool[n], rows whose label does not matter and may be missing.
    """
    names = list(labels)
    if len(names) != num_rows:
        raise UsageError(f"{what}s: {len(names)} for {num_rows} rows of features; give one per row")
    for row, name in enumerate(names):
        if (name is None or name == "" or name != name) and (ignored is None or not ignored[row]):
            raise UsageError(f"{what} of row {row} is missing; leave such rows out or name them")
    return [str(name) for name in names]


def as_unique_labels(labels: Sequence[str] | NDArray[np.str_], num_rows: int) -> list[str]:
    """`as_labels`, each name once.  Raises UsageError naming a duplicate."""
    names = as_labels(labels, num_rows)
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"label {name}: more than one row has it; aggregate() makes one row per perturbation")
        seen.add(name)
    return names


def as_mask(mask: ArrayLike, num_rows: int, name: str = "is_control") -> NDArray[np.bool_]:
    """`mask` as bool[n].  Raises UsageError for another length or type, calling it `name`."""
    array = np.asarray(mask)
    if array.dtype != np.bool_ or array.shape != (num_rows,):
        raise UsageError(f"{name}: {array.dtype} of shape {array.shape}; give one true or false per row, {num_rows}")
    return array
