"""Colours of pictures, light and dark, the same as those of the page; figures without pyplot's global state."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

ThemeName = Literal["light", "dark"]

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


def style_of(theme: ThemeName) -> Any:
    """Matplotlib's settings of a theme."""
    colours = THEMES[theme]
    return {
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


@contextmanager
def drawing(width_in: float, height_in: float, theme: ThemeName) -> Iterator[tuple[Any, Theme]]:
    """A figure of that size in inches to draw on, with the theme's style in force."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(style_of(theme)):
        yield Figure(figsize=(width_in, height_in), layout="constrained"), THEMES[theme]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure and the theme it was drawn in: drawn once, laid out with its first file, written in any form.

    The same drawing gives the same bytes.
    """

    figure: Any
    theme: ThemeName

    def png(self) -> bytes:
        """As a PNG file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        return self._written(FigureCanvasAgg(self.figure).print_png, {"Software": None})

    def svg(self) -> bytes:
        """As an SVG file."""
        from matplotlib.backends.backend_svg import FigureCanvasSVG

        return self._written(FigureCanvasSVG(self.figure).print_svg, {"Date": None, "Creator": None})

    def _written(self, write: Callable[..., None], metadata: dict[str, None]) -> bytes:
        """By the canvas itself: savefig would draw the whole figure once more beforehand, for its layout, which drawing finds."""
        from matplotlib import rc_context

        buffer = io.BytesIO()
        with rc_context(style_of(self.theme)):
            self.figure.dpi = DOTS_PER_INCH
            write(buffer, metadata=metadata)
            self.figure.set_layout_engine("none")
        return buffer.getvalue()
