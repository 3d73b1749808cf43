"""Means, variances, covariances and principal axes of rows that come in blocks: exact, the memory of one block.

Blocks are merged by Chan, Golub and LeVeque's update (1979, Stanford STAN-CS-79-773), so nothing cancels as it would in sums of
squares.  Principal axes come from a QR decomposition carried from block to block: the condition number is not squared, as it
would be in a covariance.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from phenomhpc.maps.checks import Features


class Moments:
    """Number, mean f64[d] and variance f64[d] of the rows added so far."""

    def __init__(self, num_features: int) -> None:
        self.num = 0
        self.mean = np.zeros(num_features)
        self._squares = np.zeros(num_features)

    def add(self, block: Features) -> None:
        num = len(block)
        if not num:
            return
        mean = block.mean(axis=0)
        delta = mean - self.mean
        total = self.num + num
        self._squares += ((block - mean) ** 2).sum(axis=0) + delta**2 * (self.num * num / total)
        self.mean = self.mean + delta * (num / total)
        self.num = total

    @property
    def variance(self) -> Features:
        """Biased (ddof 0)."""
        return self._squares / self.num

    @property
    def scale(self) -> Features:
        """Standard deviation (ddof 0), and 1 for a feature that is constant up to rounding.

        The bound is that of scikit-learn's StandardScaler, which EFAAR uses.
        """
        variance, eps = self.variance, np.finfo(np.float64).eps
        constant = variance <= self.num * eps * variance + (self.num * self.mean * eps) ** 2
        scale: Features = np.where(constant, 1.0, np.sqrt(variance))
        return scale


def moments_of(blocks: Iterable[Features], num_features: int) -> Moments:
    """`Moments` of all rows."""
    moments = Moments(num_features)
    for block in blocks:
        moments.add(block)
    return moments


def scatter_of(centred: Iterable[Features], num_features: int) -> Features:
    """Sum over all rows of their outer products: f64[d, d]; rows have had their mean subtracted."""
    scatter = np.zeros((num_features, num_features))
    for block in centred:
        scatter += block.T @ block
    return scatter


def triangle_of(centred: Iterable[Features], num_features: int) -> Features:
    """R of the QR decomposition of all rows: f64[min(rows, d), d] with R'R = the scatter."""
    triangle = np.empty((0, num_features))
    for block in centred:
        triangle = np.asarray(np.linalg.qr(np.concatenate([triangle, block]), mode="r"))
    return triangle
