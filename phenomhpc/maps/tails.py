"""The tails of a map's null: the cosines a threshold asks for, found without holding all of them.

A threshold of relationship recall needs two order statistics of the n cosines of all pairs.  Where n is large, a sample says
between which two values each of them lies; one pass over the map counts what lies below and keeps what lies between; the
order statistic is then read off exactly.  Should the sample have misled (its bounds are seven standard errors wide), the
count shows it, and all cosines are held after all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.maps.bootstrap import NULL_SAMPLE, keyed
from phenomhpc.maps.checks import Features
from phenomhpc.maps.relate import cosine_null, of_blocks

Threshold = tuple[float, float]
Tail = tuple[float, float]  # (below, above): a pair is a hit when its cosine is < below or > above

HELD_PAIRS = 1 << 22  # a null of so many is held: 34 MB
SAMPLE = 1 << 18
STANDARD_ERRORS = 7.0


@dataclass(frozen=True, kw_only=True)
class ScoredPairs:
    """tails: one per threshold; cosines: f64[p] of the pairs asked for, of the same matrix; num_null: pairs of the map."""

    tails: list[Tail]
    cosines: NDArray[np.float64]
    num_null: int


def scored_pairs(
    unit: Features, pairs: NDArray[np.intp], thresholds: Sequence[Threshold], held_pairs: int = HELD_PAIRS
) -> ScoredPairs:
    """Tails of the null of a map and the cosines of some of its pairs.

    unit: f64[g, d] of length 1, g >= 2; pairs: i64[p, 2] of row numbers, i < j; held_pairs: largest null held as a whole
    """
    num_null = len(unit) * (len(unit) - 1) // 2
    if num_null > held_pairs:
        ranks = _ranks(num_null, thresholds)
        cosines, found = _one_pass(unit, pairs, ranks)
        if found is not None:
            return ScoredPairs(tails=_at(found, num_null, thresholds), cosines=cosines, num_null=num_null)
    null = cosine_null(unit, are_unit=True)
    cosines = null.of(pairs)
    return ScoredPairs(tails=tails_of(null.values, thresholds), cosines=cosines, num_null=num_null)


def tails_of(null: NDArray[np.float64], thresholds: Sequence[Threshold]) -> list[Tail]:
    """One tail per threshold of a null f64[n] that is at hand.  Reorders `null`.

    rR <= lo  <=>  #(null <= q) <= k, k the largest count with k / n <= lo   <=>  q <  the (k+1)-th smallest of the null
    rL >= hi  <=>  #(null <  q) >= c, c the smallest count with c / n >= hi  <=>  q >  the c-th smallest
    """
    ranks = _ranks(null.size, thresholds)
    if ranks:
        null.partition(ranks)
    return _at({rank: float(null[rank]) for rank in ranks}, null.size, thresholds)


def _ranks(num: int, thresholds: Sequence[Threshold]) -> list[int]:
    """Which order statistics (from 0) the thresholds need, ascending."""
    counts = [_counts(num, threshold) for threshold in thresholds]
    return sorted({k for k, _ in counts if k < num} | {c - 1 for _, c in counts if c > 0})


def _at(found: dict[int, float], num: int, thresholds: Sequence[Threshold]) -> list[Tail]:
    counts = [_counts(num, threshold) for threshold in thresholds]
    return [(found[k] if k < num else np.inf, found[c - 1] if c > 0 else -np.inf) for k, c in counts]


def _counts(num: int, threshold: Threshold) -> tuple[int, int]:
    """(largest k with k / num <= lo, smallest c with c / num >= hi), in float64 division as the definition has it."""
    lo, hi = threshold
    largest = min(num, int(lo * num) + 1)
    while largest / num > lo:
        largest -= 1
    smallest = max(0, int(hi * num) - 1)
    while smallest / num < hi:
        smallest += 1
    return largest, smallest


def _one_pass(
    unit: Features, pairs: NDArray[np.intp], ranks: Sequence[int]
) -> tuple[NDArray[np.float64], dict[int, float] | None]:
    """Cosines of the pairs, and the order statistics; None where one does not lie where the sample said."""
    from phenomhpc.maps.tails_loops import count_and_keep

    num = len(unit)
    num_null = num * (num - 1) // 2
    low, high = _brackets(unit, ranks, num_null)
    below, kept = np.zeros(len(ranks), np.int64), []
    cosines = np.empty(len(pairs))
    order = np.argsort(pairs[:, 0], kind="stable")
    ends = np.searchsorted(pairs[order, 0], np.arange(num + 1))

    def look(first: int, block: Features) -> tuple[NDArray[np.int64], Features]:
        mine = order[ends[first] : ends[first + len(block)]]
        cosines[mine] = block[pairs[mine, 0] - first, pairs[mine, 1] - first]
        counts, buffer = np.zeros(len(ranks), np.int64), np.empty(block.size)
        return counts, buffer[: count_and_keep(block, low, high, counts, buffer)].copy()

    for counts, some in of_blocks(unit, look):
        below += counts
        kept.append(some)
    between = np.sort(np.concatenate(kept))
    found = {}
    for rank, lowest, highest, smaller in zip(ranks, low, high, below, strict=True):
        first = int(np.searchsorted(between, lowest, "left"))
        inside = int(np.searchsorted(between, highest, "right")) - first
        if not 0 <= rank - smaller < inside:
            return cosines, None
        found[rank] = float(between[first + rank - smaller])
    return cosines, found


def _brackets(unit: Features, ranks: Sequence[int], num_null: int) -> tuple[Features, Features]:
    """Between which values each order statistic lies, by a sample of pairs: f64[r], f64[r]."""
    generator = keyed(0, NULL_SAMPLE)
    i = generator.integers(0, len(unit), SAMPLE)
    j = (i + generator.integers(1, len(unit), SAMPLE)) % len(unit)
    sample = np.sort(np.concatenate([np.einsum("nd,nd->n", unit[a], unit[b]) for a, b in _chunks(i, j)]))
    share = np.array(ranks) / num_null
    half = STANDARD_ERRORS * np.sqrt(share * (1.0 - share) * SAMPLE) + STANDARD_ERRORS**2
    place = share * SAMPLE
    padded = np.concatenate([[-np.inf], sample, [np.inf]])
    low = padded[np.floor(place - half).astype(np.int64).clip(-1, SAMPLE) + 1]
    high = padded[np.ceil(place + half).astype(np.int64).clip(-1, SAMPLE) + 1]
    return low, high


def _chunks(i: NDArray[np.int64], j: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    return list(zip(np.array_split(i, 16), np.array_split(j, 16), strict=True))
