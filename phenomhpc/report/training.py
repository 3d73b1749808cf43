"""What a model learned while it trained, as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.report.figures import MAX_CROPS, WIDTH_IN, bare_image, false_colours
from phenomhpc.report.theme import Drawing, ThemeName, drawing

MAX_TIMES = 6


def completions_figure(
    original: ArrayLike,
    masked: ArrayLike,
    completed: Sequence[tuple[int, ArrayLike]],
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """The same crops as the model completed them after more and more steps: one crop a column, at most six of each.

    original, masked, and of each step its completion: f32[n, C, h, w], standardised.  Of more than six steps the first, the
    last and some evenly between are drawn.  Colours as in reconstruction_figure.
    """
    first, seen = (np.asarray(crops, dtype=np.float32)[:MAX_CROPS] for crops in (original, masked))
    times = [completed[place] for place in evenly(len(completed), MAX_TIMES)]
    low, high = np.percentile(first, [1.0, 99.7], axis=(2, 3))
    hidden = (seen == 0).all(axis=1)
    rows: list[tuple[str, NDArray[Any]]] = [("original", first), ("what the\nmodel sees", seen)]
    rows += [(f"step {step:,}", np.asarray(crops, dtype=np.float32)[:MAX_CROPS]) for step, crops in times]
    columns = len(first)
    side = min(1.7, (WIDTH_IN - 1.0) / columns)
    with drawing(1.0 + side * columns, side * len(rows), theme) as (figure, colours):
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for number, (name, crops) in enumerate(rows):
            images = false_colours(crops, low, high)
            if number == 1:
                images[hidden] = colours.hidden
            for column in range(columns):
                bare_image(axes[number, column], images[column])
            axes[number, 0].set_ylabel(name, rotation=0, ha="right", va="center", color=colours.text, labelpad=8)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        return Drawing(figure=figure, theme=theme)


def evenly(num: int, most: int) -> list[int]:
    """At most `most` of 0..num-1, evenly, the first and the last among them."""
    return np.unique(np.linspace(0, num - 1, min(num, most)).round().astype(int)).tolist() if num else []
