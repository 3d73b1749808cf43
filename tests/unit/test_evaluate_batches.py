"""Wells as points: principal components, and what they are coloured by."""

from __future__ import annotations

import numpy as np
import pytest

from phenomhpc.jobs.evaluation.batches import _colourings, _components, look
from phenomhpc.jobs.evaluation.wells import Wells


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


def _wells(**said: list[str]) -> Wells:
    features = np.random.default_rng(0).normal(size=(8, 3))
    given = {"batch": ["all"] * 8, "plate": [""] * 8, "experiment": [""] * 8, "batch_named": [""] * 8, **said}
    control = np.arange(8) % 4 == 0
    label = ["" if is_control else "gene" for is_control in control]
    return Wells(features=features, is_control=control, label=label, noun="gene", compound=[""] * 8, **given)


@pytest.mark.parametrize(
    ("said", "titles"),
    [
        ({}, []),
        ({"plate": list("aabbccdd")}, ["plate"]),
        ({"plate": list("aabbccdd"), "batch": list("aabbccdd")}, ["plate"]),
        (
            {"plate": list("aabbccdd"), "batch": list("wwxxyyzz"), "experiment": list("eeeeffff")},
            ["plate", "experiment"],
        ),
        (
            {
                "plate": list("aabbccdd"),
                "experiment": list("eeeeffff"),
                "batch_named": list("1122222 "),
                "batch": list("aabbccdd"),
            },
            ["plate", "experiment", "batch"],
        ),
        ({"plate": list("aabbccdd"), "batch": list("11112222")}, ["plate", "batch of the alignment"]),
    ],
)
def test_wells_are_coloured_by_everything_that_parts_them_in_a_way_of_its_own(
    said: dict[str, list[str]], titles: list[str]
) -> None:
    wells = _wells(**said)
    found = _colourings(wells, look(wells, None, 0), ["gene"], "", [-1])
    assert [one.title for one in found] == [*titles, "control wells"]


def test_plates_of_one_name_in_two_experiments_are_two() -> None:
    wells = _wells(plate=list("1122112 "), experiment=list("eeeeffff"))
    first = _colourings(wells, look(wells, None, 0), ["gene"], "", [-1])[0]
    assert first.names == ("e/1", "e/2", "f/ ", "f/1", "f/2")
    wells = _wells(plate=["1", "1", "2", "2", "1", "1", "2", ""], experiment=list("eeeeffff"))
    first = _colourings(wells, look(wells, None, 0), ["gene"], "", [-1])[0]
    assert first.names == ("e/1", "e/2", "f/1", "f/2") and first.code.tolist() == [0, 0, 1, 1, 2, 2, 3, -1]
