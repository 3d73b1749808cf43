"""Alignment: taking out of the features what batches differ in, learned from their controls alone.

Controls are the same biology in every batch, so whatever differs between the controls of two batches is technical.  Four
ways, each a function (features f[n, d], batch [n], is_control bool[n]) -> f64[n, k]:

    center_scale   per batch: x -> (x - mean) / std of the batch's controls
    pca_cs         PCA fitted on all controls, then center_scale
    tvn            typical variation normalisation (Ando et al. 2017, doi:10.1101/161422), as EFAAR does it (Celik et al.
                   2022, doi:10.1101/2022.12.09.519400): controls get unit covariance in every batch
    coral          correlation alignment (Sun et al. 2016, arXiv:1511.05547): controls get the same covariance in every batch

std is the biased one (ddof 0), as in EFAAR; a feature that is constant in the controls is centred and not scaled.
All of them raise UsageError for a batch with fewer than two controls (naming it) and for values that are not finite.

What does not fit into memory: `fit_alignment` reads the controls block by block (twice), and `Alignment.blocks` gives aligned
blocks.  Beside a block and an f64[d, d] of each thread (threads.py), that holds a few f64[d, d], whatever the number of rows and
batches.  The functions above do the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import BLOCK_ROWS, Features, Rows, as_labels, as_mask, as_rows, read_rows
from phenomhpc.maps.moments import moments_of, scatter_of, triangle_of
from phenomhpc.maps.threads import in_threads
from phenomhpc.maps.whiten import Whitener, square_root, whitener_of

EFAAR = "efaar"
CENTER_SCALE, PCA_CS, TVN, TVN_EFAAR, CORAL = METHODS = ("center_scale", "pca_cs", "tvn", "tvn_efaar", "coral")
RIDGE = 0.5  # added to the diagonal of a batch's control covariance by TVN: EFAAR's value
CORAL_RIDGE = 1.0  # by CORAL: its authors' value
MIN_CONTROLS = 2

Batches = Sequence[str] | NDArray[np.str_]
Members = NDArray[np.intp]


def center_scale(features: ArrayLike, batch: Batches, is_control: ArrayLike) -> Features:
    """Per batch, subtract the controls' mean and divide by their standard deviation.  Returns f64[n, d]."""
    return align(CENTER_SCALE, features, batch, is_control)


def pca_cs(features: ArrayLike, batch: Batches, is_control: ArrayLike) -> Features:
    """PCA (all components) fitted on all controls, every row projected, then `center_scale`.

    Returns f64[n, k], k = the number of directions in which the controls vary, at most min(d, controls - 1).
    """
    return align(PCA_CS, features, batch, is_control)


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
    return align(TVN if compat is None else TVN_EFAAR, features, batch, is_control)


def coral(features: ArrayLike, batch: Batches, is_control: ArrayLike) -> Features:
    """Correlation alignment.  Returns f64[n, d].

        1. center_scale
        2. per batch b:  S_b = cov(controls of b, ddof=1) + I;   E_b <- E_b S_b^(-1/2) T^(1/2)

    with T = the covariance of all controls, as step 1 leaves them (ddof = number of batches), + I.  So every batch's controls
    get the correlations that batches have on average, where TVN leaves them none.  The I is what keeps 1,000 features of 100
    controls from being turned about by chance; it also keeps a part of what batches differ in.
    """
    return align(CORAL, features, batch, is_control)


def align(method: str, features: ArrayLike, batch: Batches, is_control: ArrayLike) -> Features:
    """One of METHODS by name, as an array f64[n, k]; `features` are left alone."""
    rows = as_rows(features)
    alignment = fit_alignment(method, rows, batch, is_control)
    aligned = np.empty((len(rows), alignment.num_features))
    for members, block in alignment.blocks(rows, batch, is_control):
        aligned[members] = block
    return aligned


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """What all batches share of an alignment, fitted on controls; each batch is then aligned by its own controls.

    So wells of batches that came later are aligned by the same axes: `blocks` of those alone.
    mean: f64[d], subtracted; axes: f64[d, k], principal components divided by the scale of step 1, multiplied with then
    recolour: f64[d, d], T^(1/2) of coral, multiplied with at last; None for what the method has not; num_inputs: d
    """

    method: str
    num_inputs: int
    mean: Features | None = None
    axes: Features | None = None
    recolour: Features | None = None

    @property
    def num_features(self) -> int:
        """k."""
        return self.num_inputs if self.axes is None else self.axes.shape[1]

    def blocks(
        self, features: ArrayLike, batch: Batches, is_control: ArrayLike, block_rows: int = BLOCK_ROWS
    ) -> Iterator[tuple[Members, Features]]:
        """(row numbers i64[m], aligned f64[m, k]), m <= block_rows, batch by batch in order of name: every row once.

        features: f[n, d], read by blocks, such as a mapped file.  Raises UsageError, before the first block, for another d,
        for values that are not finite, and for a batch with fewer than two controls.
        """
        array = as_rows(features)
        if array.shape[1] != self.num_inputs:
            raise UsageError(
                f"features: {array.shape[1]} columns, but this alignment was fitted on {self.num_inputs}; "
                "use the same encoder and block"
            )
        control = as_mask(is_control, len(array))
        batches = _batches(as_labels(batch, len(array), "batch label"), control)
        return self._blocks(array, batches, control, block_rows)

    def _blocks(
        self, array: Rows, batches: list[Members], control: NDArray[np.bool_], block_rows: int
    ) -> Iterator[tuple[Members, Features]]:
        def fitted(members: Members) -> tuple[Members, _BatchStep]:
            return members, self._fit_batch(array, members[control[members]], block_rows)

        def aligned(piece: tuple[Members, _BatchStep]) -> tuple[Members, Features]:
            rows, step = piece
            return rows, step(self.shared(read_rows(array, rows)))

        steps = in_threads(fitted, batches)
        yield from in_threads(
            aligned, ((rows, step) for members, step in steps for rows in _pieces(members, block_rows))
        )

    def shared(self, block: Features) -> Features:
        """f64[m, d] after the steps that all batches share, but for the last: f64[m, k].  Writes over `block`."""
        if self.mean is None or self.axes is None:
            return block
        block -= self.mean
        projected: Features = block @ self.axes
        return projected

    def _fit_batch(self, array: Rows, controls: Members, block_rows: int) -> _BatchStep:
        """What is particular to one batch, from two passes over its controls (one where they fit into a block)."""

        def read() -> Iterator[Features]:
            return (self.shared(read_rows(array, rows)) for rows in _pieces(controls, block_rows))

        held = list(read()) if len(controls) <= block_rows else None
        moments = moments_of(read() if held is None else held, self.num_features)
        mean, scale = moments.mean, np.ones(self.num_features) if self.method == TVN_EFAAR else moments.scale
        if self.method in (CENTER_SCALE, PCA_CS):
            return _BatchStep(mean=mean, scale=scale)
        standard = ((block - mean) / scale for block in (read() if held is None else held))
        whitener = whitener_of(
            standard, len(controls), self.num_features, CORAL_RIDGE if self.method == CORAL else RIDGE
        )
        if self.method == TVN_EFAAR:
            return _BatchStep(whitener=whitener)
        return _BatchStep(mean=mean, scale=scale, whitener=whitener, recolour=self.recolour)


@dataclass(frozen=True, kw_only=True)
class _BatchStep:
    mean: Features | None = None
    scale: Features | None = None
    whitener: Whitener | None = None
    recolour: Features | None = None

    def __call__(self, block: Features) -> Features:
        if self.mean is not None:
            block -= self.mean
        if self.scale is not None:
            block /= self.scale
        if self.whitener is not None:
            block = self.whitener(block)
        return block if self.recolour is None else block @ self.recolour


def fit_alignment(
    method: str, features: ArrayLike, batch: Batches, is_control: ArrayLike, block_rows: int = BLOCK_ROWS
) -> Alignment:
    """The part of an alignment that all batches share, from the controls, read at most twice in blocks of block_rows.

    features: f[n, d], an array or a mapped file, float32 or float64.  Memory beside it: three blocks and four f64[d, d].
    """
    if method not in METHODS:
        raise UsageError(f"align={method}: unknown; there is {', '.join(METHODS)}")
    array = as_rows(features)
    num_features = array.shape[1]
    control = as_mask(is_control, len(array))
    batches = _batches(as_labels(batch, len(array), "batch label"), control)
    if method == CENTER_SCALE:
        return Alignment(method=method, num_inputs=num_features)
    if method == CORAL:
        recolour = _pooled_root(array, [rows[control[rows]] for rows in batches], block_rows)
        return Alignment(method=method, num_inputs=num_features, recolour=recolour)
    controls = np.flatnonzero(control)
    moments = moments_of((read_rows(array, rows) for rows in _pieces(controls, block_rows)), num_features)
    mean, scale = moments.mean, np.ones(num_features) if method == PCA_CS else moments.scale
    centred = ((read_rows(array, rows) - mean) / scale for rows in _pieces(controls, block_rows))
    components, deviations = _principal_axes(centred, len(controls), num_features)
    if method == TVN_EFAAR:
        if len(components) < num_features:
            raise UsageError(
                f"compat={EFAAR}: {len(controls)} controls vary in {len(components)} of {num_features} directions "
                "and the published method divides by zero in the others; use more controls, or tvn without compat"
            )
        components = components / deviations[:, None]
    return Alignment(method=method, num_inputs=num_features, mean=mean, axes=components.T / scale[:, None])


def _batches(names: list[str], control: NDArray[np.bool_]) -> list[Members]:
    """The rows of every batch, in order of its name."""
    unique, code = np.unique(np.array(names), return_inverse=True)
    num_controls = np.bincount(code[control], minlength=len(unique))
    for name, number in zip(unique, num_controls, strict=True):
        if number < MIN_CONTROLS:
            raise UsageError(
                f"batch {name}: {number} control{'' if number == 1 else 's'}; alignment needs at least {MIN_CONTROLS} per batch: "
                "name the control treatment, choose larger batches, or leave this one out"
            )
    order = np.argsort(code, kind="stable")
    return np.split(order, np.cumsum(np.bincount(code))[:-1])


def _pieces(rows: Members, block_rows: int) -> Iterator[Members]:
    return (rows[start : start + block_rows] for start in range(0, len(rows), block_rows))


def _principal_axes(centred: Iterator[Features], num_rows: int, num_features: int) -> tuple[Features, Features]:
    """Principal components of centred rows, largest variance first, f64[k, d], with their standard deviations (ddof 0) f64[k].

    A component's sign is such that its largest loading is positive.  Components without variance are left out.
    """
    # The right singular vectors of R are those of the rows, and R is small.
    _, singular, components = np.linalg.svd(triangle_of(centred, num_features), full_matrices=False)
    noise = singular[0] * max(num_rows, num_features) * np.finfo(np.float64).eps
    kept = singular > noise
    components = components[kept]
    if not len(components):
        raise UsageError("features: the controls do not vary at all; check that they are different wells")
    largest = np.abs(components).argmax(axis=1)
    components *= np.sign(components[np.arange(len(components)), largest])[:, None]
    return components, singular[kept] / np.sqrt(num_rows)


def _pooled_root(array: Rows, controls: list[Members], block_rows: int) -> Features:
    """T^(1/2), T = covariance of controls that are centred and scaled by batch + CORAL_RIDGE I: f64[d, d]."""
    num_features, scatter = array.shape[1], np.zeros((array.shape[1], array.shape[1]))
    for rows in controls:

        def read(rows: Members = rows) -> Iterator[Features]:
            return (read_rows(array, piece) for piece in _pieces(rows, block_rows))

        moments = moments_of(read(), num_features)
        mean, scale = moments.mean, moments.scale
        scatter += scatter_of(((block - mean) / scale for block in read()), num_features)
    degrees = sum(map(len, controls)) - len(controls)
    return square_root(scatter / degrees + CORAL_RIDGE * np.eye(num_features))
