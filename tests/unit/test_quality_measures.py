"""The parts of store qc that are arithmetic: robust z, limits, thumbnails, and how a plate is drawn."""

from __future__ import annotations

import re

import numpy as np
import pytest

from phenomhpc.jobs.base import kind_of_reason
from phenomhpc.jobs.quality.limits import conditions_of
from phenomhpc.jobs.quality.measures import BACKGROUND, FEWEST, FOCUS, NUCLEI, SATURATED, Measure, flagged, robust_z
from phenomhpc.jobs.quality.pictures import block_means, shown_channels
from phenomhpc.jobs.quality.words import number
from phenomhpc.plates import Well
from phenomhpc.report.platemap import Scale, boxes, crosses, drift, plate_symbols, row_letters, view_box


def one(kind: object) -> list[Measure]:
    return [Measure(kind=kind)]  # type: ignore[arg-type]


def test_robust_z_is_the_distance_in_median_deviations() -> None:
    values = np.array([0.4, 0.5, 0.6, 0.3, 0.7, 0.5, 0.4, 0.6, np.nan])
    z = robust_z(values[:, None], one(FOCUS))[:, 0]
    spread = 1.4826 * np.median(np.abs(values[:-1] - 0.5))
    np.testing.assert_allclose(z[:-1], (values[:-1] - 0.5) / spread)
    assert np.isnan(z[-1])
    levels = np.array([100.0, 200, 400, 800, 100, 200, 400, 800, 1600])
    logs = np.log(levels)
    wanted = (logs - np.median(logs)) / (1.4826 * np.median(np.abs(logs - np.median(logs))))
    np.testing.assert_allclose(robust_z(levels[:, None], one(BACKGROUND))[:, 0], wanted)


def test_an_even_plate_has_no_outliers_and_of_few_wells_nothing_is_said() -> None:
    even = np.full((20, 1), 0.5)
    even[3] = 0.41  # within five floors
    assert not flagged(robust_z(even, one(FOCUS)), one(FOCUS)).any()
    even[3] = 0.39
    assert np.flatnonzero(flagged(robust_z(even, one(FOCUS)), one(FOCUS))).tolist() == [3]
    few = np.full((FEWEST - 1, 1), 0.5)
    few[0] = 0.0
    assert not flagged(robust_z(few, one(FOCUS)), one(FOCUS)).any()


@pytest.mark.parametrize(
    ("kind", "low", "high"), [(FOCUS, True, False), (SATURATED, False, True), (NUCLEI, True, True)]
)
def test_only_the_suspect_side_is_flagged(kind: object, low: bool, high: bool) -> None:
    values = np.full((20, 1), 50.0)
    values[0], values[1] = 0, 100
    assert flagged(robust_z(values, one(kind)), one(kind))[:2, 0].tolist() == [low, high]


def test_limits_are_taken_apart_at_and_only_there() -> None:
    assert conditions_of("focus > 0.2 and saturated < 0.01") == ("focus > 0.2", "saturated < 0.01")
    assert conditions_of("focus['DNA'] > 0.2 or nuclei > 3") == ("focus['DNA'] > 0.2 or nuclei > 3",)
    assert conditions_of("focus >") == ("focus >",)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_thumbnail_holds_means_of_square_blocks(dtype: str) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 67, 100), endpoint=True).astype(dtype)
    small = block_means(pixels, 16)  # blocks of 7, 9 x 14 of them, centred
    assert small.shape == (3, 9, 14)
    wanted = pixels[:, 2:9, 1:8].mean(axis=(1, 2))
    np.testing.assert_allclose(small[:, 0, 0], wanted, rtol=1e-6)
    np.testing.assert_allclose(small[:, 8, 13], pixels[:, 58:65, 92:99].mean(axis=(1, 2)), rtol=1e-6)
    assert block_means(pixels, 1000).shape == pixels.shape
    white = np.full((1, 2160, 2160), np.iinfo(dtype).max, dtype)
    assert (block_means(white, 27) == np.iinfo(dtype).max).all()  # no overflow in the largest blocks


def test_transmitted_light_is_not_blended_and_dna_comes_first() -> None:
    assert shown_channels(["Alexa 647", "HOECHST 33342", "Brightfield"]) == [1, 0]
    assert shown_channels(["Brightfield"]) == [0]


def test_numbers_are_written_as_people_read_them() -> None:
    written = [number(SATURATED, 0.0312), number(SATURATED, 0.0), number(FOCUS, 0.256), number(BACKGROUND, 1234.5)]
    assert (
        written == ["3.1 %", "0 %", "0.26", "1,234"] and number(NUCLEI, 2.5) == "2.5" and number(FOCUS, np.nan) == "–"
    )


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ER: A01_s1_w2.png: empty file", "ER: ... empty file"),
        ("Mito: B05_s1_w5.tif: neither TIFF, PNG nor JPEG 2000", "Mito: ... neither TIFF, PNG nor JPEG 2000"),
        ("DNA: 20x56 pixels, the plate has 40x56", "DNA: ... pixels, the plate has ..."),
        ("no plane", "no plane"),
    ],
)
def test_reasons_of_a_kind_are_one(reason: str, kind: str) -> None:
    assert kind_of_reason(reason) == kind


def test_every_row_and_column_of_every_plate_is_drawn() -> None:
    for rows, columns in ((8, 12), (16, 24), (32, 48)):
        fine = re.search(
            rf'<g id="fine-{rows}x{columns}">(.*?)</g><g class="side"(.*?)</g>', plate_symbols([(rows, columns)])
        )
        assert fine is not None
        assert re.findall(r">(\w+)</text>", fine[1]) == [str(column + 1) for column in range(columns)]
        assert re.findall(r">(\w+)</text>", fine[2]) == [Well(row=row + 1, column=1).name[:-2] for row in range(rows)]
        assert plate_symbols([(rows, columns)]).count("h0") == 2 * rows * columns
        left, top, width, height = map(float, view_box(rows, columns).split())
        assert left + width > columns and top + height > rows
    assert [row_letters(row) for row in (0, 25, 26, 31)] == ["A", "Z", "AA", "AF"]


def test_paths_go_around_the_wells_they_mark() -> None:
    mask = np.zeros((2, 4), bool)
    mask[0, 1:3] = mask[1, 3] = True
    assert boxes(mask) == "M1 0h2v1h-2zM3 1h1v1h-1z"
    assert crosses(mask).count("M") == 3


def test_a_scale_holds_for_all_and_says_what_lies_beyond() -> None:
    values = np.array([0.0, *np.linspace(0.4, 0.6, 98), 1.0, np.nan])
    scale = Scale.of(values, (1.0, 99.0), 0.1)
    assert scale.low > 0.3 and scale.high < 0.7 and scale.beyond == (True, True)
    assert Scale.of(np.full(3, 7.0), (1.0, 99.0), 2.0) == Scale(low=7.0, high=9.0)
    assert Scale.of(np.full(3, np.nan), (1.0, 99.0), 2.0) == Scale(low=0.0, high=2.0)


def test_drift_draws_each_plate_once_and_what_is_apart_in_its_own_path() -> None:
    quartiles = np.array([[1.0, 2, 3], [np.nan] * 3, [4.0, 5, 6]])
    drawn = drift(quartiles, np.array([False, False, True]), Scale(low=1.0, high=6.0))
    assert (drawn.spans.count("M"), drawn.medians.count("M"), drawn.apart.count("M")) == (2, 1, 1)
    assert drawn.apart.startswith("M200.0 ")  # the third of three, 240 wide
