"""Pictures of a model and of what its map finds, each a function from values to a Drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.report.theme import Drawing, Theme, ThemeName, drawing

WIDTH_IN = 10.4
MAX_CROPS = 6
CURVE_WINDOW = 0.04  # share of the steps that a smoothed curve averages over

# False colours of Cell Painting's channels in their usual order: DNA, ER, RNA, AGP, mitochondria, and a sixth.
FALSE_COLOURS = np.array(
    [
        (0.20, 0.42, 1.00),
        (0.10, 0.85, 0.35),
        (0.95, 0.85, 0.15),
        (1.00, 0.45, 0.10),
        (0.95, 0.15, 0.55),
        (0.35, 0.80, 0.95),
    ]
)
BRIGHTNESS, MIDDLE_TONES, SATURATION = 4.9, 1.5, 1.9


def false_colours(crops: NDArray[np.floating[Any]], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """Channels blended into RGB: f[n, C, h, w] -> f64[n, h, w, 3] in [0, 1].

    low, high: f[n, C], the values of each crop's channels that become dark and bright.  One channel is drawn in grey.
    """
    span = np.maximum(high - low, 1e-6)[:, :, None, None]
    level = np.clip((crops - low[:, :, None, None]) / span, 0.0, 1.0)
    num = crops.shape[1]
    if num == 1:
        return np.repeat(level[:, 0, :, :, None].astype(np.float64), 3, axis=3)
    weights = FALSE_COLOURS[np.arange(num) % len(FALSE_COLOURS)] * BRIGHTNESS / num
    # Channels overlap in a cell and would add up to grey: darker middle tones and more colour keep them apart.
    blended = 1.0 - np.exp(-np.einsum("nchw,ck->nhwk", level**MIDDLE_TONES, weights))
    grey = blended.mean(axis=3, keepdims=True)
    result: NDArray[np.float64] = np.clip(grey + SATURATION * (blended - grey), 0.0, 1.0)
    return result


def channel_colours(num: int) -> list[str]:
    """CSS colours of `num` channels in false_colours; one channel is drawn in grey."""
    if num == 1:
        return ["#9a9a9a"]
    levels = np.round(FALSE_COLOURS[np.arange(num) % len(FALSE_COLOURS)] * 255).astype(int)
    return ["#{:02x}{:02x}{:02x}".format(*level) for level in levels.tolist()]


def reconstruction_figure(
    original: ArrayLike, masked: ArrayLike, reconstructed: ArrayLike, *, theme: ThemeName = "light"
) -> Drawing:
    """Crops as they are, as the model saw them, as it completed them: one crop a column, at most six.

    original, masked, reconstructed: f32[n, C, h, w], standardised; what was hidden is 0 in `masked` and drawn in grey.
    Channels are drawn in false colours, on one scale per crop and channel: the original's 1st to 99.7th percentile.
    """
    kinds = [np.asarray(crops, dtype=np.float32)[:MAX_CROPS] for crops in (original, masked, reconstructed)]
    first, seen, _ = kinds
    low, high = np.percentile(first, [1.0, 99.7], axis=(2, 3))
    hidden = (seen == 0).all(axis=1)
    columns = len(first)
    side = min(1.7, (WIDTH_IN - 1.0) / columns)
    with drawing(1.0 + side * columns, side * 3, theme) as (figure, colours):
        axes = figure.subplots(3, columns, squeeze=False)
        for row, (name, crops) in enumerate(
            zip(("original", "what the\nmodel sees", "what it\ncompletes"), kinds, strict=True)
        ):
            images = false_colours(crops, low, high)
            if row == 1:
                images[hidden] = colours.hidden
            for column in range(columns):
                bare_image(axes[row, column], images[column])
            axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", color=colours.text, labelpad=8)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
        return Drawing(figure=figure, theme=theme)


def bare_image(axes: Any, image: NDArray[Any]) -> None:
    """An image f[h, w, 3] without axes."""
    axes.imshow(image, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def curves_figure(
    metrics: Mapping[str, Any],
    validations: Mapping[str, Any] | None = None,
    *,
    theme: ThemeName = "light",
) -> Drawing:
    """Loss and throughput of every step, each with its running mean.

    metrics: columns by name (a dict of arrays, or a table): step, loss, crops_per_s, each [n]; rows without a loss are left out
    validations: step, val_loss, each [m], drawn as points over the loss
    """
    step, loss, speed = (np.asarray(metrics[name], dtype=np.float64) for name in ("step", "loss", "crops_per_s"))
    known = np.isfinite(loss)
    with drawing(WIDTH_IN, 3.0, theme) as (figure, colours):
        left, right = figure.subplots(1, 2)
        _curve(left, step[known], loss[known], colours, 0)
        left.set(title="Reconstruction loss", xlabel="step")
        if validations is not None and len(validations["step"]):
            at, value = (np.asarray(validations[name], dtype=np.float64) for name in ("step", "val_loss"))
            left.plot(at, value, "o-", color=colours.series[1], markersize=4, linewidth=1.2, label="held-out crops")
            left.legend(frameon=False)
        _curve(right, step[known], speed[known], colours, 2)
        right.set(title="Throughput, crops per second", xlabel="step")
        right.set_ylim(bottom=0)
        return Drawing(figure=figure, theme=theme)


def _curve(axes: Any, x: NDArray[Any], y: NDArray[Any], theme: Theme, series: int) -> None:
    colour = theme.series[series]
    window = max(1, round(len(y) * CURVE_WINDOW))
    axes.plot(x, y, color=colour, alpha=0.30 if window > 1 else 1.0, linewidth=1.0)
    if window > 1:
        total = np.concatenate([[0.0], np.cumsum(y)])
        axes.plot(x[window - 1 :], (total[window:] - total[:-window]) / window, color=colour, linewidth=2.0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


@dataclass(frozen=True, kw_only=True)
class RecallPoint:
    """One recall to draw: of which map, on which annotation, at which thresholds; None without an interval."""

    source: str
    annotation: str
    lo: float
    hi: float
    recall: float
    ci_low: float | None
    ci_high: float | None
    chance: float


MARKERS = ("o", "s", "D", "^", "v", "P")
ROW_IN = 0.27  # height of a row of the recall figure


def recall_figure(points: Sequence[RecallPoint], *, theme: ThemeName = "light") -> Drawing:
    """Recall with its interval, one row per source under each annotation, one panel per pair of thresholds.

    The first source is the encoder, drawn larger than its baselines; chance is a dashed line.
    """
    thresholds = list(dict.fromkeys((point.lo, point.hi) for point in points))
    sources = list(dict.fromkeys(point.source for point in points))
    annotations = list(dict.fromkeys(point.annotation for point in points))
    rows = [(annotation, source) for annotation in annotations for source in ("", *sources)]
    with drawing(WIDTH_IN, 0.9 + ROW_IN * len(rows), theme) as (figure, colours):
        panels = figure.subplots(1, len(thresholds), sharey=True, squeeze=False)[0]
        for axes, (lo, hi) in zip(panels, thresholds, strict=True):
            here = [point for point in points if (point.lo, point.hi) == (lo, hi)]
            for point in here:
                _recall_row(axes, point, rows.index((point.annotation, point.source)), sources, colours)
            axes.axvline(here[0].chance, color=colours.muted, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
            axes.annotate("chance", (here[0].chance, 0), xytext=(5, 0), textcoords="offset points", va="center",
                          color=colours.muted, fontsize=8)  # fmt: skip
            axes.set(
                title=f"in the lowest {lo:.0%} or highest {1 - hi:.0%} of all pairs",
                xlabel="share of known pairs found",
            )
            axes.set(xlim=(0, 1.12), xticks=np.linspace(0, 1, 6), ylim=(len(rows) - 0.3, -0.6))
            axes.grid(axis="x")
            axes.set_axisbelow(True)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(rows)), [source or annotation for annotation, source in rows])
        for tick, (_, source) in zip(panels[0].get_yticklabels(), rows, strict=True):
            tick.set(fontweight="normal" if source else "bold", color=colours.text)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
        return Drawing(figure=figure, theme=theme)


def _recall_row(axes: Any, point: RecallPoint, row: int, sources: Sequence[str], theme: Theme) -> None:
    rank = sources.index(point.source)
    colour, leading = theme.series[rank % len(theme.series)], rank == 0
    end = point.recall if point.ci_high is None else max(point.ci_high, point.recall)
    if point.ci_low is not None:
        axes.plot(
            [point.ci_low, end], [row, row], color=colour, linewidth=3.2 if leading else 1.8, alpha=0.75, zorder=2
        )
    axes.plot(
        point.recall,
        row,
        marker=MARKERS[rank % len(MARKERS)],
        markersize=8.5 if leading else 6,
        color=colour,
        zorder=3,
    )
    axes.annotate(f"{point.recall:.2f}", (end, row), xytext=(8, 0), textcoords="offset points", va="center", color=colour,
                  fontweight="bold" if leading else "normal", fontsize=8.5)  # fmt: skip
