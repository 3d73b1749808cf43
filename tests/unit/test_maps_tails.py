"""One pass over a map finds the tails that sorting all of its cosines finds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.maps import cosine_map, tails
from phenomhpc.maps.relate import BLOCK_ROWS, unit_rows
from phenomhpc.maps.tails import scored_pairs, tails_of

THRESHOLDS = ((0.05, 0.95), (0.1, 0.9), (0.0, 1.0), (0.0, 0.9), (0.5, 0.500001), (1e-7, 1 - 1e-7))


def features(kind: str) -> NDArray[np.float64]:
    generator = np.random.default_rng(3)
    if kind == "smooth":
        return generator.normal(size=(BLOCK_ROWS + 200, 24))
    values = generator.integers(-1, 2, size=(BLOCK_ROWS + 200, 3)).astype(np.float64)  # few cosines, each many times
    values[~values.any(axis=1), 0] = 1.0
    return values


@pytest.mark.parametrize("kind", ["smooth", "tied"])
def test_one_pass_finds_what_sorting_finds(kind: str) -> None:
    matrix = features(kind)
    cosines = cosine_map(matrix)
    pairs = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(len(matrix)), (500, 1)), axis=1)[:, :2], axis=1)
    scored = scored_pairs(unit_rows(matrix), pairs, THRESHOLDS, held_pairs=0)
    null = np.sort(cosines[np.triu_indices(len(matrix), 1)])
    assert scored.num_null == len(null)
    np.testing.assert_array_equal(scored.cosines, cosines[pairs[:, 0], pairs[:, 1]])
    assert scored.tails == tails_of(null.copy(), THRESHOLDS)
    held = scored_pairs(unit_rows(matrix), pairs, THRESHOLDS)
    np.testing.assert_array_equal(held.cosines, scored.cosines)
    assert held.tails == scored.tails


def test_a_sample_that_misleads_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, asked = features("smooth"), []
    expected = scored_pairs(unit_rows(matrix), np.array([(0, 1)]), THRESHOLDS).tails
    real = tails.cosine_null
    monkeypatch.setattr(tails, "cosine_null", lambda *args, **kwargs: asked.append(1) or real(*args, **kwargs))
    monkeypatch.setattr(
        tails, "_brackets", lambda unit, ranks, num: (np.full(len(ranks), 0.2), np.full(len(ranks), 0.3))
    )
    assert scored_pairs(unit_rows(matrix), np.array([(0, 1)]), THRESHOLDS, held_pairs=0).tails == expected
    assert asked == [1]


def test_the_sample_saves_holding_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("held all pairs")

    monkeypatch.setattr(tails, "cosine_null", refuse)
    scored_pairs(unit_rows(features("smooth")), np.array([(0, 1)]), THRESHOLDS[:2], held_pairs=0)
