"""Ranks hold their definitions at every tie: tails in one pass, average precision, Brunner and Munzel's effect."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy.stats import brunnermunzel

from phenomhpc.maps import cosine_map, replicate_retrieval
from phenomhpc.maps.proximity import brunner_munzel
from phenomhpc.maps.relate import unit_rows
from phenomhpc.maps.tails import scored_pairs, tails_of
from tests.unit.naive_maps import average_precision

Array = NDArray[np.float64]


@st.composite
def tied_maps(draw: st.DrawFn) -> Array:
    """Axes and diagonals, whose cosines are exact, so that ties are ties."""
    num, dim = draw(st.integers(2, 14)), draw(st.integers(2, 4))
    matrix = draw(hnp.arrays(np.float64, (num, dim), elements=st.integers(-1, 1).map(float)))
    matrix[~matrix.any(axis=1), 0] = 1.0
    return matrix


@settings(max_examples=100, deadline=None)
@given(tied_maps(), st.floats(0.0, 0.5), st.floats(0.5, 1.0, exclude_min=True))
def test_one_pass_gives_the_tails_of_the_sorted_null(matrix: Array, lo: float, hi: float) -> None:
    cosines = cosine_map(matrix)
    null = cosines[np.triu_indices(len(matrix), 1)]
    scored = scored_pairs(unit_rows(matrix), np.array([(0, len(matrix) - 1)]), [(lo, hi), (0.05, 0.95)], held_pairs=0)
    assert scored.tails == tails_of(null.copy(), [(lo, hi), (0.05, 0.95)])
    assert scored.cosines[0] == cosines[0, -1]


@settings(max_examples=60, deadline=None)
@given(tied_maps(), st.data())
def test_average_precision_is_that_of_the_ranked_list(matrix: Array, data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.sampled_from("abc"), min_size=len(matrix), max_size=len(matrix)))
    if len(set(labels)) < 2 or max(map(labels.count, labels)) < 2:
        return
    unit = unit_rows(matrix)
    cosines = unit @ unit.T
    result = replicate_retrieval(matrix, labels, null_size=10, bootstrap=0)
    for row, name in enumerate(labels):
        others = [(cosines[row, other], labels[other] == name) for other in range(len(labels)) if other != row]
        if labels.count(name) > 1:
            assert result.average_precision[row] == pytest.approx(average_precision(others), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=2, max_size=30), st.lists(st.integers(-4, 4), min_size=2, max_size=30))
def test_the_effect_is_the_share_of_pairs_and_p_is_scipys(x: list[int], y: list[int]) -> None:
    first, second = np.array(x, dtype=float), np.array(y, dtype=float)
    effect, p_value = brunner_munzel(first.copy(), second.copy())
    wins = np.mean([(a < b) + (a == b) / 2.0 for a in x for b in y])
    assert effect == pytest.approx(wins, abs=1e-12)
    if 0.0 < wins < 1.0 and len({*x}) + len({*y}) > 2:
        assert p_value == pytest.approx(brunnermunzel(first, second).pvalue, abs=1e-12)
    else:
        assert p_value in (0.0, 1.0)
