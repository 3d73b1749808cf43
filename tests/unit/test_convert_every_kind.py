"""Every layout, kind of image and size of plate, and every real sample: converted, read by others, and verified."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import tifffile
import zarr
from numpy.typing import NDArray

from phenomhpc.errors import SET_ASIDE
from phenomhpc.plates import Channel, Field, Plane, Plate, Well, find_plates, read_plate
from phenomhpc.plates.synthetic.layouts import WRITERS, tiff, write_layout
from phenomhpc.plates.synthetic.writing import encode, image_name
from phenomhpc.progress import silent
from phenomhpc.store import open_store
from phenomhpc.store.verify import verify
from tests.unit.raw_plates import image, phenix
from tests.unit.test_plates_layouts import convert, pixels, stored

# The last ones make the plate that large, where a layout does not say its size.
WELLS = {(8, 12): ("A01", "H12"), (16, 24): ("A01", "B23", "P24"), (32, 48): ("C03", "Z25", "AA26", "AF48")}
TIFFS: tuple[dict[str, object], ...] = (
    {},
    {"compression": "lzw"},
    {"compression": "lzw", "predictor": True},
    {"compression": "zlib"},
    {"compression": "zlib", "predictor": True, "rowsperstrip": 7},
)


def noise(seed: int, height: int, width: int, dtype: str) -> NDArray[np.generic]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, (height, width), dtype, endpoint=True)


def declared(folder: Path, size: tuple[int, int], dtype: str) -> Plate:
    """A sparse plate of noise: two sites a well, three channels."""
    folder.mkdir()
    fields = []
    for index, (name, site) in enumerate((name, site) for name in WELLS[size] for site in (1, 2)):
        planes = []
        for channel in range(3):
            path = folder / f"{index}-{channel}.png"
            path.write_bytes(encode(noise(10 * index + channel, 40, 56, dtype), "png"))
            planes.append((Plane(path),))
        fields.append(Field(index=index, well=Well.parse(name), site=site, planes=tuple(planes)))
    channels = tuple(Channel(index=at, name=name) for at, name in enumerate(("DNA", "ER", "AGP")))
    return Plate(
        key="EXP__7", experiment="EXP", plate="7", rows=size[0], columns=size[1], channels=channels, fields=tuple(fields),
        root=folder, layout="noise",
    )  # fmt: skip


def is_verified(folder: Path, sources: int) -> bool:
    verdict = verify(open_store(folder / "store"), silent())
    return (verdict.damage, verdict.sources, verdict.absent_sources) == ((), sources, 0)


@pytest.mark.parametrize(("size", "dtype"), [((8, 12), "uint8"), ((16, 24), "uint16"), ((32, 48), "uint8")])
@pytest.mark.parametrize("layout", WRITERS)
def test_plates_of_every_size_in_every_layout(layout: str, size: tuple[int, int], dtype: str, tmp_path: Path) -> None:
    plate = declared(tmp_path / "noise", size, dtype)
    raw = write_layout(plate, tmp_path / "raw", layout)
    read = read_plate(find_plates([str(raw)])[0])
    assert (read.rows, read.columns) == size
    assert [(field.well, field.site) for field in read.fields] == [(field.well, field.site) for field in plate.fields]
    assert convert(tmp_path, raw, verify=True).exit_code == 0
    assert stored(tmp_path).dtype == dtype and np.array_equal(stored(tmp_path), pixels(plate))
    assert is_verified(tmp_path, 3 * len(plate.fields))


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_kind_of_image_lies_beside_the_others_in_one_plate(dtype: str, tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "EXP" / "Plate1"
    folder.mkdir(parents=True)
    expected = np.array([[noise(2 * kind + channel, 61, 83, dtype) for channel in (0, 1)] for kind in range(7)])
    for kind, planes in enumerate(expected):
        for channel, plane in enumerate(planes, 1):
            ending = ("png", "jp2", *["tif"] * len(TIFFS))[kind]
            if ending == "tif":
                buffer = io.BytesIO()
                tifffile.imwrite(buffer, plane, metadata=None, **TIFFS[kind - 2])  # type: ignore[arg-type]
                data = buffer.getvalue()
            else:
                data = encode(plane, ending)
            (folder / image_name(Well(row=1, column=kind + 1), 1, channel, ending)).write_bytes(data)
    assert convert(tmp_path, folder).exit_code == 0
    assert np.array_equal(stored(tmp_path), expected) and is_verified(tmp_path, 14)


@pytest.mark.parametrize(
    ("height", "width", "dtype"),
    [
        (256, 256, "uint8"),
        (1080, 1080, "uint16"),
        (2000, 2000, "uint16"),
        (2160, 2160, "uint16"),
        (2160, 1080, "uint8"),
    ],
)
def test_zarr_and_tensorstore_read_planes_of_the_sizes_that_cameras_have(
    height: int, width: int, dtype: str, tmp_path: Path
) -> None:
    folder = tmp_path / "raw" / "EXP" / "Plate1"
    folder.mkdir(parents=True)
    expected = np.array([[noise(channel, height, width, dtype) for channel in (1, 2)]])
    for channel, plane in enumerate(expected[0], 1):
        tifffile.imwrite(folder / f"A01_s1_w{channel}.tif", plane)
    convert(tmp_path, folder)
    images = open_store(tmp_path / "store").paths.images("EXP__Plate1")
    other = tensorstore.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": str(images)}}).result()
    assert np.array_equal(np.asarray(zarr.open_array(images, mode="r")[:]), expected)
    assert np.array_equal(other.read().result(), expected)


@pytest.mark.parametrize(("sample", "planes"), [("phenix", 6), ("imagexpress", 12), ("cellvoyager", 96)])
def test_every_real_sample_converts_whole_and_verifies(
    sample: str, planes: int, shared_data: Path, tmp_path: Path
) -> None:
    assert convert(tmp_path, shared_data / sample).exit_code == 0
    assert is_verified(tmp_path, planes)


def test_every_kind_of_bad_field_is_set_aside_with_its_reason_and_no_other(tmp_path: Path) -> None:
    """One plate with each; the last field is sound, and what lies outside the plate is neither read nor told."""
    secret = tmp_path / "secret.tiff"
    secret.write_bytes(tiff(np.full((40, 56), 77, np.uint16)))
    good = tiff(noise(1, 40, 56, "uint16"))  # type: ignore[arg-type]
    claims = bytearray(tiff(np.zeros((40, 56), np.uint16)))
    with tifffile.TiffFile(io.BytesIO(claims)) as file:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            at = file.pages.first.tags[name].valueoffset
            claims[at : at + 2] = (60_000).to_bytes(2, "little")
    bad: dict[str, tuple[bytes | None, str, str]] = {
        "cut": (good[: len(good) // 2], "unreadable", "truncated TIFF"),
        "empty": (b"", "unreadable", "empty file"),
        "text": (b"no image", "unreadable", "neither TIFF, PNG nor JPEG 2000"),
        "colour": (tiff(np.zeros((40, 56, 3), np.uint8)), "unreadable", "no single grey plane"),  # type: ignore[arg-type]
        "float": (tiff(np.zeros((40, 56), np.float32)), "unreadable", "float32"),  # type: ignore[arg-type]
        "huge": (bytes(claims), "unreadable", "claims 60000x60000 pixels"),
        "small": (tiff(np.zeros((20, 56), np.uint16)), "bad_shape", "20x56 pixels, the plate has 40x56"),
        "dtype": (tiff(np.zeros((40, 56), np.uint8)), "bad_shape", "uint8, the store has uint16"),
        "gone": (None, "missing_plane", "gone.tiff does not exist"),
        "unlisted": (None, "missing_plane", "c2: no plane"),
        "twice": (good, "duplicate", "are the same plane"),
        "../../secret": (None, "hostile", "leaves the plate's folder"),
        str(tmp_path / "secret"): (None, "hostile", "leaves the plate's folder"),
    }
    names = [*bad, "sound"]
    entries = ""
    folder = phenix(tmp_path / "raw" / "P1" / "Images", "@")
    for site, name in enumerate(names, 1):
        data = bad.get(name, (good, "", ""))[0]
        (folder / f"first-{site}.tiff").write_bytes(good)
        if data is not None:
            (folder / f"{name}.tiff").write_bytes(data)
        entries += image(1, f"first-{site}.tiff", field=site)
        entries += (image(2, f"{name}.tiff", field=site) if name != "unlisted" else "") * (1 + (name == "twice"))
    index = folder / "Index.idx.xml"
    index.write_text(index.read_text().replace("@", entries))
    summary = convert(tmp_path, tmp_path / "raw", max_set_aside=1)
    assert summary.exit_code == SET_ASIDE
    with (tmp_path / "store" / "set_aside.csv").open(newline="") as table:
        rows = {int(row["site"]): row for row in csv.DictReader(table)}
    assert sorted(rows) == list(range(1, len(names)))
    told = dict(summary.set_aside)
    for site, (_, status, reason) in enumerate(bad.values(), 1):
        assert rows[site]["status"] == status and reason in rows[site]["reason"], rows[site]
        assert told[f"P1 A01 site {site}"] == rows[site]["reason"]
    pixels = stored(tmp_path)
    assert not pixels[:-1].any()
    assert np.array_equal(pixels[-1], np.repeat(noise(1, 40, 56, "uint16")[None], 2, axis=0))
    assert not verify(open_store(tmp_path / "store"), silent()).damage
