"""The line of a score over training FLOP, against scipy and against what its intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import linregress, t

from phenomhpc.errors import UsageError
from phenomhpc.maps import fit_log_linear


def test_the_line_and_its_intervals_are_those_of_least_squares() -> None:
    generator = np.random.default_rng(1)
    flop = 10.0 ** generator.uniform(16, 22, size=9)
    value = 0.05 * np.log10(flop) - 0.6 + 0.02 * generator.normal(size=9)
    line = fit_log_linear(flop, value)
    expected = linregress(np.log10(flop), value)
    half = t.ppf(0.975, 7)
    assert abs(line.slope - expected.slope) < 1e-12 and abs(line.intercept - expected.intercept) < 1e-12
    assert abs(line.slope_high - line.slope - half * expected.stderr) < 1e-12
    assert abs(line.intercept - line.intercept_low - half * expected.intercept_stderr) < 1e-12
    assert abs(line.r_squared - expected.rvalue**2) < 1e-12
    assert line.num_points == 9 and line.slope_low < 0.05 < line.slope_high


def test_exact_values_are_predicted_exactly() -> None:
    line = fit_log_linear([1e18, 1e20, 1e22], [0.3, 0.4, 0.5])
    np.testing.assert_allclose(line.predict(1e24), [0.6, 0.6, 0.6], atol=1e-9)


def test_the_interval_of_a_new_run_holds_it_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(2), 0
    flop = 10.0 ** np.array([17.0, 17.5, 18.0, 19.0, 20.0])
    for _ in range(1000):
        value = 0.04 * np.log10(flop) + 0.01 * generator.normal(size=5)
        _, low, high = fit_log_linear(flop, value).predict(1e22)
        held += low <= 0.04 * 22 + 0.01 * generator.normal() <= high
    assert 930 <= held <= 970


def test_farther_predictions_are_less_certain() -> None:
    line = fit_log_linear([1e17, 1e18, 1e19, 1e20], [0.1, 0.22, 0.29, 0.41])
    widths = [high - low for _, low, high in map(line.predict, (1e18, 1e21, 1e24))]
    assert widths == sorted(widths) and widths[0] > 0


def test_what_makes_no_line_is_named() -> None:
    with pytest.raises(UsageError, match="scaling: 2 runs; a line with an interval needs at least 3"):
        fit_log_linear([1e18, 1e19], [0.1, 0.2])
    with pytest.raises(UsageError, match="all 3 runs cost 1e"):
        fit_log_linear([1e18] * 3, [0.1, 0.2, 0.3])
    with pytest.raises(UsageError, match=r"run 1 has 0\.0 FLOP"):
        fit_log_linear([1e18, 0.0, 1e19], [0.1, 0.2, 0.3])
    with pytest.raises(UsageError, match="value of run 2 is nan"):
        fit_log_linear([1e18, 1e17, 1e19], [0.1, 0.2, np.nan])
    with pytest.raises(UsageError, match="give one of each per run"):
        fit_log_linear([1e18, 1e17, 1e19], [0.1, 0.2])
