"""Scores against training FLOP: runs, the line through them, what is foretold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.report.benchmarks import PANELS_A_ROW, Measured
from phenomhpc.report.figures import WIDTH_IN
from phenomhpc.report.theme import Drawing, ThemeName, drawing


@dataclass(frozen=True, kw_only=True)
class Trend:
    """One panel.  points: (FLOP, value) of the runs; line: FLOP f64[k], value and interval f64[k] each; next: (FLOP, value)."""

    title: str
    points: tuple[tuple[float, Measured], ...]
    line: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    next: tuple[float, Measured]


def scaling_figure(trends: Sequence[Trend], *, theme: ThemeName = "light") -> Drawing:
    """One panel per score over log10(FLOP): runs as points, the line with the interval of a new run, the next size as a ring."""
    columns = min(PANELS_A_ROW, len(trends))
    rows = -(-len(trends) // columns)
    with drawing(WIDTH_IN, 3.1 * rows, theme) as (figure, colours):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(trends) :]:
            axes.set_visible(False)
        for axes, trend in zip(grid, trends, strict=False):
            flop, value, low, high = trend.line
            axes.fill_between(flop, low, high, color=colours.series[0], alpha=0.14, linewidth=0)
            axes.plot(flop, value, color=colours.series[0], linewidth=1.4)
            for at, one in trend.points:
                if one.ci_low is not None:
                    axes.plot([at, at], [one.ci_low, one.ci_high], color=colours.series[0], linewidth=2.4, alpha=0.6)
                axes.plot(at, one.value, "o", color=colours.series[0], markersize=6)
            at, one = trend.next
            axes.plot([at, at], [one.ci_low, one.ci_high], color=colours.series[1], linewidth=2.4, alpha=0.7)
            axes.plot(
                at,
                one.value,
                "o",
                color=colours.series[1],
                markerfacecolor=colours.surface,
                markersize=8,
                markeredgewidth=2,
            )
            top = one.value if one.ci_high is None else one.ci_high
            axes.annotate(f"{one.value:.3f}", (at, top), xytext=(4, 4), textcoords="offset points", ha="right",
                          color=colours.series[1], fontweight="bold", fontsize=8.5)  # fmt: skip
            axes.margins(y=0.12)
            axes.set(xscale="log", title=trend.title, xlabel="training FLOP")
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        return Drawing(figure=figure, theme=theme)
