"""Recall and alignment hold their definitions for whatever arrays come."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from phenomhpc.maps import center_scale, cosine_map, relationship_recall, tvn
from phenomhpc.maps.tails import tails_of


@st.composite
def scored_maps(draw: st.DrawFn) -> tuple[NDArray[np.float64], list[tuple[int, int]]]:
    """Small maps of small whole numbers, so that ties abound, with some of their pairs."""
    num, dim = draw(st.integers(2, 12)), draw(st.integers(1, 4))
    matrix = draw(hnp.arrays(np.float64, (num, dim), elements=st.integers(-2, 2).map(float)))
    matrix[~matrix.any(axis=1), 0] = 1.0
    pairs = draw(st.lists(st.sampled_from(list(combinations(range(num), 2))), min_size=1, unique=True))
    return matrix, pairs


@settings(max_examples=150, deadline=None)
@given(scored_maps(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_recall_is_the_share_of_pairs_in_the_tails_by_searchsorted(
    scored: tuple[NDArray[np.float64], list[tuple[int, int]]], one: float, other: float
) -> None:
    matrix, pairs = scored
    lo, hi = sorted((one, other))
    if lo == hi:
        lo, hi = 0.05, 0.95
    labels = [str(number) for number in range(len(matrix))]
    cosines = cosine_map(matrix)
    null = np.sort(cosines[np.triu_indices(len(matrix), 1)])
    queries = np.array([cosines[pair] for pair in pairs])
    left = np.searchsorted(null, queries, "left") / len(null)
    right = np.searchsorted(null, queries, "right") / len(null)
    expected = float(np.mean((right <= lo) | (left >= hi)))
    result = relationship_recall(matrix, labels, [(labels[i], labels[j]) for i, j in pairs], [(lo, hi)])[0]
    assert abs(result.recall - expected) < 1e-12


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    st.lists(st.integers(-6, 6), min_size=1, max_size=20),
    st.sampled_from([(0.0, 1.0), (0.05, 0.95), (0.1, 0.9), (0.2, 0.8), (1 / 3, 2 / 3), (0.3, 0.7), (0.0, 0.5)]),
)
def test_two_order_statistics_say_the_same_as_ranks_at_every_tie(
    null: list[int], queries: list[int], threshold: tuple[float, float]
) -> None:
    ordered, asked = np.sort(np.array(null, dtype=float)), np.array(queries, dtype=float)
    left = np.searchsorted(ordered, asked, "left") / len(ordered)
    right = np.searchsorted(ordered, asked, "right") / len(ordered)
    lo, hi = threshold
    below, above = tails_of(np.array(null, dtype=float), [threshold])[0]
    np.testing.assert_array_equal((asked < below) | (asked > above), (right <= lo) | (left >= hi))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10.0), st.floats(-100.0, 100.0))
def test_alignment_undoes_a_scale_and_offset_of_one_batch(seed: int, scale: float, offset: float) -> None:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(60, 4))
    batch = ["a", "b"] * 30
    control = np.arange(60) < 30
    moved = features.copy()
    moved[1::2] = moved[1::2] * scale + offset
    np.testing.assert_allclose(
        center_scale(moved, batch, control), center_scale(features, batch, control), rtol=0, atol=1e-9
    )
    assert np.isfinite(tvn(moved, batch, control)).all()
