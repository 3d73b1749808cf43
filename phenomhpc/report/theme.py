"""Colours of pictures, light and dark, the same as those of the page; figures without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

ThemeName = Literal["light", "dark"]
Form = Literal["png", "svg"]

DOTS_PER_INCH = 160
BASE_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.dpi": DOTS_PER_INCH,
    "svg.hashsalt": "phenomhpc",  # the same ids in the same drawing
}


@dataclass(frozen=True, kw_only=True)
class Theme:
    """One set of colours.

    series: the encoder first, then baselines, told apart by people of any colour vision (Okabe and Ito 2008) and by marker
    diverging: matplotlib's name of a map whose middle is the background
    """

    surface: str
    text: str
    muted: str
    grid: str
    series: tuple[str, ...]
    diverging: str
    hidden: float  # grey of what is hidden from the model, 0 to 1


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        surface="#ffffff",
        text="#1b2430",
        muted="#5b6675",
        grid="#e3e8ee",
        series=("#0b63b5", "#d55e00", "#00795a", "#7a8491", "#b0478f", "#8a6d00"),
        diverging="RdBu_r",
        hidden=0.80,
    ),
    "dark": Theme(
        surface="#171d26",
        text="#e8edf3",
        muted="#9aa7b6",
        grid="#2b3442",
        series=("#62b0ff", "#ff9d4d", "#3fd0a4", "#9aa7b6", "#e58cc9", "#e0c14a"),
        diverging="berlin",
        hidden=0.22,
    ),
}


@contextmanager
def drawing(width_in: float, height_in: float, theme: ThemeName) -> Iterator[tuple[Any, Theme]]:
    """A figure (Agg) of that size in inches to draw on, with the theme's style in force."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = THEMES[theme]
    style: Any = {  # matplotlib types its keys as one long literal
        **BASE_STYLE,
        "text.color": colours.text,
        "axes.labelcolor": colours.muted,
        "axes.edgecolor": colours.muted,
        "axes.facecolor": colours.surface,
        "axes.titlecolor": colours.text,
        "xtick.color": colours.muted,
        "ytick.color": colours.muted,
        "grid.color": colours.grid,
        "figure.facecolor": colours.surface,
    }
    with rc_context(style):
        figure = Figure(figsize=(width_in, height_in), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, colours


def encoded(figure: Any, form: Form = "png") -> bytes:
    """The figure as a PNG or SVG file; the same bytes for the same drawing."""
    buffer = io.BytesIO()
    nothing = {"Software": None} if form == "png" else {"Date": None, "Creator": None}
    figure.savefig(buffer, format=form, dpi=DOTS_PER_INCH, metadata=nothing)
    return buffer.getvalue()
