"""Numbers with their intervals, as pictures: on the way from wells to the map, beside baselines, over blocks, against FLOP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.report.figures import MARKERS, WIDTH_IN
from phenomhpc.report.theme import Drawing, Theme, ThemeName, drawing

PANELS_A_ROW = 3


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A value with its interval (None: without one), and what a map that knows nothing would get (None: not defined)."""

    name: str
    value: float
    ci_low: float | None = None
    ci_high: float | None = None
    chance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Shares, probabilities or precisions (0 to 1), one below the other, the first of them larger; note: what the axis shows."""

    title: str
    note: str
    values: tuple[Measured, ...]


def panels_figure(panels: Sequence[Panel], *, theme: ThemeName = "light") -> Drawing:
    """One small panel per benchmark: its values one below the other with their intervals, chance as a dashed line."""
    columns = min(PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    most = max(len(panel.values) for panel in panels)
    with drawing(WIDTH_IN, rows * (1.2 + 0.27 * most), theme) as (figure, colours):
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid, panels, strict=False):
            _panel(axes, panel, colours)
        figure.get_layout_engine().set(hspace=0.06, h_pad=0.06)
        return Drawing(figure=figure, theme=theme)


def _panel(axes: Any, panel: Panel, theme: Theme) -> None:
    for row, one in enumerate(panel.values):
        _bar(axes, one, row, theme, horizontal=True)
    chances = {one.chance for one in panel.values if one.chance is not None}
    if len(chances) == 1:
        axes.axvline(chances.pop(), color=theme.muted, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
    axes.set(xlim=(0, 1.18), xticks=(0, 0.25, 0.5, 0.75, 1), ylim=(len(panel.values) - 0.4, -0.6), xlabel=panel.note)
    axes.set_title(panel.title, fontsize=9)
    axes.set_yticks(range(len(panel.values)), [one.name for one in panel.values])
    for tick in axes.get_yticklabels():
        tick.set(color=theme.text)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)


def _bar(axes: Any, one: Measured, place: float, theme: Theme, *, horizontal: bool, rank: int | None = None) -> None:
    """A mark with its interval and its value in figures."""
    rank = int(place) if rank is None else rank
    colour, leading = theme.series[rank % len(theme.series)], rank == 0
    end = one.value if one.ci_high is None else max(one.ci_high, one.value)
    at, along = ([place, place], [one.ci_low, end])
    if one.ci_low is not None:
        axes.plot(
            *((along, at) if horizontal else (at, along)), color=colour, linewidth=3.0 if leading else 1.8, alpha=0.75
        )
    axes.plot(*((one.value, place) if horizontal else (place, one.value)), marker=MARKERS[rank % len(MARKERS)],
              markersize=7.5 if leading else 5.5, color=colour, zorder=3)  # fmt: skip
    if horizontal:
        axes.annotate(f"{one.value:.2f}", (end, place), xytext=(7, 0), textcoords="offset points", va="center",
                      color=colour, fontsize=8, fontweight="bold" if leading else "normal")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line over stages: one value per stage, None where there is none."""

    name: str
    values: tuple[Measured | None, ...]


def way_figure(
    stages: Sequence[str],
    panels: Sequence[tuple[str, str, float | None, Sequence[Series]]],
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """What each stage does to the map: panels (title, axis, value without knowledge or bias, lines) over the same stages."""
    with drawing(WIDTH_IN, 3.5, theme) as (figure, colours):
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, label, neutral, lines) in zip(grid, panels, strict=True):
            for rank, line in enumerate(lines):
                _line(axes, line, rank, len(lines), colours)
            if neutral is not None:
                axes.axhline(neutral, color=colours.muted, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
            axes.set(title=title, ylabel=label, xlim=(-0.35, len(stages) - 0.65))
            axes.set_xticks(range(len(stages)), [stage.replace(", ", ",\n") for stage in stages])
            for tick in axes.get_xticklabels():
                tick.set(color=colours.text)
            axes.margins(y=0.15)
            if len(lines) > 1:
                axes.legend(loc="best", fontsize=8)
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        return Drawing(figure=figure, theme=theme)


def _line(axes: Any, line: Series, rank: int, num: int, theme: Theme) -> None:
    known = [(place, one) for place, one in enumerate(line.values) if one is not None]
    shift = (rank - (num - 1) / 2) * 0.06
    colour = theme.series[rank % len(theme.series)]
    axes.plot([place + shift for place, _ in known], [one.value for _, one in known], color=colour, linewidth=1.4, label=line.name,
              marker=MARKERS[rank % len(MARKERS)], markersize=6)  # fmt: skip
    for place, one in known:
        if one.ci_low is not None:
            axes.plot([place + shift] * 2, [one.ci_low, one.ci_high], color=colour, linewidth=3.0, alpha=0.45)


def spread_figure(
    values: NDArray[np.float64],
    null: NDArray[np.float64],
    words: tuple[str, str, str],
    limit: float | None = None,
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """Two distributions as outlines of equal area: f64[n] of the perturbations, f64[m] of the null.

    words: names of the two, and of the axis; limit: the value beyond which one counts, drawn as a line
    """
    both = np.concatenate([values, null])
    low, high = np.percentile(both, [0.2, 99.8])
    bins = np.linspace(low, max(high, low + 1e-6), 41)
    with drawing(6.4, 2.9, theme) as (figure, colours):
        axes = figure.add_subplot()
        for data, name, colour in ((null, words[1], colours.muted), (values, words[0], colours.series[0])):
            inside = np.clip(data, bins[0], bins[-1])
            share = np.full(len(data), 1 / max(len(data), 1))
            axes.hist(inside, bins=bins, weights=share, histtype="stepfilled", alpha=0.35, color=colour)
            axes.hist(inside, bins=bins, weights=share, histtype="step", color=colour, linewidth=1.4,
                      label=f"{name} ({len(data):,})")  # fmt: skip
        if limit is not None:
            axes.axvline(limit, color=colours.text, linestyle=(0, (4, 3)), linewidth=1.2)
        axes.set(xlabel=words[2], ylabel="share")
        axes.legend(fontsize=8)
        return Drawing(figure=figure, theme=theme)
