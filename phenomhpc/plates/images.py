"""Decoding one plane from the bytes of its file: TIFF, PNG, JPEG 2000; grey, 8 or 16 bits unsigned."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from phenomhpc.plates.plaintiff import TYPE_BYTES, RawPixels, plain_pixels
from phenomhpc.plates.types import Plane, UnreadableImage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8] | NDArray[np.uint16]

# tifffile logs every oddity of a file; what matters becomes an UnreadableImage.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_PNG = b"\x89PNG\r\n\x1a\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
_JP2 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", _CODESTREAM)
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_PNG_GREY = 0
_TIFF_NONE, _TIFF_LZW, _TIFF_ZLIB = 1, 5, (8, 32946)
_TIFF_REDUCED = 1
# No microscope's camera has more; a header that says so is damaged or hostile, and allocating would be the harm.
MAX_PIXELS = 2**26
# LZW packs at most 3838 bytes into a code of 12 bits, zlib 1032 into one: more than that is claimed, not there.
_MAX_RATIO = 4096
HEADER_BYTES = 65536
_DTYPES = ("uint8", "uint16")


def read_plane(data: bytes, name: str, out: Pixels | None = None, page: int | None = None) -> Pixels:
    """The plane (H, W), uint8 or uint16 in native byte order, of a file's bytes; what they are tells the format.

    out: where the pixels are put, if it has the plane's shape and dtype; another plane is a new array, as without it.
    page: which one of a TIFF of several, from 0; None: the only one.

    Raises UnreadableImage with a short reason for anything that is not one whole grey plane: also where a decoder would
    fill what is missing with zeros.  Damage inside the pixels is found where the format has checksums (PNG, zlib TIFF).
    """
    if not data:
        raise UnreadableImage("empty file")
    with _decoding():
        plane: Pixels = _decode(data, out, page)
    _refuse_unless_grey(plane.shape, str(plane.dtype))
    return plane


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Whatever decoders raise, dozens of kinds, becomes an UnreadableImage."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _refuse_unless_grey(shape: tuple[int, ...], dtype: str) -> None:
    if len(shape) != 2:
        raise UnreadableImage(f"has shape {shape}, no single grey plane")
    if 0 in shape:
        raise UnreadableImage(f"has no pixels ({shape[0]}x{shape[1]})")
    if dtype not in _DTYPES:
        raise UnreadableImage(f"has dtype {dtype}, neither uint8 nor uint16")


def _refuse_huge(height: int, width: int) -> None:
    if not 0 <= height * width <= MAX_PIXELS:
        raise UnreadableImage(f"claims {height}x{width} pixels")


def _decode(data: bytes, out: Pixels | None, page: int | None) -> Any:
    import imagecodecs

    if data.startswith(_TIFF):
        return _decode_tiff(data, out, page)
    if page:
        raise UnreadableImage(f"has no page {page}; it holds one image")
    if data.startswith(_PNG):
        _refuse_damaged_png(data)
        header = _png_header(data)
        _refuse_huge(*header[:2])
        return imagecodecs.png_decode(data, out=_fitting(out, *header))
    if data.startswith(_JP2):
        header = _jp2_header(data)
        _refuse_huge(*header[:2])
        if data.startswith(_CODESTREAM) and not data.endswith(b"\xff\xd9"):
            raise UnreadableImage("truncated JPEG 2000")
        return imagecodecs.jpeg2k_decode(data, out=_fitting(out, *header))
    raise UnreadableImage("neither TIFF, PNG nor JPEG 2000")


def _fitting(out: Pixels | None, height: int, width: int, dtype: str) -> Pixels | None:
    """`out` where a plane of this kind fits into it, and decoders can write into it as it lies."""
    if out is None or out.shape != (height, width) or str(out.dtype) != dtype or not out.flags.c_contiguous:
        return None
    return out


def _refuse_damaged_png(data: bytes) -> None:
    """Walk the chunks: each whole and with its checksum, the end marker last.

    libpng returns what it has of a cut file, and passes over some wrong checksums with a warning.
    """
    at = len(_PNG)
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        end = at + 12 + size
        if end > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            raise UnreadableImage("damaged PNG (a checksum is wrong)")
        if data[at + 4 : at + 8] == b"IEND":
            return
        at = end
    raise UnreadableImage("truncated PNG")


def _png_header(data: bytes) -> tuple[int, int, str]:
    """Height, width and dtype from IHDR; 1, 2 and 4 bits are decoded to 8."""
    if len(data) < 26:
        raise UnreadableImage("truncated PNG")
    if data[25] != _PNG_GREY:
        raise UnreadableImage("is a colour PNG, no single grey plane")
    dtype = "uint16" if data[24] == 16 else "uint8"
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big"), dtype


def _jp2_header(data: bytes) -> tuple[int, int, str]:
    """Height, width and dtype from the codestream's SIZ marker (ISO/IEC 15444-1, A.5.1)."""
    start = data.find(_CODESTREAM, 0, HEADER_BYTES)
    if start < 0 or len(data) < start + 43:
        raise UnreadableImage("truncated JPEG 2000")
    width, height, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    components = int.from_bytes(data[start + 40 : start + 42], "big")
    if components != 1:
        raise UnreadableImage(f"has {components} components, no single grey plane")
    signed, bits = data[start + 42] >> 7, (data[start + 42] & 0x7F) + 1
    dtype = f"{'int' if signed else 'uint'}{8 if bits <= 8 else 16 if bits <= 16 else 32}"
    return height - top, width - left, dtype


def _grey_page(tiff: Any, number: int | None) -> Any:
    """The page of an open TIFF with this number; without one its only page (thumbnails aside)."""
    if not tiff.pages:
        raise UnreadableImage("TIFF without an image")
    try:
        page = tiff.pages[number or 0]
    except IndexError:
        raise UnreadableImage(f"has no page {number}; it holds {len(tiff.pages)}") from None
    sizes = (page.imagelength, page.imagewidth, page.tilelength, page.tilewidth, page.tiledepth)
    if not all(type(size) is int for size in sizes):
        raise UnreadableImage("TIFF header with more than one size")
    _refuse_huge(page.imagelength, page.imagewidth)
    _refuse_unless_grey(page.shape, str(page.dtype))
    if number is not None:
        return page
    try:
        second = tiff.pages[1]
    except IndexError:
        return page
    if not int(second.subfiletype) & _TIFF_REDUCED:
        raise UnreadableImage("TIFF of several images; one plane per file is read")
    return page


def _refuse_unfounded(page: Any, num_bytes: int) -> None:
    """Refuse sizes that the file cannot hold, before anything is allocated for them."""
    if not page.dataoffsets:
        raise UnreadableImage("TIFF without pixels")
    height, width = page.imagelength, page.imagewidth
    if page.is_tiled:
        if not (page.tilelength > 0 and page.tilewidth > 0 and page.tiledepth == 1):
            raise UnreadableImage("TIFF with senseless tiles")
        height, width = -(-height // page.tilelength) * page.tilelength, -(-width // page.tilewidth) * page.tilewidth
        _refuse_huge(height, width)
    if height * width * page.dtype.itemsize > _MAX_RATIO * num_bytes:
        raise UnreadableImage(f"claims {height}x{width} pixels in a file of {num_bytes} bytes")


def _refuse_cut_header(tiff: Any, page: Any, data: bytes | memoryview) -> None:
    """Refuse a TIFF whose header points past its end: a copy that stopped in what lies behind the pixels is no whole file.

    tifffile passes over such entries.  An entry is tag, type, count, offset (TIFF 6.0, 2; BigTIFF has wider counts).
    """
    order: Literal["big", "little"] = "big" if tiff.byteorder == ">" else "little"
    counts, word = (8, 8) if tiff.is_bigtiff else (2, 4)
    at = page.offset + counts
    for _ in range(int.from_bytes(data[page.offset : at], order)):
        entry = data[at : at + 4 + 2 * word]
        kind, count, offset = (int.from_bytes(entry[i:j], order) for i, j in ((2, 4), (4, 4 + word), (4 + word, None)))
        size = TYPE_BYTES.get(kind, 0) * count
        if len(entry) < 4 + 2 * word or (size > word and offset + size > len(data)):
            raise UnreadableImage("truncated TIFF")
        at += 4 + 2 * word


def _whole_page(tiff: Any, data: bytes | memoryview, number: int | None) -> Any:
    """The page of an open TIFF with this number, all of whose pixels `data` holds, compressed as we can read it."""
    page = _grey_page(tiff, number)
    _refuse_cut_header(tiff, page, data)
    _refuse_unfounded(page, len(data))
    # tifffile fills missing strips with zeros: a plane must not lose pixels silently.
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size == 0 or offset + size > len(data):
            raise UnreadableImage("truncated TIFF")
    if page.compression not in (_TIFF_NONE, _TIFF_LZW, *_TIFF_ZLIB):
        raise UnreadableImage(f"has TIFF compression {int(page.compression)}; none, LZW and zlib are read")
    return page


def _decode_tiff(data: bytes, out: Pixels | None, number: int | None) -> Any:
    import imagecodecs
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        page = _whole_page(tiff, data, number)
        if page.compression == _TIFF_LZW:
            # libtiff decodes LZW 2.4 times as fast, and damaged data crash imagecodecs' own decoder (2026.3.6), which
            # tifffile uses; of zlib, libtiff would skip the checksum.
            plane = imagecodecs.tiff_decode(
                data, index=number or 0, out=_fitting(out, page.imagelength, page.imagewidth, str(page.dtype))
            )
            if plane.shape != page.shape or plane.dtype != page.dtype:
                raise UnreadableImage("has a TIFF header that can be read in two ways")
            return plane
        native = tiff.byteorder == "<" or page.dtype.itemsize == 1
        return page.asarray(
            maxworkers=1, out=_fitting(out, page.imagelength, page.imagewidth, str(page.dtype)) if native else None
        )


def raw_pixels(plane: Plane, data: memoryview) -> RawPixels | None:
    """Where the pixels of a plane lie in the bytes of its file, if that is an uncompressed TIFF in one piece; None: it is not.

    Raises UnreadableImage for a TIFF that decode_plane() would refuse.
    """
    if bytes(data[:4]) not in _TIFF:
        return None
    number = _page(plane)
    found = None if number else plain_pixels(data)
    if found is not None and found.shape[0] * found.shape[1] <= MAX_PIXELS:
        return found
    return _pixels_by_tifffile(data, number)


def _pixels_by_tifffile(data: memoryview, number: int | None) -> RawPixels | None:
    import tifffile

    with _decoding(), tifffile.TiffFile(cast(BinaryIO, _Memory(data))) as tiff:
        page = _whole_page(tiff, data, number)
        native = tiff.byteorder == "<" or page.dtype.itemsize == 1
        offset, num_bytes = page.dataoffsets[0], page.imagelength * page.imagewidth * page.dtype.itemsize
        plain = native and page.predictor == page.fillorder == 1 and page.is_contiguous and page.nbytes == num_bytes
        if not plain or offset + num_bytes > len(data):
            return None
        return RawPixels(offset=offset, shape=(page.imagelength, page.imagewidth), dtype=page.dtype)


class _Memory(io.RawIOBase):
    """Bytes as a file that reads them where they lie; BytesIO would copy all of them first."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._at = data, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if at < 0:
            raise ValueError("before the file's begin")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._data) if size is None or size < 0 else self._at + size
        found = bytes(self._data[self._at : end])
        self._at += len(found)
        return found


def is_array(plane: Plane) -> bool:
    """Does the plane lie in a Zarr array, which is a folder?"""
    return plane.index is not None and plane.path.is_dir()


def plane_bytes(plane: Plane) -> bytes:
    """The bytes that hold a plane, as they are hashed: its file, or of an array its metadata and the plane's chunks.

    Raises OSError when they cannot be read, UnreadableImage for an array whose chunks cannot be found in it.
    """
    if is_array(plane):
        from phenomhpc.plates import zarrarray

        return zarrarray.encoded(plane.path, plane.index or ())
    return plane.path.read_bytes()


def decode_plane(plane: Plane, data: bytes, out: Pixels | None = None) -> Pixels:
    """The pixels (H, W) of a plane, uint8 or uint16, from what plane_bytes() gave; in `out` where they fit.

    Raises UnreadableImage.
    """
    if is_array(plane):
        from phenomhpc.plates import zarrarray

        return zarrarray.decoded(data, plane.index or (), out)
    return read_plane(data, plane.path.name, out, _page(plane))


def plane_stat(plane: Plane) -> tuple[int, int]:
    """Bytes and mtime_ns of a plane's file; of an array, bytes of the plane's files and a number that stands for their times.

    Raises OSError where it is not there.
    """
    if is_array(plane):
        from phenomhpc.plates import zarrarray

        try:
            return zarrarray.stat(plane.path, plane.index or ())
        except UnreadableImage:
            return -1, plane.path.stat().st_mtime_ns
    status = plane.path.stat()
    return status.st_size, status.st_mtime_ns


# Of an array's path: row, column, image, array.
_ARRAY_PARTS = 4


def plane_name(plane: Plane, root: Path | None = None) -> str:
    """How a plane is named in tables, relative to its plate's root, and (without one) in messages.

    A plane of an array has its index behind it: `A/1/0/0@1,0`.
    """
    path, array = plane.path, is_array(plane)
    if root is None:
        name = "/".join(path.parts[-_ARRAY_PARTS:]) if array else path.name
    else:
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    return f"{name}@{','.join(map(str, plane.index or ()))}" if array else name


def named_plane(name: str, root: Path) -> Plane:
    """The plane that plane_name() named, where it is an array's; else the plane that is the file, or that a page of it is."""
    path, at, index = name.rpartition("@")
    numbers = [number for number in index.split(",") if number]
    plain = all(number.isascii() and number.isdigit() for number in numbers)
    if at and plain and not (root / name).is_file() and (root / path).is_dir():
        return Plane(root / path, tuple(map(int, numbers)))
    return Plane(root / name)


def _page(plane: Plane) -> int | None:
    """The page of a plane's file.  Raises UnreadableImage for an index that no file has."""
    if plane.index is None:
        return None
    if len(plane.index) != 1 or plane.index[0] < 0:
        raise UnreadableImage(f"has no plane {plane.index}; a file's pages are counted from 0")
    return plane.index[0]


def plane_shape(plane: Plane) -> tuple[int, int, str]:
    """Height, width and dtype (uint8 or uint16) of a plane, from its header.

    Raises UnreadableImage, or OSError when the file cannot be read.
    """
    if is_array(plane):
        from phenomhpc.plates import zarrarray

        return zarrarray.shape(plane.path, plane.index or ())
    path, page = plane.path, _page(plane)
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if not head:
        raise UnreadableImage("empty file")
    if head.startswith(_TIFF):
        return _tiff_shape(path, page)
    if page:
        raise UnreadableImage(f"has no page {page}; it holds one image")
    if head.startswith(_PNG):
        height, width, dtype = _png_header(head)
    elif head.startswith(_JP2):
        height, width, dtype = _jp2_header(head)
    else:
        raise UnreadableImage("neither TIFF, PNG nor JPEG 2000")
    _refuse_huge(height, width)
    _refuse_unless_grey((height, width), dtype)
    return height, width, dtype


def _tiff_shape(path: Path, number: int | None) -> tuple[int, int, str]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = _grey_page(tiff, number)
            return int(page.imagelength), int(page.imagewidth), str(page.dtype)
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"has no readable TIFF header ({_reason(error)})") from error
