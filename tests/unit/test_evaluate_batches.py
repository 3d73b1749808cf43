"""Wells as points: principal components, and what they are coloured by."""

from __future__ import annotations

import numpy as np
import pytest

from phenomhpc.jobs.evaluation.batches import _components


@pytest.mark.parametrize("shape", [(300, 20), (15, 40), (30, 1)])
def test_points_are_the_first_two_principal_components(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape) * np.linspace(1, 4, shape[1]) + 7.0
    left, singular, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    points, share = _components(features)
    expected = left[:, :2] * singular[:2]
    found = points[:, : expected.shape[1]]
    np.testing.assert_allclose(found * np.sign((found * expected).sum(axis=0)), expected, atol=1e-9)
    assert abs(share - (singular[:2] ** 2).sum() / (singular**2).sum()) < 1e-12
    assert not points[:, expected.shape[1] :].any()


def test_wells_that_are_all_alike_are_one_point() -> None:
    points, share = _components(np.ones((5, 3)))
    assert not points.any() and share == 0.0
