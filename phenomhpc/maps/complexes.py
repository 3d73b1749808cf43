"""Are the genes of a protein complex alike?"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.benchmark import DRAWS, Labels
from phenomhpc.maps.bootstrap import check_draws
from phenomhpc.maps.checks import Features, as_features, as_unique_labels
from phenomhpc.maps.relate import cosines_of_groups, unit_rows
from phenomhpc.maps.results import ComplexScores, hit_share

MIN_GENES = 10
ALPHA = 0.05


def complex_coherence(
    features: ArrayLike,
    labels: Labels,
    complexes: Mapping[str, Collection[str]],
    *,
    min_genes: int = MIN_GENES,
    alpha: float = ALPHA,
    bootstrap: int = DRAWS,
    seed: int = 0,
) -> ComplexScores:
    """Kolmogorov-Smirnov test, two-sided, of the cosines within a complex against those of its genes with all other genes.

    features: f64[g, d], one profile per label; complexes: name -> genes, of which those in the map count, once each
    Complexes with min_genes or more in the map are tested.  Holds cosines of one complex with all genes, or of as many complexes
    as HELD_COSINES allows.  The test takes pairs as independent, which they are not (they share genes), so p is small too often;
    compare with a baseline's hit rate.
    Raises UsageError for a duplicate or missing label, and where no complex has enough genes, or one has all of them.
    """
    check_draws(bootstrap, seed)
    array = as_features(features)
    names = as_unique_labels(labels, len(array))
    row = {name: number for number, name in enumerate(names)}
    mapped = {name: sorted({row[gene] for gene in complexes[name] if gene in row}) for name in sorted(complexes)}
    tested = {name: np.array(rows) for name, rows in mapped.items() if len(rows) >= min_genes}
    if not tested:
        largest = max(mapped, key=lambda name: len(mapped[name]), default=None)
        most = "" if largest is None else f" (most: {largest}, {len(mapped[largest])})"
        raise UsageError(
            f"coherence: none of {len(complexes)} complexes has {min_genes} genes in the map{most}; name genes as the map does "
            f"({names[0]}, ...), or lower min_genes"
        )
    everything = next((name for name, rows in tested.items() if len(rows) == len(names)), None)
    if everything is not None:
        raise UsageError(
            f"coherence: all {len(names)} genes of the map are in {everything}, so there are none to compare with; leave it out"
        )
    results = [
        _kolmogorov_smirnov(cosines, rows) for _, cosines, rows in cosines_of_groups(unit_rows(array, names), tested)
    ]
    p_values = np.array([p_value for _, p_value in results])
    return ComplexScores(
        names=tuple(tested),
        statistics=np.array([statistic for statistic, _ in results]),
        p_values=p_values,
        num_genes=np.array([len(rows) for rows in tested.values()]),
        num_left_out=len(complexes) - len(tested),
        **hit_share(p_values, alpha, bootstrap, seed),
    )


def _kolmogorov_smirnov(cosines: Features, rows: NDArray[np.intp]) -> tuple[float, float]:
    """Statistic and p of a complex: cosines f64[r, g] of its rows i64[r] with all genes."""
    from scipy.stats import ks_2samp

    outside = np.ones(cosines.shape[1], np.bool_)
    outside[rows] = False
    within = cosines[:, rows][np.triu_indices(len(rows), 1)]
    with warnings.catch_warnings():
        # Where scipy's exact p cannot be computed it says so and gives the asymptotic one.
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        result = ks_2samp(within, cosines[:, outside].ravel())
    return float(result.statistic), float(result.pvalue)
