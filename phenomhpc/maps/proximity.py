"""How much genes look alike for lying on one chromosome arm.

Brunner and Munzel's test (2000): of a cosine w within an arm and a cosine b between it and other arms,
effect = P(b < w) + P(b = w) / 2, which is 0.5 where neighbours are no more alike than others (Lazar et al. 2023,
doi:10.1101/2023.04.15.537038).  Its statistic and p-value (two-sided, Student's t) are those of scipy.stats.brunnermunzel(b, w),
by merging sorted samples: with 17,000 genes, b has 13 million values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.benchmark import DRAWS, Labels
from phenomhpc.maps.bootstrap import check_draws, mean_interval
from phenomhpc.maps.checks import as_features, as_unique_labels
from phenomhpc.maps.relate import cosines_of_groups, unit_rows
from phenomhpc.maps.results import ProximityBias

MIN_PAIRS = 20  # an arm counts when strictly more pairs of its genes are in the map


def proximity_bias(
    features: ArrayLike,
    labels: Labels,
    arms: Mapping[str, str],
    *,
    min_pairs: int = MIN_PAIRS,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> ProximityBias:
    """Effect per arm with strictly more than min_pairs pairs of its genes in the map, and their mean.

    features: f64[g, d], one profile per label; arms: gene -> arm, as `arms_of` gives it; genes on no arm are left out
    Holds cosines of one arm's genes with all genes, or of as many arms as HELD_COSINES allows.  The interval resamples arms.
    Raises UsageError for a duplicate or missing label, where no arm has enough pairs, and where all genes are on one arm.
    """
    check_draws(bootstrap, seed)
    array = as_features(features)
    names = as_unique_labels(labels, len(array))
    of_row = np.array([arms.get(name, "") for name in names])
    counts = Counter(arm for arm in of_row.tolist() if arm)
    enough = sorted(arm for arm, num in counts.items() if num * (num - 1) // 2 > min_pairs)
    if not enough:
        raise UsageError(
            f"proximity bias: no chromosome arm has more than {min_pairs} pairs of genes in the map "
            f"({sum(counts.values())} of {len(names)} labels are on one of {len(counts)} arms); name genes as the map does "
            f"({names[0]}, ...), or lower min_pairs"
        )
    if len(counts) < 2:
        raise UsageError(f"proximity bias: all genes are on {enough[0]}; give those of another arm to compare with")
    on_arm = {arm: np.flatnonzero(of_row == arm) for arm in enough}
    results = []
    for arm, cosines, rows in cosines_of_groups(unit_rows(array, names), on_arm):
        within = cosines[:, rows][np.triu_indices(len(rows), 1)]
        between = cosines[:, (of_row != arm) & (of_row != "")].ravel()
        results.append((*brunner_munzel(between, within), within.size, between.size))
    effects, p_values, num_within, num_between = (np.array(column) for column in zip(*results, strict=True))
    low, high = mean_interval(effects, bootstrap, seed)
    return ProximityBias(
        arms=tuple(enough),
        effects=effects,
        p_values=p_values,
        num_within=num_within,
        num_between=num_between,
        effect=float(effects.mean()),
        ci_low=low,
        ci_high=high,
    )


def brunner_munzel(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """(P(x < y) + P(x = y) / 2, two-sided p by Student's t) of f64[n], f64[m], n, m >= 2.  Sorts both.

    Where the samples do not overlap, all variances are 0 and p is 0; where they are one constant, p is 1.
    """
    from phenomhpc.maps.proximity_loops import placements

    x.sort()
    y.sort()
    of_x, of_y = placements(x, y), placements(y, x)  # values of the other sample below, ties as halves
    effect = of_y.mean() / x.size
    variance_x = ((of_x - of_x.mean()) ** 2).sum() / (x.size - 1)
    variance_y = ((of_y - of_y.mean()) ** 2).sum() / (y.size - 1)
    spread_x, spread_y = variance_x * x.size, variance_y * y.size
    if not spread_x + spread_y:
        return float(effect), 1.0 if effect == 0.5 else 0.0
    from scipy.special import stdtr  # Student's t, without the seconds that scipy.stats takes to load

    statistic = x.size * y.size * (of_y.mean() / x.size - 0.5) / np.sqrt(spread_x + spread_y)
    degrees = (spread_x + spread_y) ** 2 / (spread_x**2 / (x.size - 1) + spread_y**2 / (y.size - 1))
    return float(effect), float(2.0 * stdtr(degrees, -abs(statistic)))
