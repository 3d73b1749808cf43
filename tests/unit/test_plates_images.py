"""Planes: every format comes back, and nothing damaged or foreign passes for a plane."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from phenomhpc.plates import Plane, UnreadableImage, decode_plane, plane_bytes, plane_shape, read_plane
from phenomhpc.plates.synthetic.writing import encode


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("image_format", ["png", "jp2", "tif"])
def test_every_format_comes_back_and_a_cut_file_never_passes_for_a_whole_one(
    dtype: str, image_format: str, tmp_path: Path
) -> None:
    noise = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (61, 83)).astype(dtype)
    data = encode(noise, image_format)
    assert np.array_equal(read_plane(data, "x"), noise)
    path = tmp_path / f"x.{image_format}"
    path.write_bytes(data)
    assert plane_shape(Plane(path)) == (61, 83, dtype)
    for cut in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
        try:
            plane = read_plane(data[:cut], "x")
        except UnreadableImage as error:
            assert "\n" not in str(error)
        else:
            assert np.array_equal(plane, noise), f"cut after {cut} of {len(data)} bytes gave wrong pixels"


def test_colour_images_and_floats_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="colour"):
        read_plane(bytes(imagecodecs.png_encode(np.zeros((5, 6, 3), np.uint8))), "x")
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.zeros((5, 6), np.float32))
    with pytest.raises(UnreadableImage, match="float32"):
        read_plane(buffer.getvalue(), "x")


def tiff(plane: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, plane, metadata=None, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


SMOOTH = (np.arange(61)[:, None] * 311 + np.arange(83)[None, :] * 7).astype(np.uint16)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize(
    ("compression", "predictor"), [(None, False), ("lzw", False), ("lzw", True), ("zlib", False), ("zlib", True)]
)
@pytest.mark.parametrize("shape", [{"rowsperstrip": 8}, {"rowsperstrip": 61}, {"tile": (16, 32)}])
def test_tiffs_of_every_kind_come_back(
    byteorder: str, bigtiff: bool, compression: str | None, predictor: bool, shape: dict[str, object], tmp_path: Path
) -> None:
    for plane in (SMOOTH, (SMOOTH >> 8).astype(np.uint8)):
        data = tiff(plane, byteorder=byteorder, bigtiff=bigtiff, compression=compression, predictor=predictor, **shape)
        out = np.empty_like(plane)
        for read in (read_plane(data, "x"), read_plane(data, "x", out)):
            assert np.array_equal(read, plane) and read.dtype == plane.dtype and read.dtype.isnative
        (tmp_path / "x").write_bytes(data)
        assert plane_shape(Plane(tmp_path / "x")) == (*plane.shape, str(plane.dtype))


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_a_plane_of_a_tiff_of_several_is_the_page_of_its_index(compression: str | None, tmp_path: Path) -> None:
    pages = [SMOOTH, SMOOTH[:40, :50] ^ 5, (SMOOTH >> 8).astype(np.uint8)]
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for page in pages:
            writer.write(page, metadata=None, compression=compression)
    path = tmp_path / "stack.tif"
    path.write_bytes(buffer.getvalue())
    for number, page in enumerate(pages):
        plane = Plane(path, (number,))
        assert np.array_equal(decode_plane(plane, plane_bytes(plane)), page)
        assert plane_shape(plane) == (*page.shape, str(page.dtype))
    for index in ((3,), (-1,), (0, 0)):
        plane = Plane(path, index)
        for look in (lambda plane: decode_plane(plane, plane_bytes(plane)), plane_shape):
            with pytest.raises(UnreadableImage, match="has no p"):
                look(plane)
    (tmp_path / "one.png").write_bytes(encode(SMOOTH, "png"))
    with pytest.raises(UnreadableImage, match="holds one image"):
        plane_shape(Plane(tmp_path / "one.png", (1,)))


def test_a_strip_that_ends_early_is_refused() -> None:
    data = bytearray(tiff(SMOOTH, compression="lzw", rowsperstrip=8))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages[0].dataoffsets[2]
    short = imagecodecs.lzw_encode(SMOOTH[:4].tobytes())
    data[offset : offset + len(short)] = short
    with pytest.raises(UnreadableImage, match="Not enough data"):
        read_plane(bytes(data), "x")


def test_a_strip_without_bytes_is_refused() -> None:
    data = tiff(SMOOTH, rowsperstrip=8, compression="zlib")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset = file.pages.first.tags["StripByteCounts"].valueoffset
    cut = bytearray(data)
    cut[offset : offset + 4] = bytes(4)
    with pytest.raises(UnreadableImage, match="truncated TIFF"):
        read_plane(bytes(cut), "x")


def test_a_tiff_of_several_planes_is_refused_and_one_with_a_thumbnail_read() -> None:
    with pytest.raises(UnreadableImage, match="several images"):
        read_plane(tiff(np.stack([SMOOTH, SMOOTH])), "x")
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(SMOOTH, metadata=None)
        writer.write(SMOOTH[::4, ::4], subfiletype=1, metadata=None)
    assert np.array_equal(read_plane(buffer.getvalue(), "x"), SMOOTH)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, rows: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(rows * (width + 1)))) + chunk(b"IEND", b"")
    )


def test_a_png_with_fewer_rows_than_it_says_is_refused() -> None:
    assert read_plane(png(20, 30, 20), "x").shape == (20, 30)
    with pytest.raises(UnreadableImage, match="Not enough image data"):
        read_plane(png(20, 30, 11), "x")


def test_every_flipped_bit_of_a_png_is_found() -> None:
    data = encode(SMOOTH[:9, :7], "png")
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << (position % 8)
        with pytest.raises(UnreadableImage):
            read_plane(bytes(damaged), "x")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty file"),
        (b"not an image", "neither TIFF, PNG nor JPEG 2000"),
        (png(100_000, 100_000, 1), "claims 100000x100000 pixels"),
        (tiff(SMOOTH.astype(np.int16)), "int16"),
        (tiff(np.stack([SMOOTH] * 3, -1), photometric="rgb"), "no single grey plane"),
        (tiff(SMOOTH, compression="packbits"), "compression 32773; none, LZW and zlib are read"),
        (bytes(imagecodecs.jpeg2k_encode(np.stack([SMOOTH] * 3, -1), codecformat="jp2")), "no single grey plane"),
    ],
)
def test_what_is_no_plane_is_refused_by_both_readers(data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match=said):
        read_plane(data, "x")
    path = tmp_path / "x"
    path.write_bytes(data)
    if "compression" not in said:  # seen by decoding only
        with pytest.raises(UnreadableImage, match=said):
            plane_shape(Plane(path))


def test_a_small_file_that_claims_a_large_plane_is_refused_before_memory_is_taken() -> None:
    data = bytearray(tiff(SMOOTH, compression="lzw", rowsperstrip=61))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        offsets = [tags[name].valueoffset for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    for offset in offsets:
        data[offset : offset + 2] = (8000).to_bytes(2, "little")
    with pytest.raises(UnreadableImage, match="claims 8000x8000 pixels in a file of"):
        read_plane(bytes(data), "x")


def test_a_file_without_a_header_has_no_shape(tmp_path: Path) -> None:
    for name, data in {
        "empty": b"",
        "text": b"hello",
        "cut.tif": tiff(SMOOTH)[:20],
        "cut.png": png(4, 4, 4)[:20],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UnreadableImage):
            plane_shape(Plane(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        plane_shape(Plane(tmp_path / "absent"))
