"""Retrieval against ranked lists made by hand, and against copairs where it is installed."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps import compound_gene_retrieval, cosine_map, replicate_retrieval
from phenomhpc.maps.retrieval import benjamini_hochberg, expected_precision, rank_nulls
from tests.unit import naive_maps as naive

Array = NDArray[np.float64]


def profiles(ties: bool = False) -> tuple[Array, list[str]]:
    """Labels of 1 to 5 rows, in no order; more than one block of queries."""
    generator = np.random.default_rng(2)
    labels = [f"p{n:02d}" for n in range(100) for _ in range(1 + n % 5)]
    centres = generator.normal(size=(100, 3 if ties else 12))
    features = centres[[int(name[1:]) for name in labels]] + generator.normal(size=(len(labels), centres.shape[1]))
    order = generator.permutation(len(labels))
    features = features.round() + 0.25 if ties else features
    return features[order], [labels[row] for row in order]


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_is_that_of_the_ranked_list(ties: bool) -> None:
    features, labels = profiles(ties)
    # The block of queries is computed apart, so exact ties are told by the very product that ranks them.
    unit = features / np.linalg.norm(features, axis=1)[:, None]
    cosines = np.concatenate([unit[start : start + 256] @ unit.T for start in range(0, len(unit), 256)])
    result = replicate_retrieval(features, labels, null_size=500)
    for row, name in enumerate(labels):
        others = [(cosines[row, other], labels[other] == name) for other in range(len(labels)) if other != row]
        if any(right for _, right in others):
            assert abs(result.average_precision[row] - naive.average_precision(others)) < 1e-12
        else:
            assert np.isnan(result.average_precision[row]) and np.isnan(result.p_values[row])


def test_means_p_and_q_are_as_defined() -> None:
    features, labels = profiles()
    result = replicate_retrieval(features, labels, null_size=2000)
    counts = {name: labels.count(name) for name in set(labels)}
    names = sorted(name for name, count in counts.items() if count > 1)
    assert list(result.labels) == names
    nulls = rank_nulls({counts[name] - 1 for name in names}, len(labels) - 1, 2000, 0)
    for number, name in enumerate(names):
        rows = [row for row, other in enumerate(labels) if other == name]
        mean = np.mean(result.average_precision[rows])
        assert abs(result.mean_average_precision[number] - mean) < 1e-12
        null = nulls[counts[name] - 1]
        assert abs(result.label_p_values[number] - (np.sum(null >= mean - 1e-12) + 1) / 2001) < 1e-12
        for row in rows:
            expected = (np.sum(null >= result.average_precision[row] - 1e-12) + 1) / 2001
            assert abs(result.p_values[row] - expected) < 1e-12
    np.testing.assert_allclose(
        result.q_values, naive.benjamini_hochberg(result.label_p_values.tolist()), rtol=0, atol=1e-12
    )
    assert result.hit_rate == np.mean(result.q_values <= 0.05) > 0.3
    assert abs(result.mean_ap - result.mean_average_precision.mean()) < 1e-12
    assert result.mean_ap > 3 * result.chance_ap
    assert result.mean_ap_low is not None and result.mean_ap_low < result.mean_ap
    assert result.interval is not None and result.interval[0] <= result.hit_rate <= result.interval[1]


def test_copairs_finds_the_same() -> None:
    pytest.importorskip("copairs", reason="copairs is not installed (extra maps)")
    import pandas as pd
    from copairs.map import average_precision, mean_average_precision

    features, labels = profiles()
    meta = pd.DataFrame({"label": labels})
    theirs = average_precision(meta, features, ["label"], [], [], ["label"], progress_bar=False)
    ours = replicate_retrieval(features, labels)
    scored = ~np.isnan(ours.average_precision)
    found = theirs.sort_index()["average_precision"].to_numpy()
    np.testing.assert_allclose(ours.average_precision[scored], found[scored], rtol=0, atol=1e-5)  # theirs are float32
    means = mean_average_precision(
        theirs.dropna(subset="average_precision"),
        ["label"],
        null_size=10_000,
        threshold=0.05,
        seed=0,
        progress_bar=False,
    ).sort_values("label")
    assert list(means["label"]) == list(ours.labels)
    np.testing.assert_allclose(means["mean_average_precision"], ours.mean_average_precision, rtol=0, atol=1e-5)
    np.testing.assert_allclose(means["p_value"], ours.label_p_values, rtol=0, atol=0.02)  # another draw of the null
    np.testing.assert_allclose(means["corrected_p_value"], ours.q_values, rtol=0, atol=0.03)


@pytest.mark.parametrize(("num_right", "num_candidates"), [(1, 1), (1, 6), (2, 6), (3, 7), (5, 5), (4, 9)])
def test_random_rank_lists_have_the_distribution_of_all_rank_lists(num_right: int, num_candidates: int) -> None:
    exact = [
        np.mean([(n + 1) / (place + 1) for n, place in enumerate(places)])
        for places in combinations(range(num_candidates), num_right)
    ]
    assert abs(expected_precision(num_right, num_candidates) - np.mean(exact)) < 1e-12
    null = rank_nulls({num_right}, num_candidates, 20_000, 0)[num_right]
    for value in np.unique(np.round(exact, 9)):
        assert abs(np.mean(null >= value - 1e-9) - np.mean(np.array(exact) >= value - 1e-9)) < 0.015


def test_nulls_are_keyed_and_many_right_answers_are_drawn_alike() -> None:
    null = rank_nulls({3, 200}, 1000, 400, 7)
    np.testing.assert_array_equal(null[3], rank_nulls({3}, 1000, 400, 7)[3])
    assert not np.array_equal(null[3], rank_nulls({3}, 1000, 400, 8)[3])
    assert abs(null[200].mean() - expected_precision(200, 1000)) < 0.01


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    p_values = np.array([0.01, 0.04, 0.03, 0.005, 1.0, 0.04])
    np.testing.assert_allclose(benjamini_hochberg(p_values), naive.benjamini_hochberg(p_values.tolist()), atol=1e-15)
    np.testing.assert_allclose(benjamini_hochberg(np.array([0.01, 0.02, 0.03])), 0.03, atol=1e-15)


def compounds() -> tuple[Array, list[str], Array, list[str], list[tuple[str, str]]]:
    """40 genes; 12 compounds at 2 doses, the later of which does as its first target does, or the opposite."""
    generator = np.random.default_rng(4)
    gene_profiles, genes = generator.normal(size=(40, 16)), [f"g{n:02d}" for n in range(40)]
    labels = [f"c{n:02d}" for n in range(12) for _ in range(2)]
    targets = [(f"c{n:02d}", f"g{(3 * n + step) % 40:02d}") for n in range(10) for step in range(1 + n % 3)]
    wells = generator.normal(size=(24, 16))
    for n in range(10):
        wells[2 * n + 1] += (-1.0) ** n * 2.5 * gene_profiles[3 * n]
    return wells, labels, gene_profiles, genes, targets


def test_targets_are_ranked_by_absolute_cosine_over_doses() -> None:
    wells, labels, gene_profiles, genes, targets = compounds()
    listed = [*targets, targets[0], ("c10", "elsewhere"), ("elsewhere", "g01")]
    result = compound_gene_retrieval(wells, labels, gene_profiles, genes, listed, ks=(1, 5, 100), null_size=1000)
    assert list(result.labels) == [f"c{n:02d}" for n in range(10)] and result.num_genes == 40
    cosines = cosine_map(np.concatenate([wells, gene_profiles]))[:24, 24:]
    shares: dict[int, list[float]] = {1: [], 5: [], 100: []}
    for number, name in enumerate(result.labels):
        rows = [row for row, other in enumerate(labels) if other == name]
        mine = {gene for compound, gene in targets if compound == name}
        scores = [(max(abs(cosines[row, column]) for row in rows), gene in mine) for column, gene in enumerate(genes)]
        assert abs(result.average_precision[number] - naive.average_precision(scores)) < 1e-12
        assert result.num_targets[number] == len(mine)
        null = rank_nulls({len(mine)}, 40, 1000, 0)[len(mine)]
        expected = (np.sum(null >= result.average_precision[number] - 1e-12) + 1) / 1001
        assert abs(result.p_values[number] - expected) < 1e-12
        best = sorted(scores, reverse=True)
        for k, found in shares.items():
            found.append(sum(right for _, right in best[:k]) / len(mine))
    for k, found in shares.items():
        assert abs(result.recall_at[k].recall - np.mean(found)) < 1e-12
        assert result.recall_at[k].chance == min(k, 40) / 40
        assert result.recall_at[k].interval is not None
    assert abs(result.mean_ap - result.average_precision.mean()) < 1e-12
    assert result.mean_ap > 2 * result.chance_ap
    assert result.hit_rate == np.mean(result.q_values <= 0.05) > 0.3


def test_what_cannot_be_retrieved_is_named() -> None:
    features, _ = profiles()
    with pytest.raises(UsageError, match="none of 3 labels has two rows"):
        replicate_retrieval(features[:3], ["a", "b", "c"])
    with pytest.raises(UsageError, match="all rows are a"):
        replicate_retrieval(features[:3], ["a", "a", "a"])
    with pytest.raises(UsageError, match="label of row 1 is missing"):
        replicate_retrieval(features[:3], ["a", "", "a"])
    wells, names, gene_profiles, genes, targets = compounds()
    with pytest.raises(UsageError, match="no target has its compound among the 12 compounds"):
        compound_gene_retrieval(wells, names, gene_profiles, genes, [("c00", "elsewhere")])
    with pytest.raises(UsageError, match="compounds have 15 features, genes 16"):
        compound_gene_retrieval(wells[:, :15], names, gene_profiles, genes, targets)
    with pytest.raises(UsageError, match="label g01: more than one row"):
        compound_gene_retrieval(wells, names, gene_profiles, ["g01", *genes[1:]], targets)
    with pytest.raises(UsageError, match="compound label of row 0 is missing"):
        compound_gene_retrieval(wells, ["", *names[1:]], gene_profiles, genes, targets)
    with pytest.raises(UsageError, match="ks=0"):
        compound_gene_retrieval(wells, names, gene_profiles, genes, targets, ks=(0,))
