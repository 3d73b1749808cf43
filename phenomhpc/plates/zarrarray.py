"""One plane of a Zarr array on disk: its chunks as they lie there, and decoded.  Zarr v2 and v3, sharded or not.

What is hashed is what is decoded: encoded() packs the array's metadata and the plane's own chunks, decoded() unpacks them.
Of a shard only the plane's inner chunks are read.  The arrays come from elsewhere: sizes are checked before anything is
allocated for them, also those that a compressed chunk claims.

    u64 length | metadata | for each chunk, row by row: u64 length (all ones: not there, so the fill value) | chunk
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenomhpc.plates.types import UnreadableImage
from phenomhpc.plates.zarrlayout import MAX_CHUNK_BYTES, V2, V3, ArrayLayout, metadata_of, parsed, read_layout

if TYPE_CHECKING:
    from phenomhpc.plates.images import Pixels

_LENGTH = struct.Struct("<Q")
_ABSENT = 2**64 - 1
# A blosc chunk: version, format, flags, typesize, nbytes u32, blocksize u32, cbytes u32, then data.
_BLOSC_HEADER = struct.Struct("<4xI4xI")


# -- what of the array is the plane -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tile:
    """An encoded chunk of a plane: its file, its number inside the shard, its corner."""

    file: str
    number: int
    top: int
    left: int


def _tiles(layout: ArrayLayout, index: Sequence[int]) -> Iterator[_Tile]:
    """Row by row.  Raises UnreadableImage for an index that the array does not have."""
    leading = layout.shape[:-2]
    if len(index) != len(leading) or not all(0 <= at < size for at, size in zip(index, leading, strict=True)):
        raise UnreadableImage(f"has no plane {tuple(index)}; its axes before y and x have {leading}")
    first = [at // size for at, size in zip(index, layout.leaf[:-2], strict=True)]
    grid = layout.shard_grid
    for row, column in itertools.product(*map(range, layout.tiles)):
        leaf = (*first, row, column)
        number = 0
        for at, size in zip(leaf, grid, strict=True):
            number = number * size + at % size
        file = layout.file_of([at // size for at, size in zip(leaf, grid, strict=True)])
        yield _Tile(file, number, row * layout.leaf[-2], column * layout.leaf[-1])


def stat(folder: Path, index: Sequence[int]) -> tuple[int, int]:
    """Bytes of the files that a plane lies in, and a number that changes with the size or time of any of them.

    Raises OSError or UnreadableImage as encoded() does.
    """
    layout = read_layout(folder)
    files = dict.fromkeys(tile.file for tile in _tiles(layout, index))
    digest, num_bytes = hashlib.sha256(), 0
    for name in (*files, V3, V2):
        try:
            status = (folder / name).stat()
        except FileNotFoundError:
            digest.update(b"absent;")
            continue
        num_bytes += status.st_size
        digest.update(f"{status.st_size},{status.st_mtime_ns};".encode())
    return num_bytes, int.from_bytes(digest.digest()[:6], "big")


def shape(folder: Path, index: Sequence[int]) -> tuple[int, int, str]:
    """Height, width and dtype of a plane, from the metadata."""
    layout = read_layout(folder)
    next(_tiles(layout, index))
    return layout.shape[-2], layout.shape[-1], layout.dtype


def encoded(folder: Path, index: Sequence[int]) -> bytes:
    """The array's metadata and the chunks of a plane, as they lie on the disk.

    Raises UnreadableImage where that makes no sense; FileNotFoundError where there is no array or no chunk of the plane: by
    Zarr's rules that is a plane of the fill value, but it is what an incomplete copy leaves.
    """
    metadata = metadata_of(folder)
    layout = parsed(metadata)
    parts = [_LENGTH.pack(len(metadata)), metadata]
    found = False
    indices: dict[str, Any] = {}
    for tile in _tiles(layout, index):
        chunk = _chunk(folder, layout, tile, indices)
        found = found or chunk is not None
        parts += [_LENGTH.pack(_ABSENT)] if chunk is None else [_LENGTH.pack(len(chunk)), chunk]
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no chunk of it is there; is the copy complete?", str(folder))
    return b"".join(parts)


def _chunk(folder: Path, layout: ArrayLayout, tile: _Tile, indices: dict[str, Any]) -> bytes | None:
    """One encoded chunk; None where it is not there.  indices: of the shards looked into before."""
    path = folder / tile.file
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start, length = 0, size
            if layout.sharded:
                if tile.file not in indices:
                    indices[tile.file] = _shard_index(file, size, layout)
                start, length = indices[tile.file][tile.number].tolist()
                if (start, length) == (_ABSENT, _ABSENT):
                    return None
                if start + length > size:
                    raise UnreadableImage(f"has a shard index that points past its end ({tile.file})")
            if length > MAX_CHUNK_BYTES:
                raise UnreadableImage(f"has a chunk of {length} bytes ({tile.file})")
            file.seek(start)
            data = file.read(length)
    except FileNotFoundError:
        return None
    if len(data) != length:
        raise UnreadableImage(f"has a truncated chunk ({tile.file})")
    return data


def _shard_index(file: Any, size: int, layout: ArrayLayout) -> Any:
    """u64 (inner chunks, 2): offset and length."""
    import numpy as np
    from google_crc32c import value as crc32c

    num_bytes = math.prod(layout.shard_grid) * 16
    whole = num_bytes + 4 * layout.index_has_crc
    if size < whole:
        raise UnreadableImage("has a truncated shard")
    file.seek(size - whole if layout.index_at_end else 0)
    data = file.read(whole)
    if layout.index_has_crc and crc32c(data[:num_bytes]) != int.from_bytes(data[num_bytes:], "little"):
        raise UnreadableImage("has a shard index that does not match its checksum")
    return np.frombuffer(data[:num_bytes], "<u8").reshape(-1, 2)


# -- decoding ---------------------------------------------------------------------------------------------------------


def decoded(data: bytes, index: Sequence[int], out: Pixels | None = None) -> Pixels:
    """The plane (H, W) in native byte order from what encoded() gave; in `out` where that has its shape and dtype.

    Raises UnreadableImage.
    """
    import numpy as np

    (length,) = _LENGTH.unpack_from(data)
    at = _LENGTH.size + length
    layout = parsed(data[_LENGTH.size : at])
    height, width = layout.shape[-2:]
    if out is None or out.shape != (height, width) or str(out.dtype) != layout.dtype:
        out = np.empty((height, width), layout.dtype)
    inside = tuple(position % size for position, size in zip(index, layout.leaf[:-2], strict=True))
    for tile in _tiles(layout, index):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        target = out[tile.top : tile.top + layout.leaf[-2], tile.left : tile.left + layout.leaf[-1]]
        if length == _ABSENT:
            target[...] = layout.fill
            continue
        chunk = _decoded_chunk(layout, data[at : at + length])
        at += length
        target[...] = chunk[inside][: target.shape[0], : target.shape[1]]
    return out


def _decoded_chunk(layout: ArrayLayout, data: bytes) -> Any:
    import numpy as np

    try:
        for name, _ in reversed(layout.codecs):
            data = _without_crc(data) if name == "crc32c" else _decompressed(name, data, layout.leaf_bytes)
    except UnreadableImage:
        raise
    except Exception as error:  # each decoder has its own kinds
        raise UnreadableImage(f"has a chunk that cannot be decoded ({str(error).splitlines()[:1]})") from error
    if len(data) != layout.leaf_bytes:
        raise UnreadableImage(f"has a chunk of {len(data)} bytes, {layout.leaf_bytes} are needed")
    dtype = np.dtype(layout.dtype).newbyteorder(">" if layout.big_endian else "<")
    return np.frombuffer(data, dtype).reshape(layout.leaf, order=layout.order)  # type: ignore[call-overload]


def _without_crc(data: bytes) -> bytes:
    from google_crc32c import value as crc32c

    if len(data) < 4 or crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise UnreadableImage("has a chunk that does not match its checksum")
    return data[:-4]


def _decompressed(name: str, data: bytes, num_bytes: int) -> bytes:
    """At most `num_bytes`, whatever the data claim."""
    if name in ("gzip", "zlib"):
        stream = zlib.decompressobj(31 if name == "gzip" else 15)
        raw = stream.decompress(data, num_bytes + 1)
        if not stream.eof:
            raise UnreadableImage("has a truncated chunk")
        return raw
    if name == "zstd":
        import imagecodecs

        # numcodecs does not say how much of its buffer a frame has filled.
        return bytes(imagecodecs.zstd_decode(data, out=num_bytes))
    import numpy as np

    out = np.empty(num_bytes, np.uint8)
    if name == "blosc":
        from numcodecs import blosc

        blosc.use_threads = False
        # blosc trusts its header.
        if len(data) < 16 or _BLOSC_HEADER.unpack_from(data) != (num_bytes, len(data)):
            raise UnreadableImage("has a blosc chunk whose header does not fit its length")
        blosc.decompress(data, out)
        return out.tobytes()
    from numcodecs import lz4

    if len(data) < 4 or int.from_bytes(data[:4], "little") != num_bytes:
        raise UnreadableImage("has an lz4 chunk whose header does not fit its length")
    lz4.decompress(data, out)
    return out.tobytes()
