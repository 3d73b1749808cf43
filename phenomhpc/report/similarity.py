"""Maps as pictures: cosines of some perturbations, and of a whole genome along its chromosomes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from phenomhpc.report.theme import Drawing, Theme, ThemeName, drawing

MAX_NAMED = 80  # perturbations whose names fit beside a heatmap
MIN_LABEL = 0.018  # share of the side that a chromosome's name needs to itself
STRONGEST = 99.5  # percentile of the similarities beyond which colours are full


def heatmap_figure(
    matrix: ArrayLike,
    labels: Sequence[str],
    groups: Sequence[str] = (),
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """Cosine similarities f[g, g] in the order given, blue for opposite, red for alike.

    labels: g names, written where there are at most 80; groups: the group of each, neighbours together ("" for none), marked
    by a coloured strip along both sides
    """
    cosines = np.asarray(matrix, dtype=np.float64)
    named = len(labels) <= MAX_NAMED
    with drawing(7.6, 6.6, theme) as (figure, colours):
        axes = figure.add_subplot()
        image = axes.imshow(
            cosines, cmap=colours.diverging, vmin=-1, vmax=1, interpolation="nearest" if named else "antialiased"
        )
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
        if named:
            size = min(8.0, 330.0 / len(labels))
            axes.set_xticks(range(len(labels)), labels, rotation=90, fontsize=size)
            axes.set_yticks(range(len(labels)), labels, fontsize=size)
            axes.tick_params(length=0, pad=9 if any(groups) else 3)
        else:
            axes.set_xlabel(f"{len(labels)} perturbations", labelpad=12)
        _group_strips(axes, list(groups), len(labels), colours)
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=24, pad=0.02)
        bar.set_label("cosine similarity")
        bar.outline.set_visible(False)
        return Drawing(figure=figure, theme=theme)


def _group_strips(axes: Any, groups: list[str], num: int, theme: Theme) -> None:
    """A strip outside the left and lower side, one colour per run of equal groups."""
    from matplotlib.patches import Rectangle

    starts = [row for row in range(len(groups)) if row == 0 or groups[row] != groups[row - 1]]
    width = num * 0.012
    drawn = 0
    for start, end in pairwise([*starts, len(groups)]):
        if not groups[start]:
            continue
        colour = theme.series[drawn % len(theme.series)]
        drawn += 1
        for corner, size in (
            ((-0.5 - 1.6 * width, start - 0.5), (width, end - start)),
            ((start - 0.5, num - 0.5 + 0.6 * width), (end - start, width)),
        ):
            axes.add_patch(Rectangle(corner, *size, color=colour, linewidth=0, clip_on=False))
        axes.add_patch(
            Rectangle((start - 0.5, start - 0.5), end - start, end - start, fill=False, color=theme.text, linewidth=0.7)
        )


def genome_figure(
    upper: ArrayLike,
    lower: ArrayLike,
    arms: Sequence[tuple[str, int, int]],
    words: tuple[str, str],
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """Two maps of one genome in one square: f[b, b] above and below the diagonal, in the order of the chromosomes.

    arms: (name such as "19q", first row, end) of each arm, one after the other; words: what stands above and what below
    Both have one scale, symmetric about 0, full at the 99.5th percentile of what is off the diagonals.
    """
    above, below = (np.asarray(values, dtype=np.float64) for values in (upper, lower))
    num = len(above)
    shown = np.where(np.triu(np.ones((num, num), dtype=bool), 1), above, below)
    np.fill_diagonal(shown, np.nan)
    off = np.abs(shown[~np.isnan(shown)])
    limit = max(float(np.percentile(off, STRONGEST)), 1e-6) if off.size else 1.0
    with drawing(7.6, 6.8, theme) as (figure, colours):
        axes = figure.add_subplot()
        image = axes.imshow(shown, cmap=colours.diverging, vmin=-limit, vmax=limit, interpolation="nearest")
        axes.spines[:].set_visible(False)
        _arm_lines(axes, arms, num, colours)
        axes.set_title(f"above the diagonal: {words[0]}", pad=8)
        axes.set_xlabel(
            f"below the diagonal: {words[1]}", labelpad=8, color=colours.text, fontweight="bold", loc="left"
        )
        bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=24, pad=0.02)
        bar.set_label("cosine similarity, mean of each block of genes")
        bar.outline.set_visible(False)
        return Drawing(figure=figure, theme=theme)


def _arm_lines(axes: Any, arms: Sequence[tuple[str, int, int]], num: int, theme: Theme) -> None:
    """Frames around arms, thicker lines between chromosomes, whose names stand beside as far as there is room."""
    from matplotlib.patches import Rectangle

    chromosomes: dict[str, tuple[int, int]] = {}
    for name, start, end in arms:
        axes.add_patch(
            Rectangle((start - 0.5, start - 0.5), end - start, end - start, fill=False, color=theme.text, linewidth=0.5)
        )
        chromosome = name[:-1]
        first = chromosomes.get(chromosome, (start, end))[0]
        chromosomes[chromosome] = (first, end)
    places, names, last = [], [], -np.inf
    for name, (start, end) in chromosomes.items():
        if start:
            for line in (axes.axvline, axes.axhline):
                line(start - 0.5, color=theme.grid, linewidth=0.5)
        middle = (start + end - 1) / 2
        if middle - last > MIN_LABEL * num:
            places.append(middle)
            names.append(name)
            last = middle
    axes.set_xticks(places, names, fontsize=7)
    axes.set_yticks(places, names, fontsize=7)
    axes.tick_params(length=0, pad=3)
