"""Wells as points, one panel per colouring, one row per stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.report.theme import Drawing, Theme, ThemeName, drawing

MAX_CATEGORIES = 9  # more are coloured by their order
GREY = 7  # its place among matplotlib's ten colours: grey means none of the categories here
MAX_LETTERS = 22  # of a name in a legend
PANEL_IN = 3.4


@dataclass(frozen=True, kw_only=True)
class Colouring:
    """What points are coloured by: code i64[n], the place of each in `names`, -1 for none of them (grey, below the others)."""

    title: str
    names: tuple[str, ...]
    code: NDArray[np.int64]


def scatter_figure(
    stages: Sequence[tuple[str, NDArray[np.float64]]],
    colourings: Sequence[Colouring],
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """One row of panels per stage (name, points f64[n, 2]), one column per colouring, with what each colour means below."""
    rows, columns = len(stages), len(colourings)
    with drawing(PANEL_IN * columns, 3.0 * rows + 1.0, theme) as (figure, colours):
        panels = figure.subplots(rows, columns, squeeze=False)
        for row, (name, points) in enumerate(stages):
            for column, colouring in enumerate(colourings):
                axes = panels[row, column]
                _points(axes, points, colouring, colours)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(True)
                axes.spines[:].set_color(colours.grid)
                if row == 0:
                    axes.set_title(colouring.title)
            panels[row, 0].set_ylabel(name, color=colours.text, fontweight="bold", labelpad=8)
        for column, colouring in enumerate(colourings):
            _legend(panels[-1, column], colouring)
        return Drawing(figure=figure, theme=theme)


def _points(axes: Any, points: NDArray[np.float64], colouring: Colouring, theme: Theme) -> None:
    size = float(np.clip(9000 / max(len(points), 1), 2.0, 26.0))
    # In one order that has nothing to do with the colour, so that the last category does not cover the others.
    order = np.random.default_rng(0).permutation(len(points))
    code = colouring.code[order]
    none, some = order[code < 0], order[code >= 0]
    axes.scatter(*points[none].T, s=size, color=theme.muted, alpha=0.3, linewidths=0, rasterized=True)
    if len(some):
        palette = np.array(_palette(len(colouring.names)))
        larger = 2.5 if len(none) > 2 * len(some) else 1.0
        axes.scatter(
            *points[some].T, s=larger * size, c=palette[colouring.code[some]], alpha=0.8, linewidths=0, rasterized=True
        )
    low, high = np.percentile(points, [0.5, 99.5], axis=0)
    room = 0.12 * np.maximum(high - low, 1e-9)
    axes.set(xlim=(low[0] - room[0], high[0] + room[0]), ylim=(low[1] - room[1], high[1] + room[1]))


def _palette(num: int) -> list[tuple[float, float, float, float]]:
    from matplotlib import colormaps

    if num <= MAX_CATEGORIES:
        colours = [colour for place, colour in enumerate(colormaps["tab10"].colors) if place != GREY]  # type: ignore[attr-defined]
        return [(*colour, 1.0) for colour in colours[:num]]
    return [tuple(colour) for colour in colormaps["turbo"](np.linspace(0.05, 0.95, num))]


def _legend(axes: Any, colouring: Colouring) -> None:
    from matplotlib.lines import Line2D

    names = colouring.names
    if len(names) > MAX_CATEGORIES:
        axes.set_xlabel(f"{len(names)} colours in order, from {_short(names[0])}\nto {_short(names[-1])}", fontsize=7.5)
        return
    colours = _palette(len(names))
    marks = [Line2D([], [], marker="o", linestyle="", markersize=5, color=colour) for colour in colours]
    columns = 2 if max(map(len, names), default=0) > 8 else 3
    axes.legend(marks, [_short(name) for name in names], loc="upper center", bbox_to_anchor=(0.5, -0.03), ncols=columns,
                fontsize=7.5, handletextpad=0.2, columnspacing=0.8, borderaxespad=0.2)  # fmt: skip


def _short(name: str) -> str:
    return name if len(name) <= MAX_LETTERS else f"{name[: MAX_LETTERS - 1]}…"
