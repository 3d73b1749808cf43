"""How much known biology a map finds again.

Relationship recall (Celik et al. 2022, doi:10.1101/2022.12.09.519400).  Of the known pairs with both ends in the map, which
share lies in the tails of the map's own cosines?  With q a known pair's cosine and the null the n cosines of ALL unordered
pairs of the map,

    rL(q) = #(null <  q) / n,     rR(q) = #(null <= q) / n
    recall(lo, hi) = mean over known pairs of  [rR <= lo or rL >= hi]

so pairs count when they are among the most alike or the most opposite.  A map that knows nothing gets lo + 1 - hi: 0.10 at
(0.05, 0.95).

Rather than ranking every pair, the null is partitioned at the two order statistics a threshold asks for: exactly the same
hits, in linear time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import Features, as_features, as_unique_labels
from phenomhpc.maps.relate import cosine_null, mapped_pairs

THRESHOLDS = ((0.05, 0.95), (0.1, 0.9))
INTERVAL = 0.95  # coverage of the bootstrap interval

# Philox keys are (seed, purpose); these lie apart from the purposes of the data order.
BOOTSTRAP = 101
RANDOM_FEATURES = 102

Pairs = Iterable[Sequence[str]] | NDArray[np.str_]


@dataclass(frozen=True, kw_only=True)
class Recall:
    """Relationship recall at one threshold.

    lo, hi: the tails that count; recall: share of the num_pairs known pairs within them; num_null: pairs of the null
    ci_low, ci_high: percentile bootstrap interval over the known pairs, 95 %; None where none was asked for
    """

    lo: float
    hi: float
    recall: float
    ci_low: float | None
    ci_high: float | None
    num_pairs: int
    num_null: int

    @property
    def chance(self) -> float:
        """What a map that knows nothing gets."""
        return chance_level(self.lo, self.hi)


def chance_level(lo: float, hi: float) -> float:
    """Expected recall of a map without knowledge: lo + 1 - hi (both tails of a uniform rank)."""
    return lo + 1.0 - hi


def check_thresholds(thresholds: Sequence[tuple[float, float]]) -> None:
    """Raise UsageError for none at all, and for a pair that is not 0 <= low < high <= 1."""
    if not thresholds:
        raise UsageError("thresholds: none given; (0.05, 0.95) is usual")
    for lo, hi in thresholds:
        if not 0.0 <= lo < hi <= 1.0:
            raise UsageError(f"thresholds: ({lo}, {hi}); the two are shares of the null, 0 <= low < high <= 1")


def relationship_recall(
    features: ArrayLike,
    labels: Sequence[str] | NDArray[np.str_],
    pairs: Pairs,
    thresholds: Sequence[tuple[float, float]] = THRESHOLDS,
    bootstrap: int = 0,
    seed: int = 0,
) -> list[Recall]:
    """Recall of known pairs in a map, one result per threshold, in their order.

    features: f64[g, d], one profile per label; pairs: two names each, in any direction, repeats welcome
    bootstrap: draws of the interval, 0 for none; seed: its key.  The interval takes the pairs as independent.
    Raises UsageError for a duplicate or missing label, NaN, no pair with both ends in the map, or a senseless threshold.
    """
    return relationship_recalls(features, labels, {"pairs": pairs}, thresholds, bootstrap, seed)["pairs"]


def relationship_recalls(
    features: ArrayLike,
    labels: Sequence[str] | NDArray[np.str_],
    annotations: Mapping[str, Pairs],
    thresholds: Sequence[tuple[float, float]] = THRESHOLDS,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, list[Recall]]:
    """`relationship_recall` of several annotations against one null, computed once.  Names as in `annotations`."""
    check_thresholds(thresholds)
    array = as_features(features)
    names = as_unique_labels(labels, len(array))
    rows = {name: mapped_pairs(names, pairs) for name, pairs in annotations.items()}
    for name, known in rows.items():
        if not len(known):
            raise UsageError(
                f"{name}: no known pair has both ends among the map's {len(names)} labels ({names[0]}, ...); "
                "the names must be of one kind, such as gene symbols"
            )
    null = cosine_null(array)
    cosines = {name: null.of(known) for name, known in rows.items()}
    tails = _tails(null.values, thresholds)
    return {
        name: [
            _recall(values, lo, hi, below, above, null.values.size, bootstrap, seed)
            for (lo, hi), (below, above) in zip(thresholds, tails, strict=True)
        ]
        for name, values in cosines.items()
    }


def random_features(num_rows: int, num_features: int, seed: int = 0) -> Features:
    """Standard normal features f64[num_rows, num_features]: the baseline that has seen nothing.  Keyed by the seed."""
    generator = np.random.Generator(np.random.Philox(key=_key(seed, RANDOM_FEATURES)))
    return generator.standard_normal((num_rows, num_features))


def _tails(null: NDArray[np.float64], thresholds: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Per threshold (below, above): a pair is a hit when its cosine is < below or > above.  Reorders `null`.

    rR <= lo  <=>  #(null <= q) <= k, k the largest count with k / n <= lo   <=>  q <  the (k+1)-th smallest of the null
    rL >= hi  <=>  #(null <  q) >= c, c the smallest count with c / n >= hi  <=>  q >  the c-th smallest
    """
    num = null.size
    counts = [(_largest_share(num, lo), _smallest_share(num, hi)) for lo, hi in thresholds]
    wanted = {k for k, _ in counts if k < num} | {c - 1 for _, c in counts if c > 0}
    if wanted:
        null.partition(sorted(wanted))
    return [(float(null[k]) if k < num else np.inf, float(null[c - 1]) if c > 0 else -np.inf) for k, c in counts]


def _largest_share(num: int, share: float) -> int:
    """Largest count with count / num <= share, in float64 division as the definition has it."""
    count = min(num, int(share * num) + 1)
    while count / num > share:
        count -= 1
    return count


def _smallest_share(num: int, share: float) -> int:
    """Smallest count with count / num >= share."""
    count = max(0, int(share * num) - 1)
    while count / num < share:
        count += 1
    return count


def _recall(
    cosines: NDArray[np.float64],
    lo: float,
    hi: float,
    below: float,
    above: float,
    num_null: int,
    bootstrap: int,
    seed: int,
) -> Recall:
    hits = int(((cosines < below) | (cosines > above)).sum())
    interval = bootstrap_interval(hits, len(cosines), bootstrap, seed)
    return Recall(
        lo=lo,
        hi=hi,
        recall=hits / len(cosines),
        ci_low=interval[0],
        ci_high=interval[1],
        num_pairs=len(cosines),
        num_null=num_null,
    )


def bootstrap_interval(hits: int, num: int, draws: int, seed: int = 0) -> tuple[float | None, float | None]:
    """Percentile bootstrap interval, 95 %, of the share hits / num; (None, None) for 0 draws.

    Resampling num outcomes of which each is a hit with probability hits / num and counting the hits is one draw of a binomial:
    the same distribution without the resampling.  A function of its arguments.
    """
    if not draws:
        return None, None
    generator = np.random.Generator(np.random.Philox(key=_key(seed, BOOTSTRAP)))
    shares = generator.binomial(num, hits / num, size=draws) / num
    low, high = np.quantile(shares, [(1.0 - INTERVAL) / 2.0, (1.0 + INTERVAL) / 2.0])
    return float(low), float(high)


def _key(seed: int, purpose: int) -> NDArray[np.uint64]:
    return np.array([seed, purpose], dtype=np.uint64)
