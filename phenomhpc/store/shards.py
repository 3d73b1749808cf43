"""Sharded Zarr v3, written and addressed by our own code; zarr and tensorstore read it as plain Zarr.

A plate's array `images` (field, channel, y, x) has shards of (S, C, H', W') with H' and W' rounded up to whole chunks, and
inner chunks of (1, C, p, p) at the edges padded with zeros:

    | chunk 0 | chunk 1 | ... | index: (offset u64, nbytes u64) per chunk, field-major | crc32c of the index |

A shard is written as a stream: encode a field, append its chunks, at the end the index.  A missing shard is "not converted".
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import imagecodecs
import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.runs import commit
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.spec import DatasetSpec, packing

INDEX_ENTRY_BYTES = 16
# A blosc chunk: version, format, flags, typesize, nbytes u32, blocksize u32, cbytes u32, then data.
_BLOSC_HEADER = struct.Struct("<4B3I")
# blosc stores what it cannot compress, behind its header.
BLOSC_OVERHEAD = 16
CRC_BYTES = 4

Pixels = NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one plate's array is cut.  Sizes in pixels and in chunks."""

    num_fields: int
    num_channels: int
    height: int
    width: int
    chunk_px: int
    fields_per_shard: int

    @property
    def chunk_rows(self) -> int:
        return -(-self.height // self.chunk_px)

    @property
    def chunk_columns(self) -> int:
        return -(-self.width // self.chunk_px)

    @property
    def chunks_per_field(self) -> int:
        return self.chunk_rows * self.chunk_columns

    @property
    def chunks_per_shard(self) -> int:
        return self.fields_per_shard * self.chunks_per_field

    @property
    def index_bytes(self) -> int:
        return self.chunks_per_shard * INDEX_ENTRY_BYTES + CRC_BYTES

    @property
    def num_shards(self) -> int:
        return -(-self.num_fields // self.fields_per_shard)

    def fields_of(self, shard: int) -> range:
        """Field indices that a shard owns."""
        first = shard * self.fields_per_shard
        return range(first, min(first + self.fields_per_shard, self.num_fields))


class Compressor(Protocol):
    """numcodecs' interface."""

    def encode(self, buf: Any) -> bytes: ...

    def decode(self, buf: Any, out: Any = None) -> Any: ...


def compressor_of(spec: DatasetSpec) -> Compressor | None:
    """The codec of inner chunks; None for raw ones.  Sets blosc to use no threads of its own: workers are processes."""
    if spec.codec is None:
        return None
    from numcodecs import blosc

    blosc.use_threads = False
    cname, level, _ = spec.codec
    shuffle, _ = packing(spec)
    modes = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}
    compressor: Compressor = blosc.Blosc(cname=cname, clevel=level, shuffle=modes[shuffle], blocksize=0)
    return compressor


def encoder_of(spec: DatasetSpec) -> Callable[[Pixels], bytes]:
    """From a chunk (C, p, p) to its bytes in a shard."""
    compressor = compressor_of(spec)
    if compressor is None:
        return lambda chunk: chunk.tobytes()
    element = f"<u{packing(spec)[1]}"
    return lambda chunk: compressor.encode(chunk.reshape(-1).view(element))


def blosc_header(block: Any, num_bytes: int) -> tuple[int, int, int, int]:
    """Version, flags, size of an element and bytes of a block, of a chunk that should hold `num_bytes`.

    Raises ValueError where it says that it holds more or less, or is longer or shorter than it is.
    """
    # blosc trusts its header: a shorter chunk would leave the last one's pixels, a longer one be read past its end.
    if len(block) >= BLOSC_OVERHEAD:
        version, _, flags, typesize, held, block_bytes, encoded = _BLOSC_HEADER.unpack_from(block)
        if (held, encoded) == (num_bytes, len(block)):
            return version, flags, typesize, block_bytes
    raise ValueError("its header does not fit its length")


def decode_blosc(block: Any, out: Any) -> None:
    """Decode a blosc buffer into the whole of `out` (u8), without threads; the lock of Python is let go.

    imagecodecs' blosc decodes what numcodecs' does, a twentieth (chunks of 128) to a fifth (of 64) faster.  Raises
    RuntimeError or ValueError, with words that follow the name of a chunk, for what cannot be decoded.
    """
    blosc_header(block, out.nbytes)
    imagecodecs.blosc_decode(block, numthreads=1, out=out)


def array_metadata(spec: DatasetSpec, geometry: Geometry, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """zarr.json of a plate's array; attributes: beside the channels."""
    edge = geometry.chunk_px
    shard_shape = [
        geometry.fields_per_shard,
        geometry.num_channels,
        geometry.chunk_rows * edge,
        geometry.chunk_columns * edge,
    ]
    return sharded_array(
        spec,
        shape=[geometry.num_fields, geometry.num_channels, geometry.height, geometry.width],
        shard=shard_shape,
        chunk=[1, geometry.num_channels, edge, edge],
        names=["field", "channel", "y", "x"],
        attributes={"channels": list(spec.channels), **attributes},
    )


def sharded_array(
    spec: DatasetSpec,
    *,
    shape: Sequence[int],
    shard: Sequence[int],
    chunk: Sequence[int],
    names: Sequence[str],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """zarr.json of an array of the store's dtype, its inner chunks in the store's codec.

    Source: the Zarr v3 core specification and the sharding-indexed codec's.
    """
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    inner: list[dict[str, Any]] = [little]
    if spec.codec is not None:
        cname, level, _ = spec.codec
        shuffle, typesize = packing(spec)
        configuration = {"typesize": typesize, "cname": cname, "clevel": level, "shuffle": shuffle, "blocksize": 0}
        inner.append({"name": "blosc", "configuration": configuration})
    sharding = {
        "chunk_shape": list(chunk),
        "codecs": inner,
        "index_codecs": [little, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shard)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": dict(attributes),
        "dimension_names": list(names),
        "storage_transformers": [],
    }


def write_array_metadata(
    paths: StorePaths, plate: str, spec: DatasetSpec, geometry: Geometry, attributes: Mapping[str, Any] | None = None
) -> None:
    """Commit zarr.json of a plate's group and array, unless they are there with the same bytes."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"plate": plate}}
    wanted = {paths.plate(plate): group, paths.images(plate): array_metadata(spec, geometry, attributes or {})}
    for folder, content in wanted.items():
        text, path = json.dumps(content, indent=2) + "\n", folder / "zarr.json"
        if not path.is_file() or path.read_text() != text:
            commit(path, text)


def read_geometry(paths: StorePaths, plate: str) -> Geometry:
    """The geometry of a converted plate, from its zarr.json."""
    return _geometry(read_array_metadata(paths, plate))


def read_array_metadata(paths: StorePaths, plate: str) -> dict[str, Any]:
    """zarr.json of a plate's array."""
    raw: dict[str, Any] = json.loads((paths.images(plate) / "zarr.json").read_bytes())
    return raw


def own_geometry(raw: Mapping[str, Any], spec: DatasetSpec) -> Geometry:
    """The geometry of an array that is laid out as we write it; how hard blosc tried is no matter.

    Raises ValueError naming what of zarr.json is otherwise: somebody has written the array anew.
    """
    try:
        geometry = _geometry(raw)
    except (KeyError, TypeError, IndexError, ValueError):
        raise ValueError("its array is not in shards as we write them") from None
    ours = array_metadata(spec, geometry, {})
    for name in ("zarr_format", "data_type", "chunk_grid", "chunk_key_encoding", "codecs"):
        if _without_effort(raw.get(name)) != _without_effort(ours[name]):
            raise ValueError(f"{name} of its zarr.json is not as we write it")
    return geometry


def _without_effort(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.get("name") == "blosc":
            return "blosc"
        return {key: _without_effort(inner) for key, inner in value.items()}
    return [_without_effort(inner) for inner in value] if isinstance(value, list) else value


def _geometry(raw: Mapping[str, Any]) -> Geometry:
    num_fields, num_channels, height, width = raw["shape"]
    sharding = raw["codecs"][0]["configuration"]
    return Geometry(
        num_fields=num_fields,
        num_channels=num_channels,
        height=height,
        width=width,
        chunk_px=sharding["chunk_shape"][3],
        fields_per_shard=raw["chunk_grid"]["configuration"]["chunk_shape"][0],
    )


def read_shard_index(path: Path, geometry: Geometry) -> NDArray[np.uint64]:
    """The index of a shard file: u64 (fields per shard, chunks per field, 2) of offset and nbytes.

    Raises ValueError naming the shard when its checksum or its length is wrong.
    """
    with path.open("rb") as file:
        return index_of(file, path, geometry)


def index_of(file: BinaryIO, path: Path, geometry: Geometry) -> NDArray[np.uint64]:
    """The same of a shard that is open; path: for messages."""
    size = file.seek(0, 2)
    if size < geometry.index_bytes:
        raise ValueError(f"shard {path}: {size} bytes, its index alone has {geometry.index_bytes}")
    file.seek(size - geometry.index_bytes)
    raw = file.read(geometry.index_bytes)
    if struct.unpack("<I", raw[-CRC_BYTES:])[0] != crc32c(raw[:-CRC_BYTES]):
        raise ValueError(f"shard {path}: the index does not match its checksum")
    index = np.frombuffer(raw[:-CRC_BYTES], "<u8").reshape(geometry.fields_per_shard, geometry.chunks_per_field, 2)
    ends = index[..., 0] + index[..., 1]  # absent: all ones twice, which wraps to all ones minus one
    present = index[..., 0] != np.uint64(2**64 - 1)
    if (ends[present] > size - geometry.index_bytes).any():
        raise ValueError(f"shard {path}: the index points past the file's end")
    return index
