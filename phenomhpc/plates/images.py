"""Decoding one plane from the bytes of its file: TIFF, PNG, JPEG 2000; grey, 8 or 16 bits unsigned."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.plates.types import UnreadableImage

Plane = NDArray[np.uint8] | NDArray[np.uint16]

# It logs every oddity of a file; what matters becomes an UnreadableImage.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_PNG = b"\x89PNG\r\n\x1a\n"
_JP2 = (b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_PNG_END = b"IEND\xaeB`\x82"
# No microscope's camera has more; a header that says so is damaged or hostile, and allocating would be the harm.
MAX_PIXELS = 2**28
HEADER_BYTES = 65536


def read_plane(data: bytes, name: str) -> Plane:
    """The plane (H, W), uint8 or uint16, of a file's bytes; `name` only for its extension where the bytes do not tell.

    Raises UnreadableImage with a short reason for anything that is not one whole grey plane.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plane: Plane = _decode(data)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise dozens of kinds; every one of them means the same here
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnreadableImage(f"cannot be decoded ({reason})") from error
    if plane.ndim != 2:
        raise UnreadableImage(f"has shape {plane.shape}, no single grey plane")
    if plane.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage(f"has dtype {plane.dtype}, neither uint8 nor uint16")
    return plane


def _decode(data: bytes) -> Any:
    import imagecodecs

    if data.startswith(_PNG):
        # libpng returns what it has of a cut file; the end marker tells.
        if _PNG_END not in data[-64:]:
            raise UnreadableImage("truncated PNG")
        _refuse_huge(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
        return imagecodecs.png_decode(data)
    if data.startswith(_JP2):
        _refuse_huge(*_jp2_size(data))
        if data.startswith(_JP2[1]) and not data.endswith(b"\xff\xd9"):
            raise UnreadableImage("truncated JPEG 2000")
        return imagecodecs.jpeg2k_decode(data)
    if data.startswith(_TIFF):
        return _decode_tiff(data)
    raise UnreadableImage("neither TIFF, PNG nor JPEG 2000")


def _refuse_huge(*size: int) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise UnreadableImage(f"claims {size[0]}x{size[1]} pixels")


def _jp2_size(data: bytes) -> tuple[int, int]:
    """Height and width from the codestream's SIZ marker."""
    start = data.find(b"\xff\x4f\xff\x51", 0, HEADER_BYTES)
    if start < 0 or len(data) < start + 24:
        raise UnreadableImage("truncated JPEG 2000")
    width, height, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
    return height - top, width - left


def _decode_tiff(data: bytes) -> Any:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        if len(tiff.pages) < 1:
            raise UnreadableImage("TIFF without an image")
        page: Any = tiff.pages[0]
        _refuse_huge(page.imagelength, page.imagewidth)
        # tifffile fills missing strips with zeros: a plane must not lose pixels silently.
        for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            if size == 0 or offset + size > len(data):
                raise UnreadableImage("truncated TIFF")
        return page.asarray()


def plane_shape(path: Path) -> tuple[int, int, str]:
    """Height, width and dtype of a plane's file, from its header where the format allows.

    Raises UnreadableImage, or OSError when the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if head.startswith(_PNG) and len(head) >= 26:
        dtype = "uint16" if head[24] == 16 else "uint8"
        return int.from_bytes(head[20:24], "big"), int.from_bytes(head[16:20], "big"), dtype
    if head.startswith(_TIFF):
        return _tiff_shape(path)
    plane = read_plane(path.read_bytes(), path.name)
    return plane.shape[0], plane.shape[1], str(plane.dtype)


def _tiff_shape(path: Path) -> tuple[int, int, str]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page: Any = tiff.pages[0]
            return int(page.imagelength), int(page.imagewidth), str(page.dtype)
    except Exception as error:
        raise UnreadableImage(f"has no readable TIFF header ({error})") from error
