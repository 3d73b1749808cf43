"""Percentile bootstrap intervals, 95 %: functions of their arguments, keyed by Philox.

Where an outcome is one of a few kinds (a hit, a miss), resampling n outcomes and counting kinds is one draw of a multinomial:
the same distribution without the resampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError

INTERVAL = 0.95  # coverage

# Philox keys are (seed, purpose); these lie apart from the purposes of the data order.
BOOTSTRAP, RANDOM_FEATURES, CHOSEN_CONTROLS, RANK_LISTS, NULL_SAMPLE = 101, 102, 103, 104, 105
# Of evaluations: perturbations whose replicates are retrieved, wells that are drawn, wells that a probe learns from.
RETRIEVED, DRAWN_WELLS, HALVES = 106, 107, 108

Bounds = tuple[float | None, float | None]

_RESAMPLED_AT_ONCE = 1 << 22  # numbers held by `mean_interval`: 64 MB


def check_draws(draws: int, seed: int) -> None:
    """Raise UsageError for draws that are no number of them, and for a seed that is no key."""
    if draws < 0:
        raise UsageError(f"bootstrap={draws}: draws of the interval, at least 0; 1000 is usual, 0 gives no interval")
    if not 0 <= seed < 1 << 64:
        raise UsageError(f"seed={seed}: the key of random numbers, 0 to 2^64 - 1; choose another")


def keyed(seed: int, purpose: int, *further: int) -> np.random.Generator:
    """Random numbers as a function of (seed, purpose) and up to three further numbers.  Raises UsageError as `check_draws`."""
    check_draws(0, seed)
    counter = np.zeros(4, dtype=np.uint64)
    counter[1 : 1 + len(further)] = further
    return np.random.Generator(np.random.Philox(key=np.array([seed, purpose], dtype=np.uint64), counter=counter))


def bootstrap_interval(hits: int, num: int, draws: int, seed: int = 0) -> Bounds:
    """Interval of the share hits / num, resampled over its num outcomes; (None, None) for 0 draws."""
    if not draws:
        return None, None
    return percentiles(keyed(seed, BOOTSTRAP).binomial(num, hits / num, size=draws) / num)


def mean_interval(values: ArrayLike, draws: int, seed: int = 0) -> Bounds:
    """Interval of the mean of f64[n], resampled over its n values; (None, None) for 0 draws."""
    if not draws:
        return None, None
    array = np.asarray(values, dtype=np.float64)
    generator, means = keyed(seed, BOOTSTRAP), np.empty(draws)
    at_once = max(1, _RESAMPLED_AT_ONCE // array.size)
    for start in range(0, draws, at_once):
        rows = generator.integers(0, array.size, size=(min(at_once, draws - start), array.size))
        means[start : start + at_once] = array[rows].mean(axis=1)
    return percentiles(means)


def difference_interval(gained: int, lost: int, num: int, draws: int, seed: int = 0) -> Bounds:
    """Interval of (gained - lost) / num, resampled over num paired outcomes of which the others differ not."""
    if not draws:
        return None, None
    shares = [gained / num, lost / num, (num - gained - lost) / num]
    counts = keyed(seed, BOOTSTRAP).multinomial(num, shares, size=draws)
    return percentiles((counts[:, 0] - counts[:, 1]) / num)


def percentiles(values: NDArray[np.float64]) -> tuple[float, float]:
    """The middle 95 % of bootstrap draws."""
    low, high = np.quantile(values, [(1.0 - INTERVAL) / 2.0, (1.0 + INTERVAL) / 2.0])
    return float(low), float(high)


def interval_of(bounds: Sequence[float | None]) -> tuple[float, float] | None:
    """(low, high), or None where none was asked for."""
    low, high = bounds
    return None if low is None or high is None else (low, high)
