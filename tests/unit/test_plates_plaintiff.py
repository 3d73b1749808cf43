"""Headers of the plainest TIFFs are read without tifffile, and say what tifffile says: also damaged ones."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from phenomhpc.plates import Plane, UnreadableImage, raw_pixels
from phenomhpc.plates.images import _pixels_by_tifffile
from phenomhpc.plates.plaintiff import plain_pixels

PIXELS = np.arange(35 * 48, dtype=np.uint16).reshape(35, 48)


def a_tiff(pixels: Any = PIXELS, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **{"metadata": None, **options})
    return buffer.getvalue()


PLAIN: dict[str, bytes] = {
    "plain": a_tiff(),
    "bytes": a_tiff(PIXELS.astype(np.uint8)),
    "strips": a_tiff(rowsperstrip=4),
    "two strips of few bytes": a_tiff(PIXELS[:2, :16].astype(np.uint8), rowsperstrip=1),
    "described": a_tiff(description="<MetaData>" + "x" * 6000, datetime="2024:04:22 09:57:39", software="MetaSeries"),
    "resolution": a_tiff(resolution=(1e4, 1e4), resolutionunit="CENTIMETER"),
    "white is zero": a_tiff(photometric="miniswhite"),
    "a shape in JSON": a_tiff(metadata={"axes": "YX"}),
    "orientation": a_tiff(extratags=[(274, 3, 1, 1, True), (340, 3, 1, 0, True), (341, 3, 1, 65535, True)]),
}
OTHER: dict[str, bytes] = {
    "big-endian": a_tiff(byteorder=">"),
    "BigTIFF": a_tiff(bigtiff=True),
    "deflate": a_tiff(compression="zlib"),
    "predictor": a_tiff(compression="zlib", predictor=True),
    "tiles": a_tiff(tile=(16, 16)),
    "floats": a_tiff(PIXELS.astype(np.float32)),
    "signed": a_tiff(PIXELS.astype(np.int16)),
    "colours": a_tiff(np.zeros((35, 48, 3), np.uint8), photometric="rgb"),
    "two images": a_tiff(np.stack([PIXELS, PIXELS])),
    "private": a_tiff(extratags=[(65200, 3, 1, 7, True)]),
    "no TIFF": b"II*\x01" + a_tiff()[4:],
    "header alone": b"II*\x00\x08\x00\x00\x00",
    "short": b"II*\x00\x08",
}


def by_tifffile(data: bytes) -> Any:
    """What tifffile says, or in which words it is refused."""
    try:
        return _pixels_by_tifffile(memoryview(data), None)
    except UnreadableImage as error:
        return str(error)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_headers_are_read_as_tifffile_reads_them(name: str) -> None:
    found = plain_pixels(memoryview(PLAIN[name]))
    assert found is not None and found == by_tifffile(PLAIN[name])
    pixels = np.frombuffer(PLAIN[name], found.dtype, found.shape[0] * found.shape[1], found.offset)
    assert np.array_equal(pixels.reshape(found.shape), tifffile.imread(io.BytesIO(PLAIN[name])))


@pytest.mark.parametrize("name", OTHER)
def test_other_kinds_are_left_to_tifffile(name: str) -> None:
    assert plain_pixels(memoryview(OTHER[name])) is None


@pytest.mark.parametrize(
    "words", ["ImageJ=1.53t\nimages=2\nslices=2\n", "state.configPath = 1", "SI.LINE_FORMAT_VERSION = 1", "ISS Vista"]
)
def test_what_tifffile_knows_by_its_words_is_read_alike(words: str) -> None:
    for options in ({"description": words}, {"software": words}):
        data = a_tiff(**options)
        found = plain_pixels(memoryview(data))
        assert found is None or found == by_tifffile(data)


@pytest.mark.parametrize("name", PLAIN)
def test_a_damaged_header_is_never_read_in_another_way(name: str) -> None:
    """What is found is what tifffile finds; where it refuses a file, it is asked."""
    rng, whole, read = np.random.default_rng(1), PLAIN[name], 0
    (directory,) = struct.unpack("<I", whole[4:8])
    (entries,) = struct.unpack("<H", whole[directory : directory + 2])
    end = directory + 2 + 12 * entries + 4
    for number in range(600):
        data = bytearray(whole)
        for _ in range(1 + number % 2):
            place = int(rng.integers(0, 8)) if rng.random() < 0.1 else int(rng.integers(directory, end))
            data[place] = int(rng.choice([0, 1, 2, 3, 4, 8, 16, 255, data[place] ^ 1 << int(rng.integers(8))]))
        if number % 10 == 9:
            del data[int(rng.integers(8, len(data))) :]
        found = plain_pixels(memoryview(data))
        read += found is not None
        assert found is None or found == by_tifffile(bytes(data))
    assert read > 30  # texts, times and values that nobody needs may be any


def test_a_plane_of_a_page_is_that_page(tmp_path: Path) -> None:
    data = memoryview(PLAIN["plain"])
    assert raw_pixels(Plane(tmp_path / "a.tif", (0,)), data) == plain_pixels(data)
    with pytest.raises(UnreadableImage, match="no page 1"):
        raw_pixels(Plane(tmp_path / "a.tif", (1,)), data)


def test_more_pixels_than_any_camera_has_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phenomhpc.plates.images.MAX_PIXELS", PIXELS.size - 1)
    with pytest.raises(UnreadableImage, match="claims 35x48 pixels"):
        raw_pixels(Plane(tmp_path / "a.tif"), memoryview(PLAIN["plain"]))
