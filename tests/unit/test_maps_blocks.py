"""Alignment of what does not fit into memory: read in blocks, the same result; CORAL; aggregation of blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import fractional_matrix_power

from phenomhpc.errors import UsageError
from phenomhpc.maps import METHODS, aggregate, aggregate_blocks, align, center_scale, coral, fit_alignment
from phenomhpc.maps.moments import moments_of, triangle_of
from phenomhpc.maps.whiten import whitener_of

Array = NDArray[np.float64]


def wells(num: int = 600, dim: int = 10, batches: int = 3) -> tuple[Array, NDArray[np.str_], NDArray[np.bool_]]:
    """Correlated features, each batch with its own offset, scale and correlations; a third are controls, in no order."""
    generator = np.random.default_rng(17)
    batch = generator.integers(0, batches, size=num)
    mixing = np.eye(dim) + 0.3 * generator.normal(size=(batches, dim, dim))
    features = np.einsum("nd,nde->ne", generator.normal(size=(num, dim)), mixing[batch])
    features = features * (1.0 + batch[:, None]) + 10.0 * batch[:, None]
    return features, np.array([f"plate{number}" for number in batch]), generator.random(num) < 1 / 3


def test_coral_equals_the_definition() -> None:
    features, batch, control = wells()
    standard, names, dim = np.empty_like(features), sorted(set(batch)), features.shape[1]
    for name in names:
        mine = features[(batch == name) & control]
        standard[batch == name] = (features[batch == name] - mine.mean(axis=0)) / mine.std(axis=0)
    scatter = standard[control].T @ standard[control]
    target = fractional_matrix_power(scatter / (control.sum() - len(names)) + np.eye(dim), 0.5)
    expected = np.empty_like(features)
    for name in names:
        source = np.cov(standard[(batch == name) & control], rowvar=False, ddof=1) + np.eye(dim)
        expected[batch == name] = standard[batch == name] @ fractional_matrix_power(source, -0.5) @ target
    np.testing.assert_allclose(coral(features, batch, control), expected, rtol=0, atol=1e-10)


def test_coral_brings_the_controls_of_batches_nearer_to_one_covariance_that_is_not_white() -> None:
    features, batch, control = wells(num=6000)
    scaled, aligned = center_scale(features, batch, control), coral(features, batch, control)

    def covariance(values: Array, name: str) -> Array:
        return np.cov(values[(batch == name) & control], rowvar=False)

    def apart(values: Array) -> float:
        return float(np.linalg.norm(covariance(values, "plate0") - covariance(values, "plate2")))

    np.testing.assert_allclose(aligned[(batch == "plate1") & control].mean(axis=0), 0.0, atol=1e-12)
    assert apart(aligned) < 0.7 * apart(scaled)
    assert np.linalg.cond(covariance(aligned, "plate0")) > 2.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block_rows", [7, 64])
def test_blocks_give_what_the_whole_gives(method: str, block_rows: int) -> None:
    features, batch, control = wells()
    whole = align(method, features, batch, control)
    alignment = fit_alignment(method, features, batch, control, block_rows=block_rows)
    assert alignment.num_features == whole.shape[1]
    aligned, seen = np.full_like(whole, np.nan), np.zeros(len(features), np.int64)
    for rows, block in alignment.blocks(features, batch, control, block_rows=block_rows):
        assert len(rows) <= block_rows and len(set(batch[rows])) == 1
        aligned[rows] = block
        seen[rows] += 1
    assert (seen == 1).all()
    np.testing.assert_allclose(aligned, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_mapped_file_of_float32_is_left_alone_and_gives_what_its_float64_gives(tmp_path: Path, method: str) -> None:
    features, batch, control = wells()
    np.save(tmp_path / "features.npy", features.astype(np.float32))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    expected = align(method, features.astype(np.float32).astype(np.float64), batch, control)
    np.testing.assert_array_equal(align(method, mapped, batch, control), expected)


@pytest.mark.parametrize("method", METHODS)
def test_wells_that_come_later_are_aligned_by_the_same_axes_and_their_own_controls(method: str) -> None:
    features, batch, control = wells()
    alignment = fit_alignment(method, features, batch, control)
    whole = align(method, features, batch, control)
    new = batch == "plate2"
    aligned = np.empty((int(new.sum()), alignment.num_features))
    for rows, block in alignment.blocks(features[new], batch[new], control[new]):
        aligned[rows] = block
    np.testing.assert_allclose(aligned, whole[new], rtol=0, atol=1e-10)
    with pytest.raises(UsageError, match="9 columns, but this alignment was fitted on 10"):
        next(alignment.blocks(features[:, :9], batch, control))
    with pytest.raises(UsageError, match="batch plate2: 0 controls"):
        next(alignment.blocks(features, batch, control & ~new))


def test_one_pass_moments_keep_digits_that_sums_of_squares_lose() -> None:
    values = 1e8 + np.random.default_rng(0).normal(size=(5000, 3))
    moments = moments_of((values[start : start + 37] for start in range(0, 5000, 37)), 3)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(moments.variance, values.var(axis=0), rtol=1e-7)
    naive = (values**2).mean(axis=0) - values.mean(axis=0) ** 2
    assert np.abs(naive / values.var(axis=0) - 1.0).min() > 1e-3


def test_the_triangle_of_blocks_is_that_of_the_whole() -> None:
    values = np.random.default_rng(0).normal(size=(500, 6))
    triangle = triangle_of((values[start : start + 3] for start in range(0, 500, 3)), 6)
    np.testing.assert_allclose(triangle.T @ triangle, values.T @ values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("num_rows", [4, 19, 20, 21, 200])
def test_few_controls_are_whitened_as_many_are(num_rows: int) -> None:
    generator = np.random.default_rng(num_rows)
    rows = generator.normal(size=(num_rows, 40)) @ generator.normal(size=(40, 40))
    rows -= rows.mean(axis=0)
    expected = fractional_matrix_power(np.cov(rows, rowvar=False, ddof=1) + 0.5 * np.eye(40), -0.5)
    blocks = (rows[start : start + 3] for start in range(0, num_rows, 3))
    other = generator.normal(size=(11, 40))
    np.testing.assert_allclose(whitener_of(blocks, num_rows, 40, 0.5)(other), other @ expected, rtol=0, atol=1e-10)


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(UsageError, match="align=best: unknown; there is center_scale, pca_cs, tvn, tvn_efaar, coral"):
        align("best", *wells())


def test_aggregated_blocks_are_what_the_whole_aggregates() -> None:
    features, batch, control = wells()
    labels = [None if of else f"g{row % 13:02d}" for row, of in enumerate(control)]
    alignment = fit_alignment("tvn", features, batch, control)
    profiles, names = aggregate_blocks(alignment.blocks(features, batch, control, block_rows=31), labels, control)
    expected, expected_names = aggregate(
        align("tvn", features, batch, control)[~control], [name for name in labels if name is not None]
    )
    assert names == expected_names
    np.testing.assert_allclose(profiles, expected, rtol=0, atol=1e-12)


def test_blocks_that_miss_rows_and_maps_of_controls_alone_are_refused() -> None:
    features = wells(30)[0]
    labels = ["a"] * 29 + ["b"]
    with pytest.raises(UsageError, match=r"no block has a row of b \(1 of 2 labels\); give every row once"):
        aggregate_blocks([(np.arange(29), features[:29])], labels, np.zeros(30, np.bool_))
    with pytest.raises(UsageError, match="all 30 rows are controls"):
        aggregate_blocks([(np.arange(30), features)], labels, np.ones(30, np.bool_))
    with pytest.raises(UsageError, match="label of row 4 is missing"):
        aggregate_blocks([(np.arange(30), features)], [*["a"] * 4, None, *["a"] * 25], np.zeros(30, np.bool_))
