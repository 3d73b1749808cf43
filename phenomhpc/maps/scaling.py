"""How a score grows with the compute of training: a straight line over log10(FLOP), with what is not known about it.

    value = intercept + slope log10(flop) + noise,   ordinary least squares,   intervals by Student's t, n - 2 degrees

Recall is reported to be linear in log training FLOP (Kraus et al. 2024, doi:10.1101/2024.11.04.621897); a loss over a narrow range,
nearly so.  A line knows no ceiling: what it predicts far beyond the largest run is a guess, and the interval does not say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from phenomhpc.errors import UsageError
from phenomhpc.maps.bootstrap import INTERVAL
from phenomhpc.maps.checks import Features

MIN_RUNS = 3


@dataclass(frozen=True, kw_only=True)
class LogLinear:
    """The fitted line.  All intervals are of 95 %.

    slope: gain per tenfold FLOP; intercept: value at 1 FLOP; residual_std: of a run about the line (n - 2 degrees)
    r_squared: NaN where all values are equal; mean_log, spread_log: mean and sum of squares of log10(flop) of the runs
    """

    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    intercept_low: float
    intercept_high: float
    residual_std: float
    r_squared: float
    num_points: int
    mean_log: float
    spread_log: float

    def predict(self, flop: float) -> tuple[float, float, float]:
        """(value, low, high) of a new run of `flop`: the interval holds the run's noise and the line's."""
        if not (np.isfinite(flop) and flop > 0):
            raise UsageError(f"scaling: flop={flop} to foretell; give training FLOP, such as 2.4e21")
        x = np.log10(flop)
        value = self.intercept + self.slope * x
        spread = 1.0 + 1.0 / self.num_points + (x - self.mean_log) ** 2 / self.spread_log
        half = _student(self.num_points - 2) * self.residual_std * np.sqrt(spread)
        return float(value), float(value - half), float(value + half)


def fit_log_linear(flop: ArrayLike, value: ArrayLike, names: Sequence[str] | None = None) -> LogLinear:
    """Least-squares line of value f64[n] over log10(flop f64[n]).  names: of the n runs, for refusals.

    Raises UsageError for fewer than 3 runs, for runs of one size only, and for values that are not finite.
    """
    flops, values = np.asarray(flop, dtype=np.float64), np.asarray(value, dtype=np.float64)
    _refuse_what_is_no_line(flops, values, names)
    x = np.log10(flops)
    num, mean, value_mean = len(x), x.mean(), values.mean()
    spread = ((x - mean) ** 2).sum()
    slope = ((x - mean) * (values - value_mean)).sum() / spread
    intercept = value_mean - slope * mean
    left = ((values - intercept - slope * x) ** 2).sum()
    total = ((values - value_mean) ** 2).sum()
    std = np.sqrt(left / (num - 2))
    slope_half = _student(num - 2) * std / np.sqrt(spread)
    intercept_half = _student(num - 2) * std * np.sqrt(1.0 / num + mean**2 / spread)
    return LogLinear(
        slope=float(slope),
        slope_low=float(slope - slope_half),
        slope_high=float(slope + slope_half),
        intercept=float(intercept),
        intercept_low=float(intercept - intercept_half),
        intercept_high=float(intercept + intercept_half),
        residual_std=float(std),
        r_squared=float(1.0 - left / total) if total else float("nan"),
        num_points=num,
        mean_log=float(mean),
        spread_log=float(spread),
    )


def _refuse_what_is_no_line(flops: Features, values: Features, names: Sequence[str] | None) -> None:
    if flops.ndim != 1 or flops.shape != values.shape:
        raise UsageError(f"scaling: FLOP of shape {flops.shape}, values of {values.shape}; give one of each per run")
    if len(flops) < MIN_RUNS:
        raise UsageError(
            f"scaling: {len(flops)} run{'' if len(flops) == 1 else 's'}; a line with an interval needs at least "
            f"{MIN_RUNS}, name more"
        )
    _refuse_unless_positive(flops, names)
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise UsageError(f"scaling: the value of run {_name(names, row)} is {values[row]}; leave that run out")
    if np.unique(flops).size < 2:
        raise UsageError(
            f"scaling: all {len(flops)} runs cost {flops[0]:.3g} FLOP; a line needs two sizes, name a run of another"
        )


def _refuse_unless_positive(flops: Features, names: Sequence[str] | None = None) -> None:
    good = np.isfinite(flops) & (flops > 0)
    if not good.all():
        row = int(np.argmin(good))
        raise UsageError(f"scaling: run {_name(names, row)} has {flops[row]} FLOP; give training FLOP, such as 2.4e21")


def _name(names: Sequence[str] | None, row: int) -> str:
    return str(row) if names is None else names[row]


def _student(degrees: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1.0 + INTERVAL) / 2.0))
