"""Aggregation, cosines, known pairs."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from phenomhpc.errors import UsageError
from phenomhpc.maps import (
    aggregate,
    connected_groups,
    cosine_map,
    cosine_null,
    mapped_pairs,
    similarity_order,
    unique_pairs,
)
from phenomhpc.maps.relate import BLOCK_ROWS


@pytest.mark.parametrize("how", ["mean", "median"])
def test_aggregate_equals_the_definition(how: str) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(50, 3))
    labels = [f"g{number}" for number in generator.integers(0, 7, size=50)]
    profiles, names = aggregate(features, labels, how)
    assert names == sorted(set(labels))
    for name, profile in zip(names, profiles, strict=True):
        rows = features[[label == name for label in labels]]
        np.testing.assert_allclose(profile, getattr(np, how)(rows, axis=0), rtol=0, atol=1e-12)


def test_aggregate_refuses_missing_labels_and_unknown_ways() -> None:
    with pytest.raises(UsageError, match="label of row 1 is missing"):
        aggregate(np.ones((2, 2)), ["a", ""])
    with pytest.raises(UsageError, match="how=mode"):
        aggregate(np.ones((2, 2)), ["a", "b"], "mode")


def test_cosine_map_equals_the_definition_over_more_than_one_block() -> None:
    matrix = np.random.default_rng(1).normal(size=(BLOCK_ROWS + 40, 8))
    cosines = cosine_map(matrix)
    for i, j in [(0, 1), (3, BLOCK_ROWS + 5), (BLOCK_ROWS, BLOCK_ROWS + 39), (BLOCK_ROWS + 7, 2)]:
        expected = matrix[i] @ matrix[j] / (np.linalg.norm(matrix[i]) * np.linalg.norm(matrix[j]))
        assert abs(cosines[i, j] - expected) < 1e-12
    np.testing.assert_array_equal(cosines, cosines.T)
    np.testing.assert_array_equal(np.diag(cosines), 1.0)


def test_the_null_and_its_pairs_are_the_maps_upper_triangle_to_the_last_bit() -> None:
    matrix = np.random.default_rng(2).normal(size=(BLOCK_ROWS + 9, 5))
    cosines, null = cosine_map(matrix), cosine_null(matrix)
    upper = np.triu_indices(len(matrix), 1)
    np.testing.assert_array_equal(null.values, cosines[upper])
    pairs = np.array([(0, 1), (5, BLOCK_ROWS + 8), (BLOCK_ROWS - 1, BLOCK_ROWS), (BLOCK_ROWS + 7, BLOCK_ROWS + 8)])
    np.testing.assert_array_equal(null.of(pairs), cosines[pairs[:, 0], pairs[:, 1]])


def test_a_profile_without_direction_and_a_map_of_one_are_refused() -> None:
    with pytest.raises(UsageError, match="row 1 is all zero"):
        cosine_map([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(UsageError, match="one perturbation"):
        cosine_null([[1.0, 0.0]])


def test_unique_pairs_are_undirected_without_self_pairs_and_repeats() -> None:
    pairs = [("B", "A"), ("A", "B"), ("C", "C"), ("A", "C"), ("A", "B")]
    assert unique_pairs(pairs) == [("A", "B"), ("A", "C")]
    assert unique_pairs(np.array(pairs)) == [("A", "B"), ("A", "C")]
    assert mapped_pairs(["C", "B", "A"], pairs).tolist() == [[1, 2], [0, 2]]
    assert mapped_pairs(["x", "y"], pairs).shape == (0, 2)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "count"), [("HuMAP", 58_538), ("Reactome", 18_565), ("StringDB", 58_059)])
def test_published_annotations_hold_the_stated_number_of_unique_pairs(shared_data: Path, name: str, count: int) -> None:
    with (shared_data / "annotations" / f"{name}.txt").open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(unique_pairs(rows[1:])) == count


def test_similarity_order_puts_clusters_together() -> None:
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(4, 16))
    cluster = generator.permutation(np.repeat(np.arange(4), 6))
    order = similarity_order(cosine_map(centres[cluster] + 0.1 * generator.normal(size=(24, 16))))
    assert sorted(order.tolist()) == list(range(24))
    assert (np.diff(cluster[order]) != 0).sum() == 3
    assert similarity_order([[1.0, 0.5], [0.5, 1.0]]).tolist() == [0, 1]


def test_connected_groups_are_pathways() -> None:
    pairs = [("a", "b"), ("b", "c"), ("e", "d"), ("x", "y")]
    assert connected_groups(["d", "a", "q", "b", "c", "e"], pairs) == [0, 1, -1, 1, 1, 0]
