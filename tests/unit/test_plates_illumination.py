"""Uneven light: polynomials, functions and estimates, kept or divided by, and traceable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from scipy.ndimage import gaussian_filter

from phenomhpc.errors import UsageError
from phenomhpc.plates import Plate, find_plates, read_plate
from phenomhpc.plates.illumination import NoProfile, Polynomial, divide, estimate, profile, reduced
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import vignette, write_layout
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.lookup import read_lookup
from phenomhpc.store.verify import verify
from tests.unit.test_plates_layouts import convert

POLYNOMIAL = {
    "Coefficients": [[1.2], [0.1, -0.3], [-0.5, 0.2, 0.4]], "Dims": [30, 20], "Origin": [14.5, 9.5], "Scale": [0.05, 0.03],
    "Type": "Polynomial",
}  # fmt: skip


def phenix(**background: object) -> str:
    said = {"Character": "NonFlat", "Profile": {**POLYNOMIAL, **background}}
    return json.dumps({"kind": "phenix", "profile": {"Background": said}})


def test_a_polynomial_is_what_numpy_makes_of_it() -> None:
    x, y = (np.arange(30) - 14.5) * 0.05, (np.arange(20) - 9.5) * 0.03
    # numpy's coefficients: c[i, j] of x^i y^j
    expected = np.polynomial.polynomial.polygrid2d(x, y, [[1.2, -0.3, 0.4], [0.1, 0.2, 0], [-0.5, 0, 0]]).T
    assert np.allclose(Polynomial(POLYNOMIAL, 20, 30).window(0, 0, 20, 30), expected, atol=1e-6)


def test_the_real_profiles_follow_the_empty_background_of_the_real_field(shared_data: Path) -> None:
    plate = read_plate(find_plates([str(shared_data / "phenix")])[0])
    flat = profile(plate.illumination[4], 1080, 1080)
    assert flat is not None and float(flat.mean()) == pytest.approx(1, abs=1e-3)
    plane = tifffile.imread(plate.fields[0].planes[4][0].path).astype(np.float32)  # type: ignore[union-attr]
    blocks = np.percentile(plane.reshape(10, 108, 10, 108).swapaxes(1, 2).reshape(10, 10, -1), 10, axis=2)
    light = flat.reshape(10, 108, 10, 108).mean(axis=(1, 3))
    empty = blocks < np.percentile(blocks / light, 70) * light  # there are four cells in it
    fits = [
        np.corrcoef(way(light)[empty], blocks[empty])[0, 1] for way in (np.asarray, np.transpose, np.fliplr, np.flipud)
    ]
    assert fits[0] > 0.99 and fits[0] == max(fits)
    assert profile(plate.illumination[5], 1080, 1080) is None  # the brightfield's is Identity


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (phenix(Coefficients=[[1.0], [0.1]]), "make no polynomial"),
        (phenix(Coefficients=[["INF"]]), "no illumination"),
        (phenix(Coefficients=[["NaN"]]), "no illumination"),
        (phenix(Coefficients=[[0.0]]), "no illumination"),
        (phenix(Dims=[20, 30]), "is for"),
        (phenix(Dims=[float("inf"), 30]), "lacks a number"),
        (phenix(Scale="x"), "lacks a number"),
        (phenix(Type="Spline"), "only Polynomial and Identity"),
        (json.dumps({"kind": "phenix", "text": "{"}), "cannot be parsed"),
        (json.dumps({"kind": "npy", "path": "/nowhere/x.npy"}), "cannot be read"),
    ],
)
def test_what_is_no_profile_is_refused_with_the_reason(text: str, said: str) -> None:
    with pytest.raises(NoProfile, match=said):
        profile(text, 20, 30)


def test_flat_ones_are_none() -> None:
    assert profile(None, 20, 30) is None and profile(phenix(Type="Identity"), 20, 30) is None


@pytest.mark.parametrize(
    "content", [np.array([{}], object), np.ones((3, 3)), np.zeros((20, 30)), np.ones((20, 30, 2)), np.array("x" * 9)]
)
def test_a_hostile_or_senseless_function_is_refused(content: np.ndarray, tmp_path: Path) -> None:  # type: ignore[type-arg]
    np.save(tmp_path / "f.npy", content, allow_pickle=True)
    with pytest.raises(NoProfile):
        profile(json.dumps({"kind": "npy", "path": str(tmp_path / "f.npy")}), 20, 30)


def test_division_rounds_stays_in_range_and_leaves_the_saturated() -> None:
    plane = np.array([[0, 10, 65535, 60000]], np.uint16)
    divide(plane, np.array([[0.5, 0.4, 2.0, 0.5]], np.float32))
    assert plane.tolist() == [[0, 25, 65535, 65535]]


@pytest.fixture(scope="module")
def dimmed(tmp_path_factory: pytest.TempPathFactory) -> Plate:
    """A plate of random smooth pictures under a vignette."""
    folder = tmp_path_factory.mktemp("dimmed")
    spec = SyntheticSpec(
        experiments=1, plates_per_experiment=1, plate_rows=3, plate_columns=4, field_px=160, num_genes=2, num_unexpressed=0,
        dtype="uint16", image_format="tif",
    )  # fmt: skip
    write_plates(folder, spec, silent(), workers=1)
    light = vignette(160, 160) / vignette(160, 160).mean()
    for number, path in enumerate(sorted((folder / "SYN-01" / "Plate1").glob("*.tif"))):
        rng = np.random.default_rng(number)
        cells = (gaussian_filter(rng.normal(size=(160, 160)), 4) > 0.12) * 3000
        tifffile.imwrite(path, ((1000 + cells) * light).round().astype(np.uint16), compression="lzw")
    return read_plate(find_plates([str(folder / "SYN-01" / "Plate1")])[0])


def unevenness(folder: Path) -> float:
    """How far the background of the field's parts, median over fields, is from even."""
    store = open_store(folder / "store")
    (key,) = store.paths.converted_plates()
    pixels = np.asarray(zarr.open_array(store.paths.images(key), mode="r")[:]).astype(float)
    middle = np.median(pixels.reshape(-1, 160, 160), axis=0).reshape(8, 20, 8, 20).mean(axis=(1, 3))
    return float((middle.max() - middle.min()) / middle.mean())


def test_the_gallerys_functions_and_an_estimate_flatten_a_plate(dimmed: Plate, tmp_path: Path) -> None:
    written = write_layout(dimmed, tmp_path / "raw", "gallery")
    for how in ("keep", "apply", "estimate"):
        convert(tmp_path / how, written, illumination=how)
        store = open_store(tmp_path / how / "store")
        assert not verify(store, silent()).damage
        (key,) = store.paths.converted_plates()
        said = dict(zarr.open_array(store.paths.images(key), mode="r").attrs)["illumination"]
        assert said["applied"] is (how != "keep") and said["from"] == ("estimate" if how == "estimate" else "layout")
        assert len(said["profiles"]) == 6  # type: ignore[arg-type]
    uneven = {how: unevenness(tmp_path / how) for how in ("keep", "apply", "estimate")}
    assert uneven["keep"] > 0.2 and uneven["apply"] < 0.02 and uneven["estimate"] < 0.3 * uneven["keep"], uneven
    before = [path.stat().st_mtime_ns for path in (tmp_path / "estimate" / "store").rglob("c/*/0/0/0")]
    convert(tmp_path / "estimate", written, illumination="estimate")  # the same again is nothing to do
    assert [path.stat().st_mtime_ns for path in (tmp_path / "estimate" / "store").rglob("c/*/0/0/0")] == before
    convert(tmp_path / "estimate", written, illumination="apply")  # another setting is
    assert unevenness(tmp_path / "estimate") < 0.02


def test_the_real_plate_is_divided_by_its_polynomials_and_says_so(shared_data: Path, tmp_path: Path) -> None:
    convert(tmp_path, shared_data / "phenix", illumination="apply")
    store = open_store(tmp_path / "store")
    array = zarr.open_array(store.paths.images("BR00121482"), mode="r")
    said: dict[str, Any] = dict(array.attrs)["illumination"]  # type: ignore[assignment]
    assert said["applied"] is True
    for channel in range(6):
        raw = tifffile.imread(shared_data / "phenix" / "images" / f"r01c01f01p01-ch{channel + 1}sk1fk1fl1.tiff")
        light = np.ones(raw.shape)
        if channel < 5:  # the brightfield's is Identity
            one = said["profiles"][channel]["profile"]["Background"]["Profile"]
            x, y = ((np.arange(1080) - at) * scale for at, scale in zip(one["Origin"], one["Scale"], strict=True))
            light = sum(
                c * y[:, None] ** k * x[None, :] ** (degree - k)
                for degree, row in enumerate(one["Coefficients"])
                for k, c in enumerate(row)
            )
        expected = np.where(raw == 65535, raw, np.minimum(raw / light, 65535))
        assert np.abs(np.asarray(array[0, channel]) - expected).max() < 0.51
    assert not verify(store, silent()).damage


def test_with_a_look_up_table_the_light_is_divided_by_first(dimmed: Plate, tmp_path: Path) -> None:
    written = write_layout(dimmed, tmp_path / "raw", "gallery")
    pixels = {}
    for dtype in ("source", "uint8"):
        convert(tmp_path / dtype, written, illumination="apply", dtype=dtype)
        paths = open_store(tmp_path / dtype / "store").paths
        (key,) = paths.converted_plates()
        pixels[dtype] = np.asarray(zarr.open_array(paths.images(key), mode="r")[:])
    lookup = read_lookup(paths, key)
    assert lookup is not None and max(lookup.high) < 1.2 * 4000  # without the vignette's half more in the middle
    for channel, table in enumerate(lookup.tables()):
        assert np.array_equal(table[pixels["source"][:, channel]], pixels["uint8"][:, channel])


def test_a_layout_that_says_nothing_is_refused_in_one_line(dimmed: Plate, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its layout says nothing of uneven light; --illumination estimate, or keep"):
        convert(tmp_path, dimmed.root, illumination="apply")


def test_an_estimate_of_a_black_plate_divides_by_no_next_to_nothing() -> None:
    dark = np.zeros((160, 160), np.uint16)
    dark[:20, :20] = 5000
    for pixels in (dark, np.zeros((160, 160), np.uint16)):
        flat = profile(json.dumps(estimate([reduced(pixels)] * 3)), 160, 160)
        assert flat is not None and flat.min() >= 0.3 and flat.max() <= 1 / 0.3 + 1e-6


def test_an_estimate_leaves_moving_cells_out() -> None:
    light = vignette(64, 64) / vignette(64, 64).mean()
    fields = []
    for seed in range(16):
        cells = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64)), 2) > 0.25
        fields.append(reduced(((500 + 2000 * cells) * light).astype(np.uint16)))
    grid = np.array(estimate(fields)["values"])
    assert np.abs(grid / light - 1).max() < 0.08
