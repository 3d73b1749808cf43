"""How a Zarr array on disk is cut and encoded, v2 or v3, sharded or not, from metadata that come from elsewhere.

What makes no sense, is not read here, or claims sizes that no plate has, is refused before anything is allocated for it.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phenomhpc.plates.images import MAX_PIXELS
from phenomhpc.plates.types import UnreadableImage

V3, V2 = "zarr.json", ".zarray"
# Consolidated metadata of a plate of 1536 wells are some ten MiB; an array's own are a page.
MAX_JSON_BYTES = 256 * 2**20
# A chunk may hold a whole stack; more than this no writer puts into one.
MAX_CHUNK_BYTES = 2**30
_MAX_TILES, _MAX_INDEX = 2**16, 2**22
_MAX_DIM = 2**31
_COMPRESSORS = ("blosc", "zstd", "gzip", "zlib", "lz4")
_DTYPES = {"uint8": 1, "uint16": 2}


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

    chunks: of a file.  leaf: of an encoded chunk; of a file that is no shard the same.  prefix, separator: names of the files.
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
    sharded: bool = False
    index_at_end: bool = True
    index_has_crc: bool = True

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
    return parsed(metadata_of(folder))


def metadata_of(folder: Path) -> bytes:
    """An array's metadata as they lie there.  Raises UnreadableImage, OSError."""
    for name in (V3, V2):
        path = folder / name
        if path.is_file():
            try:
                return read_json(path)[0]
            except ValueError as error:
                raise UnreadableImage(str(error)) from error
    raise FileNotFoundError(errno.ENOENT, f"has neither {V3} nor {V2}", str(folder))


def parsed(data: bytes) -> ArrayLayout:
    """The layout that an array's metadata describe.  Raises UnreadableImage."""
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
            "sharded": True,
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
