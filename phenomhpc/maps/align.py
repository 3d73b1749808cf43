"""Alignment: taking out of the features what batches differ in, learned from their controls alone.

Controls are the same biology in every batch, so whatever differs between the controls of two batches is technical.  Three
ways, each a function (features f64[n, d], batch [n], is_control bool[n]) -> f64[n, k]:

    center_scale   per batch: x -> (x - mean) / std of the batch's controls
    pca_cs         PCA fitted on all controls, then center_scale
    tvn            typical variation normalisation (Ando et al. 2017, doi:10.1101/161422), as EFAAR does it (Celik et al.
                   2022, doi:10.1101/2022.12.09.519400): controls get unit covariance in every batch

std is the biased one (ddof 0), as in EFAAR; a feature that is constant in the controls is centred and not scaled.
All of them raise UsageError for a batch with fewer than two controls (naming it) and for values that are not finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import Features, as_features, as_labels, as_mask

EFAAR = "efaar"
RIDGE = 0.5  # added to the diagonal of a batch's control covariance: EFAAR's value
MIN_CONTROLS = 2

Batches = Sequence[str] | NDArray[np.str_]


def center_scale(features: ArrayLike, batch: Batches, is_control: ArrayLike) -> Features:
    """Per batch, subtract the controls' mean and divide by their standard deviation.  Returns f64[n, d]."""
    aligned, batches, control = _checked(features, batch, is_control)
    for rows in batches:
        aligned[rows] = _standardised(aligned[rows], control[rows])
    return aligned


def pca_cs(features: ArrayLike, batch: Batches, is_control: ArrayLike) -> Features:
    """PCA (all components) fitted on all controls, every row projected, then `center_scale`.

    Returns f64[n, k], k = the number of directions in which the controls vary, at most min(d, controls - 1).
    """
    array, batches, control = _checked(features, batch, is_control)
    projected = _project(array, control)
    for rows in batches:
        projected[rows] = _standardised(projected[rows], control[rows])
    return projected


def tvn(features: ArrayLike, batch: Batches, is_control: ArrayLike, compat: str | None = None) -> Features:
    """Typical variation normalisation.  Returns f64[n, k], k as in `pca_cs`.

        1. centre-scale on all controls
        2. PCA, all components, fitted on all controls
        3. centre-scale again: per batch (ours), or on all controls (compat="efaar")
        4. per batch b:  S_b = cov(controls of b, ddof=1) + 0.5 I;   E_b <- E_b S_b^(-1/2)

    As published, step 3 never centres per batch, so that the control means of the batches stay off zero and offsets between
    batches survive; ours removes them.  compat="efaar" is the published one exactly (up to the signs of the components, which
    no cosine sees).  Directions in which the controls do not vary are left out by ours; the published one divides them by a
    standard deviation that is rounding error, so there it raises UsageError.
    """
    if compat not in (None, EFAAR):
        raise UsageError(f"compat={compat}: unknown; there is None (ours) and {EFAAR!r} (as published)")
    array, batches, control = _checked(features, batch, is_control)
    projected = _project(_standardised(array, control), control)
    if compat == EFAAR:
        if projected.shape[1] < array.shape[1]:
            raise UsageError(
                f"compat={EFAAR}: {int(control.sum())} controls vary in {projected.shape[1]} of {array.shape[1]} directions "
                "and the published method divides by zero in the others; use more controls, or tvn without compat"
            )
        projected = _standardised(projected, control)
    for rows in batches:
        members, member_control = projected[rows], control[rows]
        if compat is None:
            members = _standardised(members, member_control)
        projected[rows] = members @ _whitener(members[member_control])
    return projected


def _checked(
    features: ArrayLike, batch: Batches, is_control: ArrayLike
) -> tuple[Features, list[NDArray[np.intp]], NDArray[np.bool_]]:
    """A copy of the features, the rows of every batch, the control mask."""
    array = np.array(as_features(features))
    control = as_mask(is_control, len(array))
    names = np.array(as_labels(batch, len(array), "batch label"))
    return array, list(_batches(names, control)), control


def _batches(names: NDArray[np.str_], control: NDArray[np.bool_]) -> Iterator[NDArray[np.intp]]:
    unique, code = np.unique(names, return_inverse=True)
    num_controls = np.bincount(code[control], minlength=len(unique))
    for name, number in zip(unique, num_controls, strict=True):
        if number < MIN_CONTROLS:
            raise UsageError(
                f"batch {name}: {number} control{'' if number == 1 else 's'}; alignment needs at least {MIN_CONTROLS} per batch: "
                "name the control treatment, choose larger batches, or leave this one out"
            )
    order = np.argsort(code, kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(code))[:-1])


def _standardised(array: Features, control: NDArray[np.bool_]) -> Features:
    """(array - mean) / std of its control rows; a new array."""
    controls = array[control]
    mean = controls.mean(axis=0)
    variance = controls.var(axis=0)
    # Constant up to rounding: the bound of scikit-learn's StandardScaler, which EFAAR uses.
    eps = np.finfo(np.float64).eps
    constant = variance <= len(controls) * eps * variance + (len(controls) * mean * eps) ** 2
    result: Features = (array - mean) / np.where(constant, 1.0, np.sqrt(variance))
    return result


def _project(array: Features, control: NDArray[np.bool_]) -> Features:
    """Coordinates of all rows along the principal components of the controls, largest variance first: f64[n, k].

    A component's sign is such that its largest loading is positive.  Components without variance are left out.
    """
    mean = array[control].mean(axis=0)
    centred = array[control] - mean
    # The right singular vectors of R are those of the controls, and R is small.
    _, singular, components = np.linalg.svd(np.linalg.qr(centred, mode="r"), full_matrices=False)
    noise = singular[0] * max(centred.shape) * np.finfo(np.float64).eps
    components = components[singular > noise]
    if not len(components):
        raise UsageError("features: the controls do not vary at all; check that they are different wells")
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    result: Features = (array - mean) @ components.T
    return result


def _whitener(controls: Features) -> Features:
    """(cov(controls, ddof=1) + RIDGE I)^(-1/2), symmetric: f64[k, k]."""
    covariance = np.atleast_2d(np.cov(controls, rowvar=False, ddof=1))
    eigenvalues, vectors = np.linalg.eigh(covariance + RIDGE * np.eye(controls.shape[1]))
    result: Features = (vectors / np.sqrt(eigenvalues)) @ vectors.T
    return result
