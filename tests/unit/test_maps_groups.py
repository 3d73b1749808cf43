"""Complex coherence and proximity bias against scipy's tests on values gathered by loops."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import brunnermunzel, ks_2samp

from phenomhpc.errors import UsageError
from phenomhpc.maps import complex_coherence, cosine_map, proximity_bias, relate
from phenomhpc.maps.proximity import brunner_munzel

Array = NDArray[np.float64]


def genes(num: int, dim: int = 10, ties: bool = False) -> tuple[Array, list[str]]:
    features = np.random.default_rng(num).normal(size=(num, dim))
    return (features.round() + 0.25 if ties else features), [f"g{number:03d}" for number in range(num)]


@pytest.mark.parametrize(("num", "ties"), [(60, False), (300, True)])
def test_coherence_is_the_kolmogorov_smirnov_test_of_cosines_within_against_to_the_rest(num: int, ties: bool) -> None:
    features, labels = genes(num, 3 if ties else 10, ties)
    features[:12] += 1.5
    complexes = {
        "alike": labels[:12],
        "chance": [*labels[20:31], labels[20], "not in the map"],
        "small": labels[40:49],
        "none": ["elsewhere"],
    }
    cosines = cosine_map(features)
    result = complex_coherence(features, labels, complexes)
    assert result.names == ("alike", "chance") and result.num_left_out == 2
    assert result.num_genes.tolist() == [12, 11]
    for number, rows in enumerate((range(12), range(20, 31))):
        within = [cosines[i, j] for i in rows for j in rows if i < j]
        rest = [cosines[i, j] for i in rows for j in range(num) if j not in rows]
        expected = ks_2samp(within, rest)
        assert abs(result.statistics[number] - expected.statistic) < 1e-12
        assert abs(result.p_values[number] - expected.pvalue) < 1e-12
    assert result.p_values[0] < 1e-6
    assert result.hit_rate == np.mean(result.p_values <= 0.05)
    assert result.interval is not None and result.interval[0] <= result.hit_rate <= result.interval[1]


def test_complexes_that_cannot_be_tested_are_named() -> None:
    features, labels = genes(12)
    with pytest.raises(UsageError, match=r"none of 2 complexes has 10 genes in the map \(most: b, 9\)"):
        complex_coherence(features, labels, {"a": labels[:3], "b": labels[:9]})
    with pytest.raises(UsageError, match="all 12 genes of the map are in everything"):
        complex_coherence(features, labels, {"everything": labels})
    with pytest.raises(UsageError, match="label g000: more than one row"):
        complex_coherence(features, ["g000", *labels[:-1]], {"a": labels})


@pytest.mark.parametrize("ties", [False, True])
def test_proximity_bias_is_the_brunner_munzel_test_of_every_arm_with_more_than_twenty_pairs(ties: bool) -> None:
    features, labels = genes(120, 3 if ties else 10, ties)
    features[:30] += 0.7
    sizes = {"1p": 30, "1q": 40, "2p": 7, "2q": 6, "": 37}  # 21 and 15 pairs
    arm_of = [arm for arm, size in sizes.items() for _ in range(size)]
    arms = {label: arm for label, arm in zip(labels, arm_of, strict=True) if arm}
    cosines = cosine_map(features)
    result = proximity_bias(features, labels, arms)
    assert result.arms == ("1p", "1q", "2p")
    for number, arm in enumerate(result.arms):
        on_arm = [row for row, other in enumerate(arm_of) if other == arm]
        within = np.array([cosines[i, j] for i in on_arm for j in on_arm if i < j])
        between = np.array([cosines[i, j] for i in on_arm for j in range(120) if arm_of[j] not in ("", arm)])
        effect = np.mean([(between < w).mean() + (between == w).mean() / 2.0 for w in within])
        assert abs(result.effects[number] - effect) < 1e-12
        assert abs(result.p_values[number] - brunnermunzel(between, within).pvalue) < 1e-12
        assert (result.num_within[number], result.num_between[number]) == (len(within), len(between))
    assert abs(result.effect - result.effects.mean()) < 1e-12
    assert result.interval is not None and result.interval[0] <= result.effect <= result.interval[1]
    assert result.chance == 0.5 and result.effects[0] > 0.6


def test_samples_apart_and_constant_ones_have_a_p_value() -> None:
    assert brunner_munzel(np.array([1.0, 2.0]), np.array([3.0, 4.0, 5.0])) == (1.0, 0.0)
    assert brunner_munzel(np.ones(3), np.ones(4)) == (0.5, 1.0)


def test_few_cosines_held_at_once_give_the_same_numbers_in_a_part_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features, labels = genes(3000, 8)
    arms = {label: f"{row % 60}q" for row, label in enumerate(labels)}
    complexes = {f"c{number}": labels[number::90] for number in range(90)}

    def both() -> tuple[list[Array], int]:
        tracemalloc.start()
        bias = proximity_bias(features, labels, arms, bootstrap=0)
        sets = complex_coherence(features, labels, complexes, bootstrap=0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return [bias.effects, bias.p_values, sets.statistics, sets.p_values], peak

    monkeypatch.setattr(relate, "BLOCK_ROWS", 64)
    at_once, _ = both()
    monkeypatch.setattr(relate, "HELD_COSINES", 3000 * 120)  # two arms of 50 genes, three complexes
    in_parts, peak = both()
    for one, other in zip(at_once, in_parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert peak < 8 * 3000 * 2999 / 2  # the cosines of all pairs


def test_arms_that_cannot_be_compared_are_named() -> None:
    features, labels = genes(20)
    with pytest.raises(UsageError, match="no chromosome arm has more than 20 pairs"):
        proximity_bias(features, labels, dict.fromkeys(labels[:6], "1p"))
    with pytest.raises(UsageError, match="all genes are on 1p"):
        proximity_bias(features, labels, dict.fromkeys(labels, "1p"))
