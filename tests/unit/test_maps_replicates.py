"""Perturbation consistency and magnitude against loops over replicates."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps import perturbation_consistency, perturbation_magnitude, replicates
from phenomhpc.maps.replicates import _distances
from tests.unit import naive_maps as naive

Array = NDArray[np.float64]


def wells(num_labels: int = 60, dim: int = 9) -> tuple[Array, list[str], NDArray[np.bool_], set[str]]:
    """Labels with 1 to 8 replicates, a third of them null ones, and 30 controls, in no order."""
    generator = np.random.default_rng(11)
    label = [f"g{n:02d}" for n in range(num_labels) for _ in range(1 + n % 8)] + ["EMPTY_control"] * 30
    strength = np.array([int(name[1:]) % 3 * 3 if name[0] == "g" else 0 for name in label], dtype=float)
    features = generator.normal(size=(len(label), dim)) + strength[:, None] * generator.normal(size=dim)
    order = generator.permutation(len(label))
    labels = [label[row] for row in order]
    control = np.array([name == "EMPTY_control" for name in labels])
    return features[order], labels, control, {f"g{n:02d}" for n in range(0, num_labels, 3)}


def expected_scores(values: dict[str, float], silent: set[str]) -> tuple[list[str], list[float], list[float]]:
    null = [value for name, value in values.items() if name in silent]
    tested = sorted(name for name in values if name not in silent)
    above = [sum(other >= values[name] for other in null) for name in tested]
    return tested, [(k + 1) / (len(null) + 1) for k in above], [k / len(null) for k in above]


def test_consistency_is_the_mean_cosine_of_different_replicates() -> None:
    features, labels, control, silent = wells()
    labels = [name if not of else "x" for name, of in zip(labels, control, strict=True)]
    kept = [row for row in range(len(labels)) if not control[row]]
    rows = {name: [row for row in kept if labels[row] == name] for name in {labels[row] for row in kept}}
    values = {name: naive.mean_off_diagonal(features[mine]) for name, mine in rows.items() if len(mine) > 1}
    names, p_values, published = expected_scores(values, silent)
    result = perturbation_consistency(features[kept], [labels[row] for row in kept], silent)
    assert list(result.labels) == names
    np.testing.assert_allclose(result.values, [values[name] for name in names], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.p_values, p_values, rtol=0, atol=1e-12)
    assert result.num_replicates.tolist() == [len(rows[name]) for name in names]
    assert abs(result.hit_rate - np.mean(np.array(p_values) <= 0.05)) < 1e-12
    assert result.num_null == sum(name in silent for name in values)
    assert result.num_dropped == sum(len(mine) == 1 for mine in rows.values()) > 0
    compat = perturbation_consistency(features[kept], [labels[row] for row in kept], silent, compat="efaar")
    np.testing.assert_allclose(compat.p_values, published, rtol=0, atol=1e-12)
    assert compat.p_values.min() == 0.0 < result.p_values.min()


@pytest.mark.parametrize("rows_at_once", [7, 1024])
def test_magnitude_is_the_energy_distance_to_the_controls(monkeypatch: pytest.MonkeyPatch, rows_at_once: int) -> None:
    monkeypatch.setattr(replicates, "_ROWS_AT_ONCE", rows_at_once)
    features, labels, control, silent = wells()
    names_of = [name for name, of in zip(labels, control, strict=True) if not of]
    rows = {name: [row for row, other in enumerate(labels) if other == name] for name in set(names_of)}
    values = {
        name: naive.energy_distance(features[mine], features[control]) for name, mine in rows.items() if len(mine) >= 5
    }
    names, p_values, published = expected_scores(values, silent)
    result = perturbation_magnitude(features, labels, control, silent)
    assert list(result.labels) == names and result.num_dropped == len(rows) - len(values)
    np.testing.assert_allclose(result.values, [values[name] for name in names], rtol=0, atol=1e-12)
    np.testing.assert_allclose(result.p_values, p_values, rtol=0, atol=1e-12)
    compat = perturbation_magnitude(features, labels, control, silent, compat="efaar")
    np.testing.assert_allclose(compat.p_values, published, rtol=0, atol=1e-12)
    assert result.interval is not None and result.interval[0] <= result.hit_rate <= result.interval[1]
    assert result.chance == 0.05


def test_controls_need_no_label_and_more_than_enough_of_them_are_drawn_by_the_seed() -> None:
    features, labels, control, silent = wells()
    unnamed = [None if of else name for name, of in zip(labels, control, strict=True)]
    whole = perturbation_magnitude(features, unnamed, control, silent)  # type: ignore[arg-type]
    np.testing.assert_array_equal(whole.values, perturbation_magnitude(features, labels, control, silent).values)
    few = [perturbation_magnitude(features, labels, control, silent, max_controls=12, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0].values, few[1].values)
    assert not np.array_equal(few[0].values, few[2].values)
    assert not np.array_equal(few[0].values, whole.values)


def test_float32_features_are_read_as_they_are() -> None:
    features, labels, control, silent = wells()
    single = features.astype(np.float32)
    np.testing.assert_array_equal(
        perturbation_magnitude(single, labels, control, silent).values,
        perturbation_magnitude(single.astype(np.float64), labels, control, silent).values,
    )


def test_distances_of_near_and_equal_rows_keep_their_digits() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 16))
    y = np.concatenate([x[:100], x[:50] + 1e-9 * generator.normal(size=(50, 16)), generator.normal(size=(70, 16))])
    expected = np.array([[np.linalg.norm(a - b) for b in y] for a in x])
    np.testing.assert_allclose(_distances(x, y), expected, rtol=1e-12, atol=0)


def test_what_cannot_be_scored_is_named() -> None:
    features, labels, control, silent = wells()
    kept = ~control
    names = [name for name, of in zip(labels, control, strict=True) if not of]
    with pytest.raises(UsageError, match="consistency: none of the 1 null perturbations has 2 replicates or more"):
        perturbation_consistency(features[kept], names, ["elsewhere"])
    with pytest.raises(UsageError, match="consistency: no perturbation beside the null ones"):
        perturbation_consistency(features[kept], names, set(names))
    with pytest.raises(UsageError, match="magnitude: none of the 1 null perturbations has 5 replicates or more"):
        perturbation_magnitude(features, labels, control, ["g00"])
    with pytest.raises(UsageError, match="magnitude: 1 control; mark at least 2 wells as such"):
        perturbation_magnitude(features, labels, np.arange(len(labels)) == 0, silent)
    with pytest.raises(UsageError, match="compat=best"):
        perturbation_consistency(features[kept], names, silent, compat="best")
    with pytest.raises(UsageError, match="label of row 3 is missing"):
        perturbation_consistency(features[kept], [*names[:3], "", *names[4:]], silent)
    with pytest.raises(UsageError, match="for 10 rows of features"):
        perturbation_magnitude(features[:10], labels, control[:10], silent)
