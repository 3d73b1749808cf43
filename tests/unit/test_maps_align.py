"""Alignment against its definition written out naively, and against what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import fractional_matrix_power
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from phenomhpc.errors import UsageError
from phenomhpc.maps import center_scale, coral, cosine_map, pca_cs, tvn

Array = NDArray[np.float64]


def _wells(num: int = 120, dim: int = 6, batches: int = 3) -> tuple[Array, list[str], NDArray[np.bool_]]:
    """Correlated features, each batch with its own offset and scale; every third well is a control."""
    generator = np.random.default_rng(7)
    batch = np.arange(num) % batches
    features = generator.normal(size=(num, dim)) @ generator.normal(size=(dim, dim))
    features = features * (1.0 + batch[:, None]) + 10.0 * batch[:, None]
    return features, [f"plate{number}" for number in batch], generator.permutation(num) % 3 == 0


def _efaar(features: Array, batch: list[str], control: NDArray[np.bool_]) -> Array:
    """The published TVN, from its description, with scikit-learn and scipy."""
    out = StandardScaler().fit(features[control]).transform(features)
    out = PCA(svd_solver="full").fit(out[control]).transform(out)
    out = StandardScaler().fit(out[control]).transform(out)
    for name in set(batch):
        rows = np.array(batch) == name
        source = np.cov(out[rows & control], rowvar=False, ddof=1) + 0.5 * np.eye(out.shape[1])
        out[rows] = out[rows] @ fractional_matrix_power(source, -0.5)
    return out


def test_center_scale_gives_controls_of_every_batch_mean_0_and_std_1() -> None:
    features, batch, control = _wells()
    aligned = center_scale(features, batch, control)
    for name in set(batch):
        rows = (np.array(batch) == name) & control
        np.testing.assert_allclose(aligned[rows].mean(axis=0), 0.0, atol=1e-12)
        np.testing.assert_allclose(aligned[rows].std(axis=0), 1.0, atol=1e-12)


def test_center_scale_equals_the_definition_and_leaves_its_input_alone() -> None:
    features, batch, control = _wells()
    before = features.copy()
    aligned = center_scale(features, batch, control)
    for row, name in enumerate(batch):
        controls = features[[i for i, other in enumerate(batch) if other == name and control[i]]]
        expected = (features[row] - controls.mean(axis=0)) / controls.std(axis=0)
        np.testing.assert_allclose(aligned[row], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(features, before)


def test_a_feature_constant_in_the_controls_is_centred_not_scaled() -> None:
    features, batch, control = _wells()
    features[control, 2] = 0.1
    features[~control, 2] = 5.1
    np.testing.assert_allclose(center_scale(features, batch, control)[~control, 2], 5.0, atol=1e-12)


def test_pca_cs_decorrelates_controls_and_centres_every_batch() -> None:
    features, batch, control = _wells()
    one = ["all"] * len(features)
    aligned = pca_cs(features, one, control)
    covariance = np.cov(aligned[control], rowvar=False, ddof=0)
    np.testing.assert_allclose(covariance, np.eye(features.shape[1]), atol=1e-10)
    per_batch = pca_cs(features, batch, control)
    rows = (np.array(batch) == "plate1") & control
    np.testing.assert_allclose(per_batch[rows].mean(axis=0), 0.0, atol=1e-12)


def test_compat_efaar_is_the_published_tvn_up_to_signs_of_components() -> None:
    features, batch, control = _wells()
    published, ours = _efaar(features, batch, control), tvn(features, batch, control, compat="efaar")
    np.testing.assert_allclose(cosine_map(ours), cosine_map(published), rtol=0, atol=1e-10)
    np.testing.assert_allclose(np.abs(ours), np.abs(published), rtol=0, atol=1e-8)


def test_our_tvn_centres_control_means_that_the_published_one_leaves_off_zero() -> None:
    features, batch, control = _wells()

    def offset(aligned: Array) -> float:
        return max(
            float(np.abs(aligned[(np.array(batch) == name) & control].mean(axis=0)).max()) for name in set(batch)
        )

    assert offset(tvn(features, batch, control)) < 1e-12
    assert offset(tvn(features, batch, control, compat="efaar")) > 0.1


def test_tvn_whitens_controls_of_every_batch_up_to_the_ridge() -> None:
    features, batch, control = _wells(num=3000)
    aligned = tvn(features, batch, control)
    for name in set(batch):
        rows = (np.array(batch) == name) & control
        eigenvalues = np.linalg.eigvalsh(np.cov(aligned[rows], rowvar=False))
        assert eigenvalues.min() > 0.3 and eigenvalues.max() < 1.0  # s / (s + 0.5) of the controls' own eigenvalues s


def test_fewer_controls_than_features_give_finite_features_of_bounded_size() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(60, 40))
    control = np.arange(60) < 8
    batch = ["a", "b"] * 30
    aligned = tvn(features, batch, control)
    assert aligned.shape == (60, 7)
    assert np.abs(aligned).max() < 100.0
    with pytest.raises(UsageError, match="8 controls vary in 7 of 40 directions"):
        tvn(features, batch, control, compat="efaar")


@pytest.mark.parametrize("align", [center_scale, pca_cs, tvn, coral])
def test_a_batch_with_fewer_than_two_controls_is_named(align) -> None:  # type: ignore[no-untyped-def]
    features, batch, control = _wells()
    batch[int(np.flatnonzero(control)[0])] = "lonely"
    with pytest.raises(UsageError, match="batch lonely: 1 control;"):
        align(features, batch, control)
    batch[int(np.flatnonzero(~control)[0])] = "bare"
    with pytest.raises(UsageError, match="batch bare: 0 controls;"):
        align(features, batch, control)


@pytest.mark.parametrize("align", [center_scale, pca_cs, tvn, coral])
def test_values_that_are_not_finite_are_named(align) -> None:  # type: ignore[no-untyped-def]
    features, batch, control = _wells()
    features[4, 2] = np.nan
    with pytest.raises(UsageError, match="row 4, column 2 is nan"):
        align(features, batch, control)


def test_wrong_shapes_masks_and_names_are_refused() -> None:
    features, batch, control = _wells()
    with pytest.raises(UsageError, match="compat=best"):
        tvn(features, batch, control, compat="best")
    with pytest.raises(UsageError, match=r"features: shape \(6,\)"):
        tvn(features[0], batch, control)
    with pytest.raises(UsageError, match="is_control: int64"):
        tvn(features, batch, control.astype(np.int64))
    with pytest.raises(UsageError, match="119 for 120 rows"):
        tvn(features, batch[1:], control)
    with pytest.raises(UsageError, match="controls do not vary"):
        tvn(np.ones_like(features), batch, control)


def test_batch_effects_that_hide_a_phenotype_are_taken_out() -> None:
    """Two phenotypes in two batches: before, the batch decides who is alike; after, the phenotype does."""
    generator = np.random.default_rng(3)
    num, dim = 200, 12
    batch = np.arange(num) % 2
    phenotype = np.arange(num) // 2 % 3  # 0: control
    directions = generator.normal(size=(3, dim)) * 2.0
    directions[0] = 0.0
    features = generator.normal(size=(num, dim)) + directions[phenotype] + 30.0 * batch[:, None]

    def alike(features: Array, by: NDArray[np.int64]) -> float:
        cosines = cosine_map(features[phenotype > 0])
        same = by[phenotype > 0][:, None] == by[phenotype > 0][None]
        return float(cosines[same].mean() - cosines[~same].mean())

    aligned = tvn(features, [str(name) for name in batch], phenotype == 0)
    assert alike(features - features.mean(axis=0), batch) > 1.0
    assert alike(aligned, batch) < 0.05
    assert alike(aligned, phenotype) > 0.8
