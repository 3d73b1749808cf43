"""Stores made of given pixels by the real shard writer and completion records, without raw images: fast and exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.runs import CompletionRecord, commit, committing, make_folder, write_record
from phenomhpc.store import DatasetSpec, Store, create_store
from phenomhpc.store.layout import unit_id
from phenomhpc.store.shards import Geometry, write_array_metadata
from phenomhpc.store.shardwriter import ShardWriter

LZ4_BITSHUFFLE = ("lz4", 5, "bitshuffle")


def pixels_of(seed: int, fields: int, channels: int, height: int, width: int, dtype: str = "uint8") -> NDArray[Any]:
    """(F, C, H, W): a smooth gradient under noise, different everywhere, using the dtype's range."""
    rng = np.random.default_rng(seed)
    top = 200 if dtype == "uint8" else 30_000
    y, x = np.mgrid[:height, :width]
    smooth = (y / height + x / width) / 2 * top
    noise = rng.poisson(top / 8, (fields, channels, height, width))
    return np.clip(smooth + noise, 0, np.iinfo(dtype).max).astype(dtype)


def add_plate(
    store: Store,
    plate: str,
    pixels: NDArray[Any],
    *,
    shards: Sequence[int] | None = None,
    set_aside: Sequence[int] = (),
    metadata: Mapping[str, Mapping[str, str]] | None = None,
) -> Geometry:
    """Convert `pixels` (F, C, H, W) as a plate of one row of wells A01, A02, ...; `shards` restricts to those."""
    spec, paths = store.spec, store.paths
    num_fields, num_channels, height, width = pixels.shape
    geometry = Geometry(
        num_fields=num_fields,
        num_channels=num_channels,
        height=height,
        width=width,
        chunk_px=spec.chunk_px,
        fields_per_shard=spec.fields_per_shard,
    )
    write_array_metadata(paths, plate, spec, geometry)
    commit(paths.facts(plate), _facts(plate, metadata or {}))
    for shard in range(geometry.num_shards) if shards is None else shards:
        path = paths.shard(plate, shard)
        make_folder(path.parent)
        rows = []
        with committing(path) as file:
            writer = ShardWriter(cast(BinaryIO, file), spec, geometry)
            for field in geometry.fields_of(shard):
                usable = field not in set_aside
                writer.append(pixels[field] if usable else None)
                rows.append(_row(field, pixels[field], usable))
            writer.finish()
        size = path.stat().st_size
        write_record(
            paths.record(plate, shard),
            CompletionRecord(
                unit_id=unit_id(plate, shard),
                digest="0" * 64,
                attempt=1,
                task=0,
                token="",
                started="",
                ended="",
                outputs=((str(path.relative_to(paths.root)), size, 0),),
                rows=tuple(rows),
            ),
        )
    return geometry


def _facts(plate: str, metadata: Mapping[str, Mapping[str, str]]) -> bytes:
    import json

    return json.dumps({"experiment": "EXP-1", "metadata": metadata, "plate": plate, "root": "/"}).encode()


def _row(field: int, pixels: NDArray[Any], usable: bool) -> dict[str, Any]:
    return {
        "field_index": field,
        "well": f"A{field + 1:02d}",
        "row": 1,
        "column": field + 1,
        "site": 1,
        "timepoint": 1,
        "z": "max",
        "status": "ok" if usable else "unreadable",
        "reason": None if usable else "w1: torn",
        "sources": [{"channel": "w1", "path": f"{field}.png", "sha256": "ab" * 32, "bytes": 1}],
        "crc32c": crc32c(pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()) if usable else None,
    }


def new_store(
    root: Path,
    *,
    channels: int = 2,
    dtype: str = "uint8",
    chunk_px: int = 16,
    fields_per_shard: int = 2,
    codec: tuple[str, int, str] | None = LZ4_BITSHUFFLE,
) -> Store:
    """An empty store."""
    spec = DatasetSpec(
        channels=tuple(f"channel {number}" for number in range(channels)),
        dtype=dtype,
        chunk_px=chunk_px,
        fields_per_shard=fields_per_shard,
        codec=codec,
    )
    return create_store(root, spec)
