"""Does a perturbation do anything?  Its replicates, against the same statistic of perturbations that do nothing.

    perturbation_consistency   are its replicates alike?     mean cosine of two different replicates
    perturbation_magnitude     are they unlike controls?     energy distance to the controls

The null is the statistic of null perturbations, such as knockouts of genes that the cells do not express (Celik et al. 2022,
doi:10.1101/2022.12.09.519400).  With k of its n values at least as large as the observed one, p = (k + 1) / (n + 1);
compat="efaar" gives the published k / n, which can be 0.  Perturbations without the statistic are dropped, in the null, too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.align import EFAAR
from phenomhpc.maps.benchmark import DRAWS, Labels
from phenomhpc.maps.bootstrap import CHOSEN_CONTROLS, check_draws, keyed
from phenomhpc.maps.checks import Features, Rows, as_labels, as_mask, as_rows, read_rows
from phenomhpc.maps.relate import unit_rows
from phenomhpc.maps.results import PerturbationScores, hit_share
from phenomhpc.maps.threads import in_threads

ALPHA = 0.05
MAX_CONTROLS = 1000
MIN_REPLICATES = 5  # for an energy distance
MIN_CONTROLS = 2

# Squared distances less than this share of the squared lengths lose digits as |x|^2 + |y|^2 - 2 x.y, and are summed directly.
_NEAR = 1e-3
_ROWS_AT_ONCE = 1024

Groups = dict[str, NDArray[np.intp]]


def perturbation_consistency(
    features: ArrayLike,
    labels: Labels,
    null_labels: Collection[str],
    *,
    is_left_out: ArrayLike | None = None,
    compat: str | None = None,
    alpha: float = ALPHA,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> PerturbationScores:
    """Mean cosine over all pairs of different replicates, of every perturbation with two or more, that is no null one.

    features: f[n, d], aligned wells without controls, read label by label; labels: the perturbation of every row
    null_labels: the perturbations that the null is made of; with fewer than 19 of them no p is as small as 0.05
    is_left_out: bool[n], rows that do not count (controls, say), whose label does not matter
    Raises UsageError for a missing label, for none of the null labels with two replicates, and for no other label with two.
    """
    check_draws(bootstrap, seed)
    array = as_rows(features)
    left_out = _left_out(is_left_out, len(array))
    groups = _groups(as_labels(labels, len(array), ignored=left_out), ~left_out)
    values = {name: _mean_cosine(array, rows, name) for name, rows in groups.items() if len(rows) > 1}
    return _scores("consistency", 2, groups, values, null_labels, compat, alpha, bootstrap, seed)


def perturbation_magnitude(
    features: ArrayLike,
    labels: Labels,
    is_control: ArrayLike,
    null_labels: Collection[str],
    *,
    max_controls: int = MAX_CONTROLS,
    min_replicates: int = MIN_REPLICATES,
    is_left_out: ArrayLike | None = None,
    compat: str | None = None,
    alpha: float = ALPHA,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> PerturbationScores:
    """Energy distance of a perturbation's replicates X to the controls Y, of every perturbation with min_replicates or more.

        2 mean |x - y| - mean |x - x'| - mean |y - y'|        (Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018)

    each mean over all ordered pairs, a row with itself included, so that it is never negative.

    features: f[n, d], aligned wells, controls among them; labels: the perturbation of every row; is_control: bool[n], rows
    whose label does not matter; null_labels: the perturbations of the null; is_left_out: bool[n], rows that count as neither.
    Of more than max_controls controls, that many are taken, keyed by the seed, the same for all.  Raises UsageError for a missing
    label, fewer than two controls, none of the null labels with enough replicates, and no other label with enough.
    """
    check_draws(bootstrap, seed)
    array = as_rows(features)
    control, left_out = as_mask(is_control, len(array)), _left_out(is_left_out, len(array))
    groups = _groups(as_labels(labels, len(array), ignored=control | left_out), ~control & ~left_out)
    controls = read_rows(array, _chosen(np.flatnonzero(control & ~left_out), max_controls, seed))
    centre = controls.mean(axis=0)  # distances do not see it, and digits are kept
    controls -= centre
    scored = {name: rows for name, rows in groups.items() if len(rows) >= min_replicates}
    distances = _energy_distances(array, list(scored.values()), controls, centre)
    values = dict(zip(scored, distances, strict=True))
    return _scores("magnitude", min_replicates, groups, values, null_labels, compat, alpha, bootstrap, seed)


def _left_out(mask: ArrayLike | None, num_rows: int) -> NDArray[np.bool_]:
    return np.zeros(num_rows, np.bool_) if mask is None else as_mask(mask, num_rows, "is_left_out")


def _groups(names: Sequence[str], kept: NDArray[np.bool_]) -> Groups:
    """Rows of every label among those kept, labels sorted."""
    rows = np.flatnonzero(kept)
    if not len(rows):
        return {}
    unique, code = np.unique(np.array(names)[rows], return_inverse=True)
    order = np.argsort(code, kind="stable")
    parts = np.split(rows[order], np.cumsum(np.bincount(code))[:-1])
    return {str(name): part for name, part in zip(unique, parts, strict=True)}


def _scores(
    what: str,
    least: int,
    groups: Groups,
    values: dict[str, float],
    null_labels: Collection[str],
    compat: str | None,
    alpha: float,
    bootstrap: int,
    seed: int,
) -> PerturbationScores:
    if compat not in (None, EFAAR):
        raise UsageError(f"compat={compat}: unknown; there is None (ours) and {EFAAR!r} (as published)")
    silent = set(null_labels)
    null = np.sort([value for name, value in values.items() if name in silent])
    tested = {name: value for name, value in values.items() if name not in silent}
    if not len(null):
        raise UsageError(
            f"{what}: none of the {len(silent)} null perturbations has {least} replicates or more; "
            "name perturbations that do nothing, such as knockouts of unexpressed genes"
        )
    if not tested:
        raise UsageError(
            f"{what}: no perturbation beside the null ones has {least} replicates or more; give wells, not means of them, "
            "and fewer null labels"
        )
    observed = np.array(list(tested.values()))
    at_least = len(null) - np.searchsorted(null, observed, "left")
    p_values = at_least / len(null) if compat == EFAAR else (at_least + 1) / (len(null) + 1)
    return PerturbationScores(
        labels=tuple(tested),
        values=observed,
        p_values=p_values,
        num_replicates=np.array([len(groups[name]) for name in tested]),
        num_null=len(null),
        null_values=null,
        num_dropped=len(groups) - len(values),
        **hit_share(p_values, alpha, bootstrap, seed),
    )


def _mean_cosine(array: Rows, rows: NDArray[np.intp], name: str) -> float:
    """Over all pairs of different rows of a label: of n unit vectors whose sum is s, (|s|^2 - n) / (n (n - 1))."""
    num = len(rows)
    unit = unit_rows(read_rows(array, rows), [name] * num, rows)
    total = unit.sum(axis=0)
    return float((total @ total - num) / (num * (num - 1)))


def _chosen(controls: NDArray[np.intp], most: int, seed: int) -> NDArray[np.intp]:
    if len(controls) < MIN_CONTROLS:
        raise UsageError(
            f"magnitude: {len(controls)} control{'' if len(controls) == 1 else 's'}; mark at least {MIN_CONTROLS} wells as such"
        )
    if len(controls) <= most:
        return controls
    return np.sort(keyed(seed, CHOSEN_CONTROLS).choice(controls, most, replace=False))


def _energy_distances(
    array: Rows, groups: Sequence[NDArray[np.intp]], controls: Features, centre: Features
) -> Iterator[float]:
    """Energy distance of every group of rows to the controls; `centre` is subtracted from rows, and has been from controls."""
    within_controls = _mean_distances(controls, controls).mean()

    def of_some(some: list[NDArray[np.intp]]) -> list[float]:
        rows = read_rows(array, np.concatenate(some)) - centre
        to_controls = _mean_distances(rows, controls)
        distances, end = [], 0
        for group in some:
            mine, end = slice(end, end + len(group)), end + len(group)
            within = _mean_distances(rows[mine], rows[mine]).mean()
            distances.append(float(2.0 * to_controls[mine].mean() - within - within_controls))
        return distances

    return chain.from_iterable(in_threads(of_some, _together(groups)))


def _together(groups: Sequence[NDArray[np.intp]]) -> Iterator[list[NDArray[np.intp]]]:
    """Small groups many at once, which makes one product with the controls of many."""
    some: list[NDArray[np.intp]] = []
    num = 0
    for group in groups:
        if some and num + len(group) > _ROWS_AT_ONCE:
            yield some
            some, num = [], 0
        some.append(group)
        num += len(group)
    if some:
        yield some


def _mean_distances(x: Features, y: Features) -> Features:
    """Mean distance f64[n] of every row of x to the rows of y."""
    pieces = (x[start : start + _ROWS_AT_ONCE] for start in range(0, len(x), _ROWS_AT_ONCE))
    return np.concatenate([_distances(piece, y).mean(axis=1) for piece in pieces])


def _distances(x: Features, y: Features) -> Features:
    """Euclidean distances f64[n, m] of the rows of f64[n, d] and f64[m, d], by one product; exact to rounding where near."""
    lengths = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1)
    squares: Features = lengths - 2.0 * (x @ y.T)
    row, column = np.nonzero(squares < _NEAR * lengths)
    for start in range(0, len(row), _ROWS_AT_ONCE):
        i, j = row[start : start + _ROWS_AT_ONCE], column[start : start + _ROWS_AT_ONCE]
        squares[i, j] = ((x[i] - y[j]) ** 2).sum(axis=1)
    return np.sqrt(squares)
