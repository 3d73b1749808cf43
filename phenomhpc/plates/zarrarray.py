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
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phenomhpc.plates.images import MAX_PIXELS
from phenomhpc.plates.types import UnreadableImage

if TYPE_CHECKING:
    from phenomhpc.plates.images import Pixels

V3, V2 = "zarr.json", ".zarray"
# Consolidated metadata of a plate of 1536 wells are some ten MiB; an array's own are a page.
MAX_JSON_BYTES = 256 * 2**20
# A chunk may hold a whole stack; more than this no writer puts into one.
MAX_CHUNK_BYTES = 2**30
_MAX_TILES, _MAX_INDEX = 2**16, 2**22
_MAX_DIM = 2**31
_COMPRESSORS = ("blosc", "zstd", "gzip", "zlib", "lz4")
_LENGTH = struct.Struct("<Q")
_ABSENT = 2**64 - 1
_DTYPES = {"uint8": 1, "uint16": 2}
# A blosc chunk: version, format, flags, typesize, nbytes u32, blocksize u32, cbytes u32, then data.
_BLOSC_HEADER = struct.Struct("<4xI4xI")


def read_json(path: Path) -> tuple[bytes, dict[str, Any]]:
    """A JSON object and its bytes.  Raises OSError, and ValueError with a short reason for what is none."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path.name} has more than {MAX_JSON_BYTES // 2**20} MiB")
    data = path.read_bytes()
    return data, parse_json(data, path.name)


def parse_json(data: bytes, name: str) -> dict[str, Any]:
    """A JSON object.  Raises ValueError with a short reason."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is no JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no JSON object")
    return value


@dataclass(frozen=True, kw_only=True)
class ArrayLayout:
    """How an array is cut and encoded, as far as it is read here.

    chunks: of a file.  leaf: of an encoded chunk, the same unless sharded.  prefix, separator: names of the files.
    codecs: (name, configuration) of what was applied to a chunk's bytes, in order.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    leaf: tuple[int, ...]
    dtype: str
    big_endian: bool
    order: str
    fill: int
    prefix: str
    separator: str
    codecs: tuple[tuple[str, Mapping[str, Any]], ...]
    index_at_end: bool = True
    index_has_crc: bool = True

    @property
    def sharded(self) -> bool:
        return self.leaf != self.chunks

    @property
    def leaf_bytes(self) -> int:
        """Of a decoded chunk."""
        return math.prod(self.leaf) * _DTYPES[self.dtype]

    @property
    def shard_grid(self) -> tuple[int, ...]:
        """Inner chunks of a shard along each axis."""
        return tuple(outer // inner for outer, inner in zip(self.chunks, self.leaf, strict=True))

    @property
    def tiles(self) -> tuple[int, int]:
        """Encoded chunks of a plane along y and x."""
        height, width = self.shape[-2:]
        return -(-height // self.leaf[-2]), -(-width // self.leaf[-1])

    def file_of(self, chunk: Sequence[int]) -> str:
        return self.prefix + self.separator.join(map(str, chunk))


def read_layout(folder: Path) -> ArrayLayout:
    """The layout of the array that a folder is.  Raises UnreadableImage, OSError where there is none."""
    return _parsed(_metadata(folder))


def _metadata(folder: Path) -> bytes:
    for name in (V3, V2):
        path = folder / name
        if path.is_file():
            try:
                return read_json(path)[0]
            except ValueError as error:
                raise UnreadableImage(str(error)) from error
    raise FileNotFoundError(errno.ENOENT, f"has neither {V3} nor {V2}", str(folder))


def _parsed(data: bytes) -> ArrayLayout:
    try:
        said = parse_json(data, "its metadata")
        layout = _version_3(said) if said.get("zarr_format") == 3 else _version_2(said)
        _refuse_senseless(layout)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UnreadableImage(f"has senseless Zarr metadata ({what[:120]})") from error
    return layout


def _version_3(said: Mapping[str, Any]) -> ArrayLayout:
    """Zarr v3 core specification; the sharding-indexed codec's."""
    if said.get("node_type") != "array":
        raise UnreadableImage("is no Zarr array")
    dtype = said["data_type"]
    if dtype not in _DTYPES:
        raise UnreadableImage(f"has dtype {str(dtype)[:40]}, neither uint8 nor uint16")
    if said["chunk_grid"]["name"] != "regular" or said.get("storage_transformers"):
        raise UnreadableImage("has an irregular chunk grid or storage transformers; those are not read")
    chunks = leaf = _sizes(said["chunk_grid"]["configuration"]["chunk_shape"])
    codecs = [_named(codec) for codec in said["codecs"]]
    index: dict[str, bool] = {}
    if [name for name, _ in codecs] == ["sharding_indexed"]:
        sharding = codecs[0][1]
        leaf = _sizes(sharding["chunk_shape"])
        codecs = [_named(codec) for codec in sharding["codecs"]]
        index_codecs = [_named(codec) for codec in sharding["index_codecs"]]
        names = [name for name, _ in index_codecs]
        if names not in (["bytes"], ["bytes", "crc32c"]) or index_codecs[0][1].get("endian") != "little":
            raise UnreadableImage("has a shard index in another encoding than little-endian bytes with crc32c")
        index = {
            "index_at_end": sharding.get("index_location", "end") == "end",
            "index_has_crc": len(names) == 2,
        }
    if not codecs or codecs[0][0] != "bytes":
        raise _unread(codecs[0][0] if codecs else "none")
    key = said["chunk_key_encoding"]
    plain = key["name"] == "v2"
    return ArrayLayout(
        shape=_sizes(said["shape"]),
        chunks=chunks,
        leaf=leaf,
        dtype=dtype,
        big_endian=codecs[0][1].get("endian") == "big",
        order="C",
        fill=_fill(said.get("fill_value", 0), dtype),
        prefix="" if plain else "c" + _separator(key, "/"),
        separator=_separator(key, "." if plain else "/"),
        codecs=_chain(codecs[1:]),
        **index,
    )


def _version_2(said: Mapping[str, Any]) -> ArrayLayout:
    if said["zarr_format"] != 2:
        raise ValueError(f"zarr_format {str(said['zarr_format'])[:20]}")
    text = str(said["dtype"])
    dtype = {"u1": "uint8", "u2": "uint16"}.get(text[1:])
    if dtype is None:
        raise UnreadableImage(f"has dtype {text[:40]}, neither uint8 nor uint16")
    if said.get("filters"):
        raise _unread("filters")
    compressor = said.get("compressor")
    codecs = [] if compressor is None else [(str(compressor["id"]), compressor)]
    chunks = _sizes(said["chunks"])
    if said["order"] not in ("C", "F"):
        raise ValueError("order")
    return ArrayLayout(
        shape=_sizes(said["shape"]),
        chunks=chunks,
        leaf=chunks,
        dtype=dtype,
        big_endian=text[0] == ">",
        order=said["order"],
        fill=_fill(said.get("fill_value") or 0, dtype),
        prefix="",
        separator=str(said.get("dimension_separator", ".")),
        codecs=_chain(codecs),
    )


def _named(codec: Any) -> tuple[str, Mapping[str, Any]]:
    """A codec is an object with a name, or the name alone."""
    if isinstance(codec, str):
        return codec, {}
    return str(codec["name"]), codec.get("configuration") or {}


def _separator(key: Mapping[str, Any], default: str) -> str:
    return str((key.get("configuration") or {}).get("separator", default))


def _chain(codecs: Sequence[tuple[str, Mapping[str, Any]]]) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    compressors = 0
    for name, _ in codecs:
        compressors += name in _COMPRESSORS
        if name not in (*_COMPRESSORS, "crc32c"):
            raise _unread(name)
    if compressors > 1:
        raise UnreadableImage("is compressed twice; one compressor is read")
    return tuple(codecs)


def _unread(name: str) -> UnreadableImage:
    return UnreadableImage(f"has the codec {name[:40]!r}; bytes, {', '.join(_COMPRESSORS)}, crc32c and shards are read")


def _sizes(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(value) is int and 1 <= value <= _MAX_DIM for value in values):
        raise ValueError(f"sizes {str(values)[:60]}")
    return tuple(values)


def _fill(value: Any, dtype: str) -> int:
    if type(value) is not int or not 0 <= value < 256 ** _DTYPES[dtype]:
        raise ValueError(f"fill value {str(value)[:40]}")
    return value


def _refuse_senseless(layout: ArrayLayout) -> None:
    height, width = layout.shape[-2:]
    if not 2 <= len(layout.shape) == len(layout.chunks) == len(layout.leaf) <= 5:
        raise ValueError(f"{len(layout.shape)} axes, chunks of {len(layout.chunks)}")
    if layout.separator not in (".", "/"):
        raise ValueError("its separator")
    if height * width > MAX_PIXELS:
        raise UnreadableImage(f"claims {height}x{width} pixels")
    if layout.leaf_bytes > MAX_CHUNK_BYTES:
        raise UnreadableImage(f"claims chunks of {layout.leaf_bytes} bytes")
    if any(outer % inner for outer, inner in zip(layout.chunks, layout.leaf, strict=True)):
        raise ValueError("shards that are no whole chunks")
    if math.prod(layout.tiles) > _MAX_TILES or math.prod(layout.shard_grid) > _MAX_INDEX:
        raise UnreadableImage("claims too many chunks")


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
    metadata = _metadata(folder)
    layout = _parsed(metadata)
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
    layout = _parsed(data[_LENGTH.size : at])
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
