"""What the benchmarks say: one frozen dataclass each.

In all of them ci_low and ci_high are the percentile bootstrap interval, 95 %, of the headline number (None where no draws were
asked for), and `interval` is the two as a pair.  Arrays have one value per thing named by `labels`, `names` or `arms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from phenomhpc.maps.bootstrap import bootstrap_interval, interval_of


def chance_level(lo: float, hi: float) -> float:
    """Expected recall of a map without knowledge: lo + 1 - hi (both tails of a uniform rank)."""
    return lo + 1.0 - hi


@dataclass(frozen=True, kw_only=True)
class _WithInterval:
    ci_low: float | None
    ci_high: float | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """(ci_low, ci_high), or None where no bootstrap was asked for."""
        return interval_of((self.ci_low, self.ci_high))


@dataclass(frozen=True, kw_only=True)
class _HitRate(_WithInterval):
    """hit_rate: share of what was tested with p (or q) <= alpha."""

    hit_rate: float
    alpha: float


@dataclass(frozen=True, kw_only=True)
class _PHitRate(_HitRate):
    @property
    def chance(self) -> float:
        """Hit rate of what does nothing, were tests independent."""
        return self.alpha


@dataclass(frozen=True, kw_only=True)
class Recall(_WithInterval):
    """Relationship recall at one threshold.

    lo, hi: the tails that count; recall: share of the num_pairs known pairs within them; num_null: pairs of the null
    The interval is over the known pairs.
    """

    lo: float
    hi: float
    recall: float
    num_pairs: int
    num_null: int

    @property
    def chance(self) -> float:
        """What a map that knows nothing gets."""
        return chance_level(self.lo, self.hi)


@dataclass(frozen=True, kw_only=True)
class ArmRecalls:
    """Recall of known pairs within one chromosome arm and between two, one per threshold; () where there is no such pair.

    num_unplaced: mapped pairs with an end on no known arm, which are in neither
    """

    within: tuple[Recall, ...]
    between: tuple[Recall, ...]
    num_unplaced: int


@dataclass(frozen=True, kw_only=True)
class RecallDifference(_WithInterval):
    """Two maps, the same known pairs, one threshold: difference = other_recall - recall, its interval over pairs.

    num_pairs: known pairs with both ends in both maps; num_labels: labels in both maps, of which either null is made
    num_only_first, num_only_other: pairs found by one of the maps alone
    """

    lo: float
    hi: float
    recall: float
    other_recall: float
    difference: float
    num_pairs: int
    num_labels: int
    num_only_first: int
    num_only_other: int


@dataclass(frozen=True, kw_only=True)
class PerturbationScores(_PHitRate):
    """One statistic per perturbation against the same statistic of null perturbations.

    labels: the p perturbations that have it, sorted; values f64[p]; p_values f64[p]; num_replicates i64[p]
    hit_rate: share with p <= alpha, its interval over perturbations; num_null: values of the null, null_values f64[num_null] sorted
    num_dropped: perturbations left out since they have too few replicates
    """

    labels: tuple[str, ...]
    values: NDArray[np.float64]
    p_values: NDArray[np.float64]
    num_replicates: NDArray[np.int64]
    num_null: int
    null_values: NDArray[np.float64]
    num_dropped: int


@dataclass(frozen=True, kw_only=True)
class ComplexScores(_PHitRate):
    """Kolmogorov-Smirnov test per complex.

    names: the c complexes that are large enough, sorted; statistics f64[c]; p_values f64[c]; num_genes i64[c] in the map
    hit_rate: share with p <= alpha, its interval over complexes; num_left_out: complexes with too few genes in the map
    """

    names: tuple[str, ...]
    statistics: NDArray[np.float64]
    p_values: NDArray[np.float64]
    num_genes: NDArray[np.int64]
    num_left_out: int


@dataclass(frozen=True, kw_only=True)
class ProximityBias(_WithInterval):
    """Brunner-Munzel test per chromosome arm.

    arms: the a arms with enough pairs, sorted; effects f64[a]: P(within-arm cosine > between-arm) + P(equal) / 2
    p_values f64[a]: two-sided; num_within, num_between i64[a]: pairs; effect: the mean of effects, its interval over arms
    """

    arms: tuple[str, ...]
    effects: NDArray[np.float64]
    p_values: NDArray[np.float64]
    num_within: NDArray[np.int64]
    num_between: NDArray[np.int64]
    effect: float

    @property
    def chance(self) -> float:
        """The effect where neighbours on a chromosome are no more alike than others."""
        return 0.5


@dataclass(frozen=True, kw_only=True)
class ReplicateRetrieval(_HitRate):
    """Do the replicates of a perturbation come first among all profiles?

    average_precision f64[n], p_values f64[n]: per profile, NaN for one without a replicate
    labels: the p perturbations with two profiles or more, sorted; mean_average_precision, label_p_values, q_values
    f64[p]: q by Benjamini-Hochberg over labels; hit_rate: share with q <= alpha, ci_low and ci_high its interval
    mean_ap: the mean over labels, mean_ap_low and mean_ap_high its interval; chance_ap: the same of random rank lists
    """

    average_precision: NDArray[np.float64]
    p_values: NDArray[np.float64]
    labels: tuple[str, ...]
    mean_average_precision: NDArray[np.float64]
    label_p_values: NDArray[np.float64]
    q_values: NDArray[np.float64]
    mean_ap: float
    mean_ap_low: float | None
    mean_ap_high: float | None
    chance_ap: float
    null_size: int


@dataclass(frozen=True, kw_only=True)
class RecallAt(_WithInterval):
    """Mean over compounds of the share of a compound's targets among its first k genes; the interval is over compounds."""

    k: int
    recall: float
    chance: float


@dataclass(frozen=True, kw_only=True)
class CompoundRetrieval(_WithInterval):
    """Do the known targets of a compound come first among all genes?

    labels: the c compounds with a target in the map, sorted; average_precision, p_values, q_values (Benjamini-Hochberg)
    f64[c]; num_targets i64[c]; mean_ap: the mean over compounds, ci_low and ci_high its interval; chance_ap: of random
    rank lists; recall_at: by k; hit_rate: share with q <= alpha, hit_low and hit_high its interval; num_genes: ranked
    """

    labels: tuple[str, ...]
    average_precision: NDArray[np.float64]
    p_values: NDArray[np.float64]
    q_values: NDArray[np.float64]
    num_targets: NDArray[np.int64]
    mean_ap: float
    chance_ap: float
    recall_at: dict[int, RecallAt]
    hit_rate: float
    hit_low: float | None
    hit_high: float | None
    num_genes: int
    null_size: int
    alpha: float


class HitShare(TypedDict):
    """The fields of `_HitRate`."""

    hit_rate: float
    alpha: float
    ci_low: float | None
    ci_high: float | None


def hit_share(values: NDArray[np.float64], alpha: float, bootstrap: int, seed: int) -> HitShare:
    """Of f64[n] p-values, or q-values, the share that is at most alpha, with the interval of `bootstrap` draws over the n."""
    hits = int((values <= alpha).sum())
    low, high = bootstrap_interval(hits, len(values), bootstrap, seed)
    return HitShare(hit_rate=hits / len(values), alpha=alpha, ci_low=low, ci_high=high)
