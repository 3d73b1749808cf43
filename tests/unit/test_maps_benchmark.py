"""Relationship recall: the notes' vectors, the definition written out naively, what is refused."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps import (
    bootstrap_interval,
    chance_level,
    cosine_map,
    random_features,
    relationship_recall,
    relationship_recalls,
)
from phenomhpc.maps.tails import tails_of

THRESHOLDS = ((0.05, 0.95), (0.1, 0.9), (0.0, 1.0), (0.2, 0.5), (0.0, 0.9), (0.3, 1.0))


def naive_recall(null: NDArray[np.float64], queries: NDArray[np.float64], lo: float, hi: float) -> float:
    """The definition: ranks by searchsorted, both tails."""
    null = np.sort(null)
    left = np.searchsorted(null, queries, "left") / len(null)
    right = np.searchsorted(null, queries, "right") / len(null)
    return float(np.mean((right <= lo) | (left >= hi)))


@pytest.mark.parametrize(("lo", "hi", "expected"), [(0.1, 0.9, 0.0), (0.2, 0.8, 1.0)])
def test_the_notes_vector_holds(lo: float, hi: float, expected: float) -> None:
    null, queries = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1.0, 5.0])
    assert naive_recall(null, queries, lo, hi) == expected
    (below, above) = tails_of(null.copy(), [(lo, hi)])[0]
    assert np.mean((queries < below) | (queries > above)) == expected


@pytest.mark.parametrize("num", [3, 40, 300])
def test_recall_equals_the_definition_to_1e_12(num: int) -> None:
    generator = np.random.default_rng(num)
    features = generator.normal(size=(num, 4)).round(0 if num == 3 else 1) + 0.05  # rounded: ties
    labels = [f"g{number}" for number in range(num)]
    everything = list(combinations(range(num), 2))
    chosen = [everything[row] for row in generator.permutation(len(everything))[: max(2, len(everything) // 7)]]
    pairs = [(labels[j], labels[i]) if (i + j) % 2 else (labels[i], labels[j]) for i, j in chosen]
    pairs += [*pairs[:3], ("g0", "g0"), ("g1", "elsewhere")]
    cosines = cosine_map(features)
    null = cosines[np.triu_indices(num, 1)]
    queries = np.array([cosines[i, j] for i, j in chosen])
    for result in relationship_recall(features, labels, pairs, THRESHOLDS):
        assert abs(result.recall - naive_recall(null, queries, result.lo, result.hi)) < 1e-12
        assert (result.num_pairs, result.num_null) == (len(chosen), num * (num - 1) // 2)
        assert result.interval is not None and result.interval[0] <= result.recall <= result.interval[1]


def test_a_map_of_5000_genes_is_scored_as_defined_within_seconds() -> None:
    num = 5000
    features = np.random.default_rng(1).normal(size=(num, 64))
    labels = [f"g{number:04d}" for number in range(num)]
    rows = np.random.default_rng(2).integers(0, num, size=(20_000, 2))
    began = time.process_time()
    result = relationship_recall(features, labels, [(labels[i], labels[j]) for i, j in rows])
    assert time.process_time() - began < 20.0
    cosines = cosine_map(features)
    known = np.unique(np.sort(rows[rows[:, 0] != rows[:, 1]], axis=1), axis=0)
    for recall in result:
        expected = naive_recall(
            cosines[np.triu_indices(num, 1)], cosines[known[:, 0], known[:, 1]], recall.lo, recall.hi
        )
        assert abs(recall.recall - expected) < 1e-12
        assert recall.num_pairs == len(known)


def test_random_features_score_chance() -> None:
    assert chance_level(0.05, 0.95) == pytest.approx(0.10)
    features = random_features(400, 32, seed=4)
    np.testing.assert_array_equal(features, random_features(400, 32, seed=4))
    assert not np.array_equal(features, random_features(400, 32, seed=5))
    labels = [f"g{number}" for number in range(400)]
    pairs = [(labels[i], labels[j]) for i, j in np.random.default_rng(0).integers(0, 400, size=(8000, 2))]
    first = relationship_recall(features, labels, pairs, bootstrap=100)[0]
    assert abs(first.recall - first.chance) < 0.02


def test_a_planted_pathway_is_found_and_opposites_count_too() -> None:
    generator = np.random.default_rng(6)
    phenotype = generator.normal(size=16)
    features = generator.normal(size=(60, 16))
    features[:4] = 5.0 * phenotype + features[:4]
    features[4] -= 5.0 * phenotype
    labels = [f"g{number}" for number in range(60)]
    alike, opposite = list(combinations(labels[:4], 2)), [(label, "g4") for label in labels[:4]]
    result = relationship_recalls(features, labels, {"alike": alike, "opposite": opposite})
    assert [recall.recall for recall in result["alike"]] == [1.0, 1.0]
    assert [recall.recall for recall in result["opposite"]] == [1.0, 1.0]


def test_the_interval_is_keyed_and_that_of_resampled_pairs() -> None:
    hits, num, draws = 37, 120, 4000
    low, high = bootstrap_interval(hits, num, draws, seed=3)
    assert low is not None and high is not None
    assert (low, high) == bootstrap_interval(hits, num, draws, seed=3)
    assert len({bootstrap_interval(3_700, 12_000, 50, seed) for seed in range(5)}) == 5
    outcomes = np.arange(num) < hits
    resampled = np.random.default_rng(0).choice(outcomes, size=(draws, num)).mean(axis=1)
    np.testing.assert_allclose([low, high], np.quantile(resampled, [0.025, 0.975]), atol=2.0 / num)
    assert low < hits / num < high
    assert bootstrap_interval(hits, num, 0) == (None, None)


@pytest.mark.parametrize("thresholds", [(0.5, 0.5), (0.9, 0.1), (-0.1, 0.9), (0.1, 1.1)])
def test_senseless_thresholds_are_refused(thresholds: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="thresholds: "):
        relationship_recall(np.eye(3), ["a", "b", "c"], [("a", "b")], [thresholds])


def test_duplicate_and_missing_labels_nan_and_an_empty_intersection_are_named() -> None:
    features = np.eye(3)
    with pytest.raises(UsageError, match="label a: more than one row"):
        relationship_recall(features, ["a", "b", "a"], [("a", "b")])
    with pytest.raises(UsageError, match="label of row 2 is missing"):
        relationship_recall(features, ["a", "b", ""], [("a", "b")])
    with pytest.raises(UsageError, match="2 for 3 rows"):
        relationship_recall(features, ["a", "b"], [("a", "b")])
    with pytest.raises(UsageError, match="no known pair has both ends among the map's 3 labels"):
        relationship_recalls(features, ["a", "b", "c"], {"CORUM": [("a", "x")]})
    features[1, 2] = np.inf
    with pytest.raises(UsageError, match="row 1, column 2 is inf"):
        relationship_recall(features, ["a", "b", "c"], [("a", "b")])
