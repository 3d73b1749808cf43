"""Pictures show what they are given."""

from __future__ import annotations

import io
import re

import matplotlib
import numpy as np
import polars as pl
import pytest
from matplotlib.image import imread
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from phenomhpc.report import (
    Colouring,
    Measured,
    Panel,
    RecallPoint,
    Series,
    Trend,
    curves_figure,
    genome_figure,
    heatmap_figure,
    panels_figure,
    recall_figure,
    reconstruction_figure,
    scaling_figure,
    scatter_figure,
    spread_figure,
    way_figure,
)
from phenomhpc.report.figures import false_colours
from phenomhpc.report.theme import THEMES, Drawing, ThemeName
from tests.unit.evaluation_data import cells


def _pixels(png: bytes) -> NDArray[np.float32]:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return np.asarray(imread(io.BytesIO(png)))[..., :3]


def _has_colour(pixels: NDArray[np.float32], colour: str, share: float = 0.0005) -> bool:
    wanted = np.array([int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return bool((np.abs(pixels - wanted).max(axis=-1) < 0.02).mean() > share)


def _points() -> list[RecallPoint]:
    return [
        RecallPoint(source=source, annotation=name, lo=lo, hi=1 - lo, recall=recall, ci_low=recall - 0.05, ci_high=recall + 0.05,
                    chance=2 * lo)
        for source, recall in (("encoder", 0.6), ("untrained network", 0.3), ("random features", 0.1))
        for name in ("HuMAP", "Reactome")
        for lo in (0.05, 0.1)
    ]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_picture_stands_on_the_themes_background(theme) -> None:  # type: ignore[no-untyped-def]
    crops = cells(2, side=32)
    metrics = {"step": [0, 1, 2], "loss": [1.0, 0.5, np.nan], "crops_per_s": [10.0, 11.0, 12.0]}
    matrix = np.eye(4)
    for drawing in (
        reconstruction_figure(crops, crops, crops, theme=theme),
        curves_figure(metrics, theme=theme),
        heatmap_figure(matrix, list("abcd"), ["0", "0", "1", ""], theme=theme),
        recall_figure(_points(), theme=theme),
    ):
        assert _has_colour(_pixels(drawing.png()), THEMES[theme].surface, 0.1)


def test_the_same_values_give_the_same_bytes_and_no_global_style_stays() -> None:
    before = dict(matplotlib.rcParams)
    assert recall_figure(_points()).png() == recall_figure(_points()).png()
    assert dict(matplotlib.rcParams) == before


def test_hidden_patches_are_grey_and_the_rest_is_not() -> None:
    crops = cells(1, side=32)
    masked = crops.copy()
    masked[:, :, :16] = 0.0
    grey = "#cccccc"
    assert not _has_colour(_pixels(reconstruction_figure(crops, crops, crops).png()), grey)
    assert _has_colour(_pixels(reconstruction_figure(crops, masked, crops).png()), grey, 0.05)


def test_channels_keep_their_colour_and_a_single_one_is_grey() -> None:
    crop = np.zeros((1, 6, 2, 2), dtype=np.float32)
    crop[0, 0, 0, 0] = crop[0, 1, 0, 1] = 1.0
    low, high = np.zeros((1, 6)), np.ones((1, 6))
    image = false_colours(crop, low, high)[0]
    assert image[0, 0].argmax() == 2  # DNA is blue
    assert image[0, 1].argmax() == 1  # ER is green
    np.testing.assert_array_equal(image[1, 1], 0.0)
    grey = false_colours(crop[:, :1], low[:, :1], high[:, :1])[0]
    np.testing.assert_array_equal(grey[0, 0], [1.0, 1.0, 1.0])
    assert image.min() >= 0.0 and image.max() <= 1.0


def test_crops_of_one_to_many_channels_and_a_blank_one_are_drawn() -> None:
    for channels in (1, 3, 8):
        crops = cells(3, channels=channels, side=16)
        crops[0] = 0.0
        assert _pixels(reconstruction_figure(crops, crops, crops).png()).std() > 0.01


def test_opposite_and_alike_pairs_have_the_ends_of_the_colour_scale() -> None:
    pixels = _pixels(heatmap_figure([[1.0, -1.0], [-1.0, 1.0]], ["a", "b"]).png())
    assert _has_colour(pixels, "#67001f", 0.05) and _has_colour(pixels, "#053061", 0.05)


def test_a_large_heatmap_is_drawn_without_names() -> None:
    groups = [str(row // 20) for row in range(200)]
    assert _pixels(heatmap_figure(np.eye(200), [f"g{row}" for row in range(200)], groups).png()).shape[2] == 3


def test_curves_take_a_table_of_another_library() -> None:
    columns = {"step": list(range(60)), "loss": [1.0 / (1 + step) for step in range(60)], "crops_per_s": [5.0] * 60}
    assert curves_figure(pl.DataFrame(columns).to_dict(as_series=False)).png() == curves_figure(columns).png()


def test_recall_without_intervals_is_drawn() -> None:
    point = RecallPoint(
        source="encoder", annotation="P", lo=0.05, hi=0.95, recall=0.4, ci_low=None, ci_high=None, chance=0.1
    )
    assert _has_colour(_pixels(recall_figure([point]).png()), THEMES["light"].series[0], 0.0001)


def _new_pictures(theme: ThemeName) -> list[Drawing]:
    """One of each picture of an evaluation that is not drawn above."""
    one = Measured(name="encoder", value=0.5, ci_low=0.4, ci_high=0.6, chance=0.1)
    points = np.random.default_rng(0).normal(size=(60, 2))
    few = Colouring(title="plate", names=("a", "b"), code=np.arange(60) % 3 - 1)
    many = Colouring(title="batch", names=tuple(f"b{number}" for number in range(30)), code=np.arange(60) % 30)
    flop = np.geomspace(1e18, 1e20, 9)
    line = (flop, np.linspace(0.2, 0.4, 9), np.linspace(0.1, 0.3, 9), np.linspace(0.3, 0.5, 9))
    trend = Trend(title="Recall", points=((1e18, one), (1e20, one)), line=line, next=(4e20, one))
    return [
        scatter_figure([("before", points), ("after", points)], [few, many], theme=theme),
        panels_figure([Panel(title="A", note="share", values=(one, one))] * 4, theme=theme),
        way_figure(["raw", "aligned"], [("A", "recall", 0.1, [Series(name="x", values=(one, None))])], theme=theme),
        spread_figure(points[:, 0], points[:, 1], ("a", "b", "cosine"), 0.5, theme=theme),
        scaling_figure([trend], theme=theme),
    ]  # fmt: skip


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pictures_of_an_evaluation_stand_on_the_themes_background(theme: ThemeName) -> None:
    assert all(_has_colour(_pixels(one.png()), THEMES[theme].surface, 0.1) for one in _new_pictures(theme))


def test_svg_files_are_whole_and_the_same_each_time() -> None:
    first, again = ([one.svg() for one in _new_pictures("light")] for _ in range(2))
    assert first == again
    for svg in first:
        assert b"<svg" in svg[:2000] and svg.rstrip().endswith(b"</svg>")
        assert b"http://" not in re.sub(rb'(xmlns\S*="[^"]*"|"-//W3C[^>]*>|rdf:resource="[^"]*")', b"", svg)


def test_a_figure_is_built_and_laid_out_once_for_both_files(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = []
    execute = ConstrainedLayoutEngine.execute
    monkeypatch.setattr(
        ConstrainedLayoutEngine, "execute", lambda self, fig: laid_out.append(fig) or execute(self, fig)
    )
    for drawing in _new_pictures("dark"):
        laid_out.clear()
        png, svg = drawing.png(), drawing.svg()
        assert laid_out == [drawing.figure]
        assert drawing.png() == png and drawing.svg() == svg


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_genome_has_one_map_above_the_diagonal_and_the_other_below(theme: ThemeName) -> None:
    alike, opposite = np.full((24, 24), 1.0), np.full((24, 24), -1.0)
    arms = [("1p", 0, 12), ("1q", 12, 18), ("2p", 18, 24)]
    pixels = _pixels(genome_figure(alike, opposite, arms, ("one", "other"), theme=theme).png())
    red, blue = pixels[..., 0] - pixels[..., 2] > 0.2, pixels[..., 2] - pixels[..., 0] > 0.2
    size = len(pixels) // 2, pixels.shape[1] // 2
    upper_right, lower_left = (
        (slice(0, size[0]), slice(size[1] - 200, size[1] + 200)),
        (slice(size[0], None), slice(0, size[1] - 200)),
    )
    assert red[upper_right].mean() > 5 * blue[upper_right].mean()
    assert blue[lower_left].mean() > 5 * red[lower_left].mean()
