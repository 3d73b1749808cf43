"""PLATE.shardindex: all shard indices of a plate in one mmap-able file, so that a crop costs no extra read.

magic 8 | num_shards, fields_per_shard, chunks_per_field, reserved: u64 each | index u64 (shard, field, chunk, 2) | crc32c u32
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.runs import commit
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.shards import Geometry, read_shard_index

MAGIC = b"PHSIDX01"
_HEADER = struct.Struct("<8s4Q")
ABSENT = np.uint64(2**64 - 1)


def build_shard_index(paths: StorePaths, plate: str, geometry: Geometry) -> bytes:
    """The file's bytes from the shards themselves; an absent shard has all ones.  Raises ValueError for a damaged one."""
    shape = (geometry.num_shards, geometry.fields_per_shard, geometry.chunks_per_field, 2)
    index = np.full(shape, ABSENT, dtype="<u8")
    for shard in range(geometry.num_shards):
        path = paths.shard(plate, shard)
        if path.is_file():
            index[shard] = read_shard_index(path, geometry)
    head = _HEADER.pack(MAGIC, geometry.num_shards, geometry.fields_per_shard, geometry.chunks_per_field, 0)
    body = head + index.tobytes()
    return body + struct.pack("<I", crc32c(body))


def write_shard_index(paths: StorePaths, plate: str, geometry: Geometry) -> None:
    """Commit PLATE.shardindex, unless it is there with the same bytes."""
    data, path = build_shard_index(paths, plate, geometry), paths.shard_index(plate)
    if not path.is_file() or path.read_bytes() != data:
        commit(path, data)


def open_shard_index(path: Path) -> NDArray[np.uint64]:
    """The index, mapped: u64 (shard, field in shard, chunk in field, 2) of offset and nbytes.

    Raises ValueError naming the file when its length or magic is wrong.  The checksum is verify's business: reading all
    of it here would cost what mapping saves.
    """
    size = path.stat().st_size
    if size < _HEADER.size:
        raise ValueError(f"{path}: {size} bytes are no shard index; store seal writes it anew")
    with path.open("rb") as file:
        magic, shards, fields, chunks, _ = _HEADER.unpack(file.read(_HEADER.size))
    if magic != MAGIC or size != _HEADER.size + shards * fields * chunks * 16 + 4:
        raise ValueError(f"{path}: is no whole shard index; store seal writes it anew")
    mapped = np.memmap(path, dtype="<u8", mode="r", offset=_HEADER.size, shape=(shards, fields, chunks, 2))
    # A plain array over the same mapping: memmap's own indexing is several times slower.
    return np.asarray(mapped)
