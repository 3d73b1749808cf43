"""Retrieval: ranked by likeness, do the right ones come first?

Average precision of a query whose P right answers stand among T candidates, v_1 >= ... >= v_P their scores:

    AP = 1/P  sum over j of  j / (j + #(wrong answers with a score > v_j))

A wrong answer that ties with a right one comes behind it, as in copairs (Kalinin et al. 2025, doi:10.1038/s41467-025-60306-2).
The null are random rank lists: P of T places drawn without replacement, null_size times, the same for all queries with the
same P and T.  p = (#(null >= AP) + 1) / (null_size + 1); q by Benjamini and Hochberg (1995).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.benchmark import DRAWS, Labels, Pairs
from phenomhpc.maps.bootstrap import RANK_LISTS, check_draws, keyed, mean_interval
from phenomhpc.maps.checks import Features, as_features, as_labels, as_unique_labels
from phenomhpc.maps.relate import listed_pairs, unit_rows
from phenomhpc.maps.results import CompoundRetrieval, RecallAt, ReplicateRetrieval, hit_share
from phenomhpc.maps.threads import in_threads

NULL_SIZE = 10_000
ALPHA = 0.05
KS = (10, 100)

_QUERIES_AT_ONCE = 256
_COMPOUNDS_AT_ONCE = 32
_MANY_RIGHT = 128  # right answers from which on one list at a time is quicker
_ROUNDING = 1e-12  # two average precisions that differ by less are the same fraction


def replicate_retrieval(
    features: ArrayLike,
    labels: Labels,
    *,
    null_size: int = NULL_SIZE,
    alpha: float = ALPHA,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> ReplicateRetrieval:
    """Every profile asks for its replicates among all other profiles, by cosine.

    features: f64[n, d], aligned wells, or guides, without controls; labels: the perturbation of every row
    Mean average precision of a perturbation is the mean over its profiles; its p compares with the null of one profile, as
    copairs does, since profiles of one perturbation are not independent.  Time grows with n squared: 20,000 rows take seconds.
    Raises UsageError for a missing label, for no perturbation with two rows, and for one alone.
    """
    check_draws(bootstrap, seed)
    array = as_features(features)
    of_row = as_labels(labels, len(array))
    unit = unit_rows(array, of_row)
    names, code, counts = np.unique(np.array(of_row), return_inverse=True, return_counts=True)
    if counts.max() < 2:
        raise UsageError(f"replicate retrieval: none of {len(names)} labels has two rows; give replicates, not means")
    if len(names) < 2:
        raise UsageError(f"replicate retrieval: all rows are {names[0]}; give those of others to tell it from")
    precision = _replicate_precision(unit, code, counts)
    num_candidates = len(unit) - 1
    nulls = rank_nulls(set(counts[counts > 1] - 1), num_candidates, null_size, seed)
    p_values = np.full(len(unit), np.nan)
    for row in np.flatnonzero(counts[code] > 1):
        p_values[row] = _p_value(nulls[counts[code[row]] - 1], precision[row])
    scored = np.flatnonzero(counts > 1)
    sums = np.bincount(code, weights=np.nan_to_num(precision), minlength=len(names))
    means = sums[scored] / counts[scored]
    label_p = np.array([_p_value(nulls[counts[c] - 1], ap) for c, ap in zip(scored, means, strict=True)])
    q_values = benjamini_hochberg(label_p)
    mean_low, mean_high = mean_interval(means, bootstrap, seed)
    chance = np.mean([expected_precision(int(counts[c]) - 1, num_candidates) for c in scored])
    return ReplicateRetrieval(
        average_precision=precision,
        p_values=p_values,
        labels=tuple(str(names[c]) for c in scored),
        mean_average_precision=means,
        label_p_values=label_p,
        q_values=q_values,
        mean_ap=float(means.mean()),
        mean_ap_low=mean_low,
        mean_ap_high=mean_high,
        chance_ap=float(chance),
        null_size=null_size,
        **hit_share(q_values, alpha, bootstrap, seed),
    )


def compound_gene_retrieval(
    compounds: ArrayLike,
    compound_labels: Labels,
    genes: ArrayLike,
    gene_labels: Labels,
    targets: Pairs,
    *,
    ks: Sequence[int] = KS,
    null_size: int = NULL_SIZE,
    alpha: float = ALPHA,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> CompoundRetrieval:
    """Every compound asks for the genes that it is known to act on among all genes of the map, by |cosine|.

    compounds: f64[r, d], one profile per compound, or several with one label (doses), of which the largest |cosine| counts
    genes: f64[g, d], one per label; targets: (compound, gene), repeats welcome
    Either sign counts, since a drug may do as a knockout does, or the opposite.  A compound counts when one of its targets is
    in the map.  recall_at[k]: the share of targets among the first k genes, ties in the target's favour; chance: min(k, g) / g.
    Raises UsageError for a missing label, a duplicate gene, no compound with a target in the map, or k < 1.
    """
    check_draws(bootstrap, seed)
    compounds, genes = as_features(compounds), as_features(genes)
    if compounds.shape[1] != genes.shape[1]:
        raise UsageError(
            f"compound-gene: compounds have {compounds.shape[1]} features, genes {genes.shape[1]}; align both together"
        )
    if not ks or min(ks) < 1:
        raise UsageError(
            f"ks={','.join(map(str, ks)) or 'none'}: how many genes count as the first, each at least 1, such as 10,100"
        )
    names = as_unique_labels(gene_labels, len(genes))
    doses = as_labels(compound_labels, len(compounds), "compound label")
    compound_unit, gene_unit = unit_rows(compounds, doses), unit_rows(genes, names)
    rows = _rows_by_label(doses)
    wanted = _targets_in_map(rows, names, targets)
    found = {
        name: _target_places(scores, wanted[name])
        for name, scores in _scores_of(compound_unit, {name: rows[name] for name in wanted}, gene_unit)
    }
    num_targets = np.array([len(places) for places, _ in found.values()])
    precision = np.array([_precision_of(wrong) for _, wrong in found.values()])
    nulls = rank_nulls(set(num_targets), len(names), null_size, seed)
    p_values = np.array([_p_value(nulls[n], ap) for n, ap in zip(num_targets, precision, strict=True)])
    q_values = benjamini_hochberg(p_values)
    hits = hit_share(q_values, alpha, bootstrap, seed)
    low, high = mean_interval(precision, bootstrap, seed)
    return CompoundRetrieval(
        labels=tuple(found),
        average_precision=precision,
        p_values=p_values,
        q_values=q_values,
        num_targets=num_targets,
        mean_ap=float(precision.mean()),
        ci_low=low,
        ci_high=high,
        chance_ap=float(np.mean([expected_precision(int(n), len(names)) for n in num_targets])),
        recall_at={k: _recall_at(k, [places for places, _ in found.values()], len(names), bootstrap, seed) for k in ks},
        hit_rate=hits["hit_rate"],
        hit_low=hits["ci_low"],
        hit_high=hits["ci_high"],
        num_genes=len(names),
        null_size=null_size,
        alpha=alpha,
    )


def rank_nulls(num_right: set[int], num_candidates: int, null_size: int, seed: int) -> dict[int, NDArray[np.float64]]:
    """Sorted average precisions of null_size random rank lists, per number of right answers: f64[null_size].

    Keyed by (seed, right answers, candidates): a perturbation's null does not depend on which others are in the map.
    """
    if null_size < 1:
        raise UsageError(f"null_size={null_size}: random rank lists of the null, at least 1; 10000 is usual")
    return {int(num): np.sort(_random_precisions(int(num), num_candidates, null_size, seed)) for num in num_right}


def _random_precisions(num: int, num_candidates: int, null_size: int, seed: int) -> NDArray[np.float64]:
    generator = keyed(seed, RANK_LISTS, num, num_candidates)
    places = np.full((null_size, num), -1, dtype=np.int64)
    if num > _MANY_RIGHT:
        for row in range(null_size):
            places[row] = generator.choice(num_candidates, num, replace=False, shuffle=False)
    else:
        # Floyd's algorithm (Bentley and Floyd 1987), for all lists at once.
        for column, last in enumerate(range(num_candidates - num, num_candidates)):
            drawn = generator.integers(0, last + 1, size=null_size)
            taken = (places[:, :column] == drawn[:, None]).any(axis=1)
            places[:, column] = np.where(taken, last, drawn)
    places.sort(axis=1)
    precisions: NDArray[np.float64] = (np.arange(1, num + 1) / (places + 1)).mean(axis=1)
    return precisions


def expected_precision(num_right: int, num_candidates: int) -> float:
    """Average precision of a random rank list, on average.

    The list's k-th place is right with probability P/T, and then (P - 1)/(T - 1) of the k - 1 places before are:
    1/T sum over k of  (1 + (k - 1)(P - 1)/(T - 1)) / k.
    """
    if num_candidates == 1:
        return 1.0
    share = (num_right - 1) / (num_candidates - 1)
    harmonic = float((1.0 / np.arange(1, num_candidates + 1)).sum())
    return (harmonic * (1.0 - share) + num_candidates * share) / num_candidates


def benjamini_hochberg(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """False discovery rates q f64[n] of p-values: the least rate at which each would be called."""
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * len(p_values) / np.arange(1, len(p_values) + 1)
    q_values = np.empty(len(p_values))
    q_values[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(max=1.0)
    return q_values


def _replicate_precision(unit: Features, code: NDArray[np.intp], counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """AP of every row; NaN for one without replicate.  Holds _QUERIES_AT_ONCE rows of the cosines in each thread."""
    from phenomhpc.maps.retrieval_loops import average_precisions

    order = np.argsort(code, kind="stable")
    starts = np.concatenate([[0], np.cumsum(counts)])

    def of_queries(first: int) -> NDArray[np.float64]:
        return average_precisions(unit[first : first + _QUERIES_AT_ONCE] @ unit.T, first, code, order, starts)

    return np.concatenate(list(in_threads(of_queries, range(0, len(unit), _QUERIES_AT_ONCE))))


def _rows_by_label(names: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    return dict(sorted(rows.items()))


def _targets_in_map(rows: Mapping[str, list[int]], genes: list[str], targets: Pairs) -> dict[str, NDArray[np.intp]]:
    """Columns of the targets of every compound that has one in the map, by compound, sorted."""
    column = {name: number for number, name in enumerate(genes)}
    found: dict[str, set[int]] = {name: set() for name in rows}
    for compound, gene in listed_pairs(targets, "targets"):
        if compound in found and gene in column:
            found[compound].add(column[gene])
    wanted = {name: np.array(sorted(columns), dtype=np.intp) for name, columns in found.items() if columns}
    if not wanted:
        raise UsageError(
            f"compound-gene: no target has its compound among the {len(rows)} compounds ({next(iter(rows))}, ...) and its gene "
            f"among the {len(genes)} genes ({genes[0]}, ...); names must agree"
        )
    return wanted


def _scores_of(
    compounds: Features, rows: Mapping[str, list[int]], genes: Features
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(compound, f64[g]: its largest |cosine| over doses with every gene), many compounds by one product."""
    names = list(rows)
    parts = [names[first : first + _COMPOUNDS_AT_ONCE] for first in range(0, len(names), _COMPOUNDS_AT_ONCE)]

    def largest(some: list[str]) -> NDArray[np.float64]:
        starts = np.cumsum([0, *(len(rows[name]) for name in some)])[:-1]
        cosines = np.abs(compounds[[row for name in some for row in rows[name]]] @ genes.T)
        scores: NDArray[np.float64] = np.maximum.reduceat(cosines, starts, axis=0)
        return scores

    for some, scores in zip(parts, in_threads(largest, parts), strict=True):
        yield from zip(some, scores, strict=True)


def _target_places(
    scores: NDArray[np.float64], targets: NDArray[np.intp]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of every target: genes with a larger score than it has; of these, those that are no targets; best target first."""
    values = np.sort(scores[targets])[::-1]
    others = np.sort(np.delete(scores, targets))
    wrong = len(others) - np.searchsorted(others, values, "right")
    return wrong + (len(values) - np.searchsorted(values[::-1], values, "right")), wrong


def _precision_of(wrong: NDArray[np.int64]) -> float:
    right = np.arange(1, len(wrong) + 1)
    return float((right / (right + wrong)).mean())


def _recall_at(k: int, places: list[NDArray[np.int64]], num_genes: int, bootstrap: int, seed: int) -> RecallAt:
    shares = np.array([(better < k).mean() for better in places])
    low, high = mean_interval(shares, bootstrap, seed)
    return RecallAt(k=k, recall=float(shares.mean()), ci_low=low, ci_high=high, chance=min(k, num_genes) / num_genes)


def _p_value(null: NDArray[np.float64], observed: float) -> float:
    """(#(null >= observed) + 1) / (n + 1), null sorted."""
    return float((len(null) - np.searchsorted(null, observed - _ROUNDING, "left") + 1) / (len(null) + 1))
