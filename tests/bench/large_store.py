"""Stores of as many fields as one likes, a few of them real: links to one shard, and an index and a table made of theirs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from phenomhpc.progress import silent
from phenomhpc.store import Store
from phenomhpc.store.seal import seal
from phenomhpc.store.shardindex import build_shard_index
from phenomhpc.store.shards import Geometry
from phenomhpc.store.snapshot import TABLE_DTYPE
from tests.unit.crop_store import add_plate, new_store, pixels_of

SHARD_FIELDS, PLATE_FIELDS, CHANNELS, CHUNK = 4, 1536, 6, 128
# Distinct plates; more of them would be links to these.  More than a reader keeps open.
REAL_PLATES = 130


def large_store(root: Path, fields: int, side: int = 1024) -> Store:
    """A sealed store of `fields` fields (whole plates of 1,536) of `side` x `side` x 6 uint8; every crop of it can be read."""
    store = new_store(root, channels=CHANNELS, chunk_px=CHUNK, fields_per_shard=SHARD_FIELDS)
    add_plate(store, "P00000", pixels_of(0, SHARD_FIELDS, CHANNELS, side, side))
    snapshot = seal(store, silent())
    plates = -(-fields // PLATE_FIELDS)
    names = [f"P{number:05d}" for number in range(plates)]
    index = _first_plate(store, side)
    for number, name in enumerate(names[1:], start=1):
        if number < REAL_PLATES:
            _linked_plate(store, name, index)
        else:
            _same_plate(store, name, names[number % REAL_PLATES])
    folder = store.paths.snapshot(snapshot.digest)
    table = np.zeros(fields, TABLE_DTYPE)
    table["plate"], table["field"] = np.divmod(np.arange(fields), PLATE_FIELDS)
    table["height"] = table["width"] = side
    np.save(folder / "table.npy", table, allow_pickle=False)
    described: dict[str, Any] = json.loads((folder / "snapshot.json").read_bytes())
    (folder / "snapshot.json").write_text(json.dumps({**described, "num_fields": fields, "plates": names}))
    return store


def _first_plate(store: Store, side: int) -> bytes:
    """Make the real plate a whole one; returns its index."""
    paths, name = store.paths, "P00000"
    document = paths.images(name) / "zarr.json"
    raw = json.loads(document.read_bytes())
    raw["shape"][0] = PLATE_FIELDS
    document.write_text(json.dumps(raw))
    _link_shards(store, name, start=1)
    geometry = Geometry(
        num_fields=PLATE_FIELDS,
        num_channels=CHANNELS,
        height=side,
        width=side,
        chunk_px=CHUNK,
        fields_per_shard=SHARD_FIELDS,
    )
    index = build_shard_index(paths, name, geometry)
    paths.shard_index(name).write_bytes(index)
    return index


def _link_shards(store: Store, name: str, start: int = 0) -> None:
    for shard in range(start, PLATE_FIELDS // SHARD_FIELDS):
        path = store.paths.shard(name, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(store.paths.shard("P00000", 0), path)


def _linked_plate(store: Store, name: str, index: bytes) -> None:
    paths = store.paths
    _link_shards(store, name)
    (paths.images(name) / "zarr.json").write_bytes((paths.images("P00000") / "zarr.json").read_bytes())
    paths.shard_index(name).write_bytes(index)


def _same_plate(store: Store, name: str, like: str) -> None:
    paths = store.paths
    paths.plate(name).symlink_to(paths.plate(like))
    paths.shard_index(name).symlink_to(paths.shard_index(like))
