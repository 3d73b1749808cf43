"""Quality control: what each measure sees, what it does not depend on, and that it reaches the fields table and the filter."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, maximum_filter

from phenomhpc.crops.where import eligible_rows
from phenomhpc.errors import UsageError
from phenomhpc.plates import qc
from phenomhpc.plates.qc import _count_peaks
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, open_store
from tests.unit.test_plates_layouts import convert

CHANNELS = ("DNA", "ER", "AGP", "RNA", "Mito", "Golgi")


def cells(seed: int, number: int, edge: int = 512, radius: float = 12.0) -> np.ndarray:  # type: ignore[type-arg]
    """Round nuclei that do not touch, on a background, with shot noise; uint16."""
    rng = np.random.default_rng(seed)
    centres: list[tuple[float, float]] = []
    while len(centres) < number:
        y, x = rng.uniform(radius, edge - radius, 2)
        if all((y - b) ** 2 + (x - a) ** 2 > (2.6 * radius) ** 2 for b, a in centres):
            centres.append((y, x))
    ys, xs = np.mgrid[:edge, :edge]
    picture = np.full((edge, edge), 300.0)
    for y, x in centres:
        texture = 1 + 0.3 * np.sin(xs * rng.uniform(0.3, 0.6)) * np.sin(ys * rng.uniform(0.3, 0.6))
        picture += 3000 * texture * (((ys - y) ** 2 + (xs - x) ** 2) < radius**2)
    return rng.poisson(gaussian_filter(picture, 1)).astype(np.uint16)


def test_focus_falls_with_every_blur_and_does_not_depend_on_the_exposure() -> None:
    sharp = cells(1, 40)
    scores = [qc.focus(gaussian_filter(sharp, sigma) if sigma else sharp) for sigma in (0, 1, 2, 4, 8, 16)]
    assert all(left > right for left, right in itertools.pairwise(scores)), scores
    assert scores[0] > 0.3 and scores[-1] < 0.2
    assert qc.focus(sharp // 4) == pytest.approx(scores[0], abs=0.03)
    assert qc.focus(sharp + 2000) == pytest.approx(scores[0], abs=1e-3)


def test_noise_and_emptiness_are_not_in_focus() -> None:
    noise = np.random.default_rng(2).poisson(400, (300, 300)).astype(np.uint16)
    assert qc.focus(noise) == 0 and qc.focus(np.full((300, 300), 7, np.uint8)) == 0
    assert qc.focus(np.zeros((8, 8), np.uint8)) == 0  # smaller than any distance
    assert qc.count_nuclei(noise, None) == 0 and qc.count_nuclei(np.zeros((300, 300), np.uint8), 0.6) == 0


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 4095), ("uint16", 65535)])
def test_saturation_is_the_share_at_the_cameras_ceiling(dtype: str, top: int) -> None:
    plane = np.random.default_rng(3).integers(0, top, (200, 200)).astype(dtype)
    assert qc.saturated(plane) == 0
    plane[:, :20] = top
    assert qc.saturated(plane) == pytest.approx(0.1)
    plane[:, :20] = top - 1
    assert qc.saturated(plane) == 0


def test_background_and_signal_are_levels() -> None:
    plane = np.full((320, 320), 100, np.uint16)
    plane[:, 160:] = 1100
    quality = qc.measure(plane[None], None, None)
    assert (quality.background, quality.signal, quality.nuclei) == ((100.0,), (1000.0,), None)


@pytest.mark.parametrize(
    ("number", "radius", "pixel_um"), [(12, 12.0, 0.6), (60, 12.0, 0.6), (60, 12.0, None), (30, 25.0, 0.3)]
)
def test_nuclei_are_counted(number: int, radius: float, pixel_um: float | None) -> None:
    counted = [qc.count_nuclei(cells(seed, number, 1024, radius), pixel_um) for seed in range(3)]
    assert np.abs(np.array(counted) - number).max() <= max(1, 0.1 * number), counted
    assert qc.count_nuclei((cells(0, number, 1024, radius) // 16).astype(np.uint8), pixel_um) == pytest.approx(
        number, rel=0.1
    )


def test_the_four_nuclei_of_the_real_field_are_counted(shared_data: Path) -> None:
    plane = tifffile.imread(shared_data / "phenix" / "images" / "r01c01f01p01-ch5sk1fk1fl1.tiff")
    assert qc.count_nuclei(plane, 0.598) == 4
    assert qc.dna_channel(["Alexa 647", "HOECHST 33342", "DAPI"]) == 1 and qc.dna_channel(["w1", "ER"]) is None


def test_quality_is_in_the_fields_table_and_the_filter_takes_it(tmp_path: Path) -> None:
    spec = SyntheticSpec(
        experiments=1, plates_per_experiment=1, plate_rows=2, plate_columns=3, field_px=160, num_genes=2, num_unexpressed=0,
        image_format="tif", dtype="uint16",
    )  # fmt: skip
    write_plates(tmp_path / "raw", spec, silent(), workers=1)
    plate = tmp_path / "raw" / "SYN-01" / "Plate1"
    blurred, burnt, cut = (plate / f"{well}_s1_w1.tif" for well in ("A02", "B01", "B03"))
    tifffile.imwrite(blurred, gaussian_filter(tifffile.imread(blurred), 10), compression="lzw")
    bright = tifffile.imread(burnt)
    bright[bright > np.percentile(bright, 97)] = 65535
    tifffile.imwrite(burnt, bright, compression="lzw")
    cut.write_bytes(b"")
    convert(tmp_path, tmp_path / "raw", max_set_aside=0.5)
    snapshot = Snapshot.open(open_store(tmp_path / "store"))
    fields = snapshot.fields()
    assert fields["qc_focus"].list.len().drop_nulls().to_list() == [6] * 5
    assert fields.filter(pl.col("status") != "ok")["qc_focus"].to_list() == [None]
    assert fields["qc_nuclei"].drop_nulls().min() > 0  # type: ignore[operator]

    def wells(text: str) -> list[str]:
        rows = eligible_rows(fields, text, snapshot.channels)
        return fields.filter(pl.col("field_no").is_in(rows.tolist()))["well"].to_list()

    threshold = 0.5 * fields.filter(pl.col("well") == "A01")["qc_focus"].list.first().item()
    assert wells(f"focus['DNA'] > {threshold}") == wells(f"focus[DNA] > {threshold}") == ["A01", "A03", "B01", "B02"]
    assert wells(f"{threshold} < focus[DNA] and saturated < 0.01") == ["A01", "A03", "B02"]
    assert wells("saturated <= 0.01") == ["A01", "A02", "A03", "B02"] and wells("nuclei >= 0") == [
        "A01",
        "A02",
        "A03",
        "B01",
        "B02",
    ]
    for text, said in (
        ("focus[GFP] > 0.2", "no such channel; there are DNA, ER"),
        ("focus > 'x'", "does not fit|cannot be read|types"),
        ("focus", "no condition|types"),
    ):
        with pytest.raises(UsageError, match=said):
            wells(text)


def test_a_store_without_quality_says_so(tmp_path: Path) -> None:
    spec = SyntheticSpec(experiments=1, plate_rows=1, plate_columns=4, field_px=48, num_genes=1, num_unexpressed=0)
    write_plates(tmp_path / "raw", spec, silent(), workers=1)
    convert(tmp_path, tmp_path / "raw", qc=False)
    snapshot = Snapshot.open(open_store(tmp_path / "store"))
    assert snapshot.fields()["qc_focus"].null_count() == snapshot.fields().height
    assert eligible_rows(snapshot.fields(), "focus > 0", snapshot.channels).size == 0
    with pytest.raises(UsageError, match="were converted without it"):
        eligible_rows(snapshot.fields().drop("qc_focus"), "focus > 0", snapshot.channels)
    convert(tmp_path, tmp_path / "raw")  # the other setting measures them
    assert Snapshot.open(open_store(tmp_path / "store")).fields()["qc_focus"].null_count() == 0


@given(
    picture=arrays(np.float32, st.tuples(st.integers(3, 24), st.integers(3, 24)), elements=st.integers(0, 9)),
    threshold=st.floats(0, 9),
    width=st.sampled_from([3, 5, 7]),
)
def test_peaks_are_those_of_a_maximum_filter(picture: NDArray[np.float32], threshold: float, width: int) -> None:
    largest = maximum_filter(picture, width, mode="nearest")
    assert _count_peaks(picture, threshold, width) == np.count_nonzero((picture == largest) & (picture > threshold))
