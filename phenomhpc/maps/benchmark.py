"""How much known biology a map finds again.

Relationship recall (Celik et al. 2022, doi:10.1101/2022.12.09.519400).  Of the known pairs with both ends in the map, which
share lies in the tails of the map's own cosines?  With q a known pair's cosine and the null the n cosines of ALL unordered
pairs of the map,

    rL(q) = #(null <  q) / n,     rR(q) = #(null <= q) / n
    recall(lo, hi) = mean over known pairs of  [rR <= lo or rL >= hi]

so pairs count when they are among the most alike or the most opposite.  A map that knows nothing gets lo + 1 - hi: 0.10 at
(0.05, 0.95).

Rather than ranking every pair, tails.py finds the two order statistics a threshold asks for: exactly the same hits, in one pass.
Intervals resample the known pairs and take them as independent, which they are not quite, since pairs share genes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.bootstrap import RANDOM_FEATURES, bootstrap_interval, check_draws, difference_interval, keyed
from phenomhpc.maps.checks import BLOCK_ROWS, Features, Rows, as_features, as_unique_labels
from phenomhpc.maps.relate import mapped_pairs, unit_rows
from phenomhpc.maps.results import ArmRecalls, Recall, RecallDifference
from phenomhpc.maps.tails import ScoredPairs, Tail, Threshold, scored_pairs

THRESHOLDS = ((0.05, 0.95), (0.1, 0.9))
DRAWS = 1000  # of a bootstrap

Pairs = Iterable[Sequence[str]] | NDArray[np.str_]
Labels = Sequence[str] | NDArray[np.str_]


def check_thresholds(thresholds: Sequence[Threshold]) -> None:
    """Raise UsageError for none at all, and for a pair that is not 0 <= low < high <= 1."""
    if not thresholds:
        raise UsageError("thresholds: none given; (0.05, 0.95) is usual")
    for lo, hi in thresholds:
        if not 0.0 <= lo < hi <= 1.0:
            raise UsageError(f"thresholds: ({lo}, {hi}); the two are shares of the null, 0 <= low < high <= 1")


def relationship_recall(
    features: ArrayLike,
    labels: Labels,
    pairs: Pairs,
    thresholds: Sequence[Threshold] = THRESHOLDS,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> list[Recall]:
    """Recall of known pairs in a map, one result per threshold, in their order.

    features: f64[g, d], one profile per label; pairs: two names each, in any direction, repeats welcome
    bootstrap: draws of the interval, 0 for none; seed: its key
    Raises UsageError for a duplicate or missing label, NaN, no pair with both ends in the map, or a senseless threshold.
    """
    return relationship_recalls(features, labels, {"pairs": pairs}, thresholds, bootstrap, seed)["pairs"]


def relationship_recalls(
    features: ArrayLike,
    labels: Labels,
    annotations: Mapping[str, Pairs],
    thresholds: Sequence[Threshold] = THRESHOLDS,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> dict[str, list[Recall]]:
    """`relationship_recall` of several annotations against one null, computed once.  Names as in `annotations`."""
    check_draws(bootstrap, seed)
    check_thresholds(thresholds)
    array = as_features(features)
    names = as_unique_labels(labels, len(array))
    known = _known_pairs(names, annotations)
    scored, cosines = _score(array, names, known, thresholds)
    return {name: _recalls(values, scored, thresholds, bootstrap, seed) for name, values in cosines.items()}


def recalls_by_arm(
    features: ArrayLike,
    labels: Labels,
    annotations: Mapping[str, Pairs],
    arms: Mapping[str, str],
    thresholds: Sequence[Threshold] = THRESHOLDS,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> dict[str, ArmRecalls]:
    """`relationship_recalls` of known pairs on one chromosome arm and of those on two, both against the null of all pairs.

    arms: gene -> arm, as `arms_of` gives it.  Where chromosome neighbours look alike by accident, recall within arms is high
    and falls by `arm_correction`, that between arms does not.  Raises UsageError as `relationship_recalls` does, and where no
    annotation has a pair with both ends on known arms.
    """
    check_draws(bootstrap, seed)
    check_thresholds(thresholds)
    array = as_features(features)
    names = as_unique_labels(labels, len(array))
    known = _known_pairs(names, annotations)
    of_row = np.array([arms.get(name, "") for name in names])
    placed = {name: (of_row[pairs] != "").all(axis=1) for name, pairs in known.items()}
    if not any(rows.any() for rows in placed.values()):
        raise UsageError(
            f"recall by arm: no known pair has both ends among the {int((of_row != '').sum())} of {len(names)} labels on known "
            f"arms; name genes in arms as the map does ({names[0]}, ...)"
        )
    scored, cosines = _score(array, names, known, thresholds)
    result = {}
    for name, pairs in known.items():
        same = of_row[pairs[:, 0]] == of_row[pairs[:, 1]]
        within, between = placed[name] & same, placed[name] & ~same
        result[name] = ArmRecalls(
            within=tuple(_recalls(cosines[name][within], scored, thresholds, bootstrap, seed)),
            between=tuple(_recalls(cosines[name][between], scored, thresholds, bootstrap, seed)),
            num_unplaced=int((~placed[name]).sum()),
        )
    return result


def compare_recalls(
    features: ArrayLike,
    labels: Labels,
    other_features: ArrayLike,
    other_labels: Labels,
    annotations: Mapping[str, Pairs],
    thresholds: Sequence[Threshold] = THRESHOLDS,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> dict[str, list[RecallDifference]]:
    """How much more of the same known pairs another map finds, with paired intervals, per annotation and threshold.

    features f64[g, d], other_features f64[h, e]: profiles of two maps, of two checkpoints, say; both are cut down to the labels
    that both have, so pairs and nulls are of the same genes.  A draw resamples pairs, each with what either map made of it.
    Raises UsageError as `relationship_recalls` does, and for maps with fewer than two labels in common.
    """
    check_draws(bootstrap, seed)
    check_thresholds(thresholds)
    array, other = as_features(features), as_features(other_features)
    names, other_names = as_unique_labels(labels, len(array)), as_unique_labels(other_labels, len(other))
    common = sorted(set(names) & set(other_names))
    if len(common) < 2:
        raise UsageError(
            f"compare: the maps have {len(common)} labels in common ({names[0]}, ... and {other_names[0]}, ...); "
            "the names must be of one kind, such as gene symbols"
        )
    known = _known_pairs(common, annotations)
    first, cosines = _score(array[_rows_of(common, names)], common, known, thresholds)
    second, other_cosines = _score(other[_rows_of(common, other_names)], common, known, thresholds)
    result: dict[str, list[RecallDifference]] = {}
    for name in known:
        result[name] = []
        for threshold, tail, other_tail in zip(thresholds, first.tails, second.tails, strict=True):
            hit, other_hit = hits_of(cosines[name], tail), hits_of(other_cosines[name], other_tail)
            result[name].append(_difference(hit, other_hit, threshold, len(common), bootstrap, seed))
    return result


def random_features(num_rows: int, num_features: int, seed: int = 0, out: Rows | None = None) -> Rows:
    """Standard normal features f64[num_rows, num_features]: the baseline that has seen nothing.  Keyed by the seed.

    out: an array of that shape that they are written into, such as a mapped file
    """
    features = np.empty((num_rows, num_features)) if out is None else out
    generator = keyed(seed, RANDOM_FEATURES)
    for start in range(0, num_rows, BLOCK_ROWS):
        some = features[start : start + BLOCK_ROWS]
        some[:] = generator.standard_normal(some.shape)
    return features


def hits_of(cosines: NDArray[np.float64], tail: Tail) -> NDArray[np.bool_]:
    """Which pairs lie in a tail of the null: bool[p]."""
    below, above = tail
    hits: NDArray[np.bool_] = (cosines < below) | (cosines > above)
    return hits


def _known_pairs(names: list[str], annotations: Mapping[str, Pairs]) -> dict[str, NDArray[np.intp]]:
    known = {name: mapped_pairs(names, pairs, name) for name, pairs in annotations.items()}
    for name, pairs in known.items():
        if not len(pairs):
            raise UsageError(
                f"{name}: no known pair has both ends among the map's {len(names)} labels ({names[0]}, ...); "
                "the names must be of one kind, such as gene symbols"
            )
    return known


def _score(
    array: Features, names: Sequence[str], known: Mapping[str, NDArray[np.intp]], thresholds: Sequence[Threshold]
) -> tuple[ScoredPairs, dict[str, NDArray[np.float64]]]:
    """The tails, and the cosines of every annotation's pairs."""
    pairs = np.concatenate([*known.values(), np.empty((0, 2), np.intp)])
    scored = scored_pairs(unit_rows(array, names), pairs, thresholds)
    ends = np.cumsum([len(rows) for rows in known.values()])[:-1]
    return scored, dict(zip(known, np.split(scored.cosines, ends), strict=False))


def _recalls(
    cosines: NDArray[np.float64], scored: ScoredPairs, thresholds: Sequence[Threshold], bootstrap: int, seed: int
) -> list[Recall]:
    """One per threshold; none for no pairs."""
    result = []
    for (lo, hi), tail in zip(thresholds, scored.tails, strict=True):
        num, hits = len(cosines), int(hits_of(cosines, tail).sum())
        if not num:
            break
        low, high = bootstrap_interval(hits, num, bootstrap, seed)
        result.append(
            Recall(
                lo=lo, hi=hi, recall=hits / num, ci_low=low, ci_high=high, num_pairs=num, num_null=scored.num_null
            )
        )  # fmt: skip
    return result


def _difference(
    hit: NDArray[np.bool_],
    other_hit: NDArray[np.bool_],
    threshold: Threshold,
    num_labels: int,
    bootstrap: int,
    seed: int,
) -> RecallDifference:
    num, lost, gained = len(hit), int((hit & ~other_hit).sum()), int((other_hit & ~hit).sum())
    low, high = difference_interval(gained, lost, num, bootstrap, seed)
    return RecallDifference(
        lo=threshold[0],
        hi=threshold[1],
        recall=float(hit.mean()),
        other_recall=float(other_hit.mean()),
        difference=(gained - lost) / num,
        ci_low=low,
        ci_high=high,
        num_pairs=num,
        num_labels=num_labels,
        num_only_first=lost,
        num_only_other=gained,
    )


def _rows_of(wanted: list[str], names: list[str]) -> NDArray[np.intp]:
    row = {name: number for number, name in enumerate(names)}
    return np.array([row[name] for name in wanted], dtype=np.intp)
