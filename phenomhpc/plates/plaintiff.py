"""Where the pixels of the plainest kind of TIFF lie: grey, uncompressed, one image in one piece, as cameras write it.

tifffile knows every kind there is, and takes 0.2 to 0.5 ms for a header, as long as two megabytes of pixels take to be copied.
What is found here is what it would find; whatever is otherwise, or odd in any way, is left to it.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_LITTLE = b"II*\x00"
# Tag, type, count, value or where it lies (TIFF 6.0, 2).
_ENTRY = struct.Struct("<HHII")
_SHORT, _LONG = 3, 4
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WIDTH, _HEIGHT, _BITS, _OFFSETS, _COUNTS = 256, 257, 258, 273, 279
# What these must be where they are given: compression, photometric interpretation (white or black is zero), fill order, samples,
# predictor, sample format.
_ALLOWED = {259: (1,), 262: (0, 1), 266: (1,), 277: (1,), 317: (1,), 339: (1,)}
# Kind of image, rows of a strip, planes: any number, of which nothing follows here.
_ANY = (254, 278, 284)
# What says nothing of where pixels lie: names, descriptions, orientation, least and greatest values, resolution, position,
# software, time, author, computer.
_PASSED = (269, 270, 271, 272, 274, 280, 281, 282, 283, 285, 286, 287, 296, 305, 306, 315, 316, 340, 341)


@dataclass(frozen=True, kw_only=True)
class RawPixels:
    """Where in a file pixels lie as they are: row by row, in native byte order."""

    offset: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]


def plain_pixels(data: memoryview) -> RawPixels | None:
    """Where the pixels lie in the bytes of a file; None: tifffile has to look."""
    if sys.byteorder != "little" or len(data) < 8 or bytes(data[:4]) != _LITTLE:
        return None
    at = int.from_bytes(data[4:8], "little")
    entries = at + 2 + _ENTRY.size * int.from_bytes(data[at : at + 2], "little")
    if at < 8 or entries + 4 > len(data) or any(data[entries : entries + 4]):  # a second image
        return None
    found: dict[int, tuple[int, ...]] = {}
    last = 0
    for code, kind, count, value in _ENTRY.iter_unpack(data[at + 2 : entries]):
        size = TYPE_BYTES.get(kind, 0) * count
        if code <= last or not size or (size > 4 and (value < 8 or value + size > len(data))):
            return None
        last = code
        if code in _PASSED:
            continue
        values = _values(data, kind, count, value)
        if values is None or (len(values) > 1 and code not in (_OFFSETS, _COUNTS)):
            return None
        if code in (_WIDTH, _HEIGHT, _BITS, _OFFSETS, _COUNTS):
            found[code] = values
        elif code not in _ANY and values[0] not in _ALLOWED.get(code, ()):
            return None
    return _placed(found, len(data)) if len(found) == 5 else None


def _values(data: memoryview, kind: int, count: int, value: int) -> tuple[int, ...] | None:
    """The numbers of an entry; None: they are of no kind that sizes are given in."""
    if kind not in (_SHORT, _LONG):
        return None
    if count == 1:
        return (value & 0xFFFF if kind == _SHORT else value,)
    letter, size = "H" if kind == _SHORT else "I", TYPE_BYTES[kind] * count
    stored = value.to_bytes(4, "little")[:size] if size <= 4 else data[value : value + size]
    return struct.unpack(f"<{count}{letter}", stored)


def _placed(found: dict[int, tuple[int, ...]], num_bytes: int) -> RawPixels | None:
    """Strips one behind the other that hold the pixels and nothing else."""
    import numpy as np

    ((width,), (height,), (bits,)), offsets, counts = (
        (found[code] for code in (_WIDTH, _HEIGHT, _BITS)),
        found[_OFFSETS],
        found[_COUNTS],
    )
    if bits not in (8, 16) or len(offsets) != len(counts) or not all(counts):
        return None
    at = offsets[0]
    for offset, count in zip(offsets, counts, strict=True):
        if offset != at:
            return None
        at += count
    if at - offsets[0] != width * height * bits // 8 or at > num_bytes:
        return None
    return RawPixels(offset=offsets[0], shape=(height, width), dtype=np.dtype(f"u{bits // 8}"))
