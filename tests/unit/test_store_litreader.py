"""Uneven light taken off as crops are read: the pixels that conversion would have stored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.jobs.here import run_here
from phenomhpc.jobs.pretrain import plan
from phenomhpc.models.checkpoint import newest_committed, read_meta
from phenomhpc.plates import find_plates, read_plate
from phenomhpc.plates.illumination import estimate, open_profile, profile
from phenomhpc.plates.synthetic import SyntheticSpec, write_plates
from phenomhpc.plates.synthetic.layouts import vignette, write_layout
from phenomhpc.progress import silent
from phenomhpc.store import Snapshot, Store, open_store
from phenomhpc.store.litreader import open_pixels
from phenomhpc.store.lookup import read_lookup
from phenomhpc.store.verify import verify
from tests.unit.test_plates_illumination import phenix
from tests.unit.test_plates_layouts import convert
from tests.unit.test_store_rechunk import copy
from tests.unit.train_store import settings

SIDE = 160


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gallery plate of smooth cells under a vignette; its functions lie in files of their own."""
    folder = tmp_path_factory.mktemp("raw")
    spec = SyntheticSpec(
        experiments=1, plates_per_experiment=1, plate_rows=2, plate_columns=3, field_px=SIDE, num_genes=2, num_unexpressed=0,
        dtype="uint16", image_format="tif",
    )  # fmt: skip
    write_plates(folder, spec, silent(), workers=1)
    light = vignette(SIDE, SIDE) / vignette(SIDE, SIDE).mean()
    for number, path in enumerate(sorted((folder / "SYN-01" / "Plate1").glob("*.tif"))):
        rng = np.random.default_rng(number)
        cells = np.clip(gaussian_filter(rng.normal(size=(SIDE, SIDE)), 4) * 20_000, 0, 5000)
        tifffile.imwrite(path, ((1000 + cells) * light).round().astype(np.uint16), compression="lzw")
    return write_layout(read_plate(find_plates([str(folder / "SYN-01" / "Plate1")])[0]), folder / "gallery", "gallery")


def stored(store: Store) -> np.ndarray:  # type: ignore[type-arg]
    (key,) = store.paths.converted_plates()
    return np.asarray(zarr.open_array(store.paths.images(key), mode="r")[:])


def crops_of(snapshot: Snapshot, px: int = 48) -> np.ndarray:  # type: ignore[type-arg]
    """(fields, crops, C, px, px): four crops of each field, some across its edges' chunks, one flipped."""
    corners = ((0, 0), (SIDE - px, SIDE - px), (17, 90), (100, 3))
    out = np.zeros((snapshot.num_fields, len(corners), 6, px, px), snapshot.dtype)
    with open_pixels(snapshot, "apply") as reader:
        for field_no in range(snapshot.num_fields):
            for number, (y, x) in enumerate(corners):
                reader.read(field_no, y, x, out[field_no, number][..., :: (-1 if number == 3 else 1)])
    return out


def cut(pixels: np.ndarray, px: int = 48) -> np.ndarray:  # type: ignore[type-arg]
    corners = ((0, 0), (SIDE - px, SIDE - px), (17, 90), (100, 3))
    found = np.stack([pixels[:, :, y : y + px, x : x + px] for y, x in corners], axis=1)
    found[:, 3] = found[:, 3][..., ::-1]
    return found


def test_kept_light_divides_as_conversion_would_have_and_outlives_the_raw_plate(raw: Path, tmp_path: Path) -> None:
    mine = tmp_path / "gallery"
    shutil.copytree(raw.parents[3], mine)
    plate = mine / raw.relative_to(raw.parents[3])
    for how in ("keep", "apply"):
        convert(tmp_path / how, plate, illumination=how)
    kept, applied = (open_store(tmp_path / how / "store") for how in ("keep", "apply"))
    expected = cut(stored(applied)).astype(int)
    shutil.rmtree(mine)
    found = crops_of(Snapshot.open(kept)).astype(int)
    assert np.abs(found - expected).max() <= 1 and np.mean(found == expected) > 0.9999
    assert np.abs(cut(stored(kept)).astype(int) - expected).max() > 500
    copy(kept.paths.root, tmp_path / "copy", codec={"cname": "zstd"})  # a copy takes the functions along
    assert np.array_equal(crops_of(Snapshot.open(open_store(tmp_path / "copy"))), found)
    assert np.array_equal(crops_of(Snapshot.open(applied)), expected)  # is not divided twice
    (function,) = {path.name for path in kept.paths.light(kept.paths.converted_plates()[0]).iterdir()}
    with (kept.paths.light(kept.paths.converted_plates()[0]) / function).open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    assert [entry.reason for entry in verify(kept, silent(), sources=False).damage] == [
        "is not what was sealed (while a conversion goes on: seal, and verify again)"
    ]


def test_eight_bits_are_divided_on_the_cameras_scale(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path / "uint8", raw, dtype="uint8")
    convert(tmp_path / "applied", raw, illumination="apply")
    store = open_store(tmp_path / "uint8" / "store")
    lookup = read_lookup(store.paths, store.paths.converted_plates()[0])
    assert lookup is not None
    divided = stored(open_store(tmp_path / "applied" / "store"))
    expected = np.stack([table[divided[:, channel]] for channel, table in enumerate(lookup.tables())], axis=1)

    inside = (cut(stored(store)) > 0) & (cut(stored(store)) < 255)  # what was clipped at 8 bits is lost
    found = crops_of(Snapshot.open(store)).astype(int)
    assert np.abs(found - cut(expected).astype(int))[inside].max() <= 2 and inside.mean() > 0.9


@pytest.mark.parametrize(
    "text",
    [
        phenix(),
        json.dumps({"kind": "grid", **estimate([np.random.default_rng(0).uniform(1, 2, (9, 7)).astype(np.float32)])}),
    ],
)
@given(data=st.data())
def test_a_window_is_a_part_of_the_whole(text: str, data: st.DataObject) -> None:
    y, x = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 29))
    height, width = data.draw(st.integers(1, 20 - y)), data.draw(st.integers(1, 30 - x))
    whole, opened = profile(text, 20, 30), open_profile(text, 20, 30)
    assert whole is not None and opened is not None
    part = whole[y : y + height, x : x + width]
    assert np.allclose(opened.window(y, x, height, width), part, rtol=1e-6, atol=0)


def test_a_store_that_knows_nothing_of_its_light_is_refused_before_anything_starts(raw: Path, tmp_path: Path) -> None:
    spec = SyntheticSpec(
        experiments=1,
        plates_per_experiment=1,
        plate_rows=2,
        plate_columns=2,
        field_px=64,
        num_genes=2,
        num_unexpressed=0,
    )
    write_plates(tmp_path / "raw", spec, silent(), workers=1)
    convert(tmp_path, tmp_path / "raw" / "SYN-01" / "Plate1")
    config = settings(tmp_path / "store", tmp_path / "runs", data__illumination="apply")
    with pytest.raises(
        UsageError, match="plate SYN-01__Plate1: nothing is known of its uneven light; illumination=keep"
    ):
        plan(config, None)  # type: ignore[arg-type]


def test_a_function_that_is_gone_stops_with_one_line(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    store = open_store(tmp_path / "store")
    shutil.rmtree(store.paths.light(store.paths.converted_plates()[0]))
    with pytest.raises(WorkError, match=r"plate .*: its uneven light .*npy cannot be read .*; illumination=keep"):
        crops_of(Snapshot.open(store))


def test_training_divides_and_its_checkpoint_says_so(raw: Path, tmp_path: Path) -> None:
    convert(tmp_path, raw)
    losses = {}
    for how in ("keep", "apply"):
        config = settings(tmp_path / "store", tmp_path / "runs", data__illumination=how, optim__steps=2)
        paths, _ = run_here(config, command=["pretrain"], progress=silent(), fresh=True)
        folder = newest_committed(paths.checkpoints, print)
        assert folder is not None and read_meta(folder).illumination == how
        losses[how] = read_meta(folder).weights
    assert losses["keep"] != losses["apply"]
