"""A cache: raw, uncompressed shards of a store on a disk of this node, read fast and usable while it is being filled.

    STORE/plates/P.zarr/images/c/7/0/0/0   lz4, on the file system of the cluster, mtime T
    CACHE/plates/P.zarr/images/c/7/0/0/0   the same fields in raw chunks of the same edge, mtime T
    CACHE/origin.json, CACHE/.lock         which store, which snapshot; held by the one process that fills (fill.py)

A cached shard counts when it has the length that its geometry says and the very mtime of the store's: it appears by rename when
it is whole and durable, and a shard of the store that is written anew gets another mtime.  So there is no record to be read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import UsageError
from phenomhpc.store.layout import StorePaths, unit_id
from phenomhpc.store.origin import CACHE, read_origin, spec_digest
from phenomhpc.store.shardindex import ABSENT
from phenomhpc.store.shards import Geometry, read_geometry
from phenomhpc.store.snapshot import Snapshot
from phenomhpc.store.spec import DatasetSpec, Store


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where a shard is read instead of in its store.  spec: how its chunks are packed (codec None); geometry: the plate's.

    index: u64 (fields per shard, chunks per field, 2) of offset and nbytes, as store.shardindex has them.
    The file may be evicted at any time: who cannot open `path` any more (FileNotFoundError) reads the store.
    """

    path: Path
    spec: DatasetSpec
    geometry: Geometry
    index: NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class CacheShard:
    """A shard that could be cached: usable fields of the snapshot in it, bytes of its raw file."""

    plate: str
    shard: int
    num_fields: int
    num_bytes: int


def raw_spec(spec: DatasetSpec) -> DatasetSpec:
    """A cache's: the store's, without compression."""
    return replace(spec, codec=None)


def chunk_bytes(geometry: Geometry, spec: DatasetSpec) -> int:
    """Of one raw chunk."""
    return geometry.num_channels * geometry.chunk_px**2 * spec.itemsize


def shard_bytes(geometry: Geometry, spec: DatasetSpec, shard: int) -> int:
    """Length of a raw shard's file."""
    chunks = len(geometry.fields_of(shard)) * geometry.chunks_per_field
    return chunks * chunk_bytes(geometry, spec) + geometry.index_bytes


@lru_cache(maxsize=64)
def _raw_index(geometry: Geometry, itemsize: int, num_fields: int) -> NDArray[np.uint64]:
    size = geometry.num_channels * geometry.chunk_px**2 * itemsize
    index = np.full((geometry.chunks_per_shard, 2), ABSENT, np.uint64)
    count = num_fields * geometry.chunks_per_field
    index[:count, 0] = np.arange(count, dtype=np.uint64) * np.uint64(size)
    index[:count, 1] = size
    index.flags.writeable = False
    return index.reshape(geometry.fields_per_shard, geometry.chunks_per_field, 2)


def is_cached(store: Store, cache: StorePaths, geometry: Geometry, plate: str, shard: int) -> bool:
    """Is the cache's file the store's shard as it is now?  Two stats; one where nothing is cached."""
    try:
        have = cache.shard(plate, shard).stat()
        if have.st_size != shard_bytes(geometry, store.spec, shard):
            return False
        return have.st_mtime_ns == store.paths.shard(plate, shard).stat().st_mtime_ns
    except OSError:
        return False


class CachedShards:
    """Which shards of a store are read from a cache.

    Thread-safe.  What has been located stays so (as a file that is open does); what has not been is looked for again at each
    call, since the cache may be filling: about 2 us where there is nothing.  The folder need not exist yet.
    Raises UsageError for a cache of another store.
    """

    def __init__(self, store: Store, folder: Path | str) -> None:
        self._store, self._paths = store, StorePaths(Path(folder).absolute())
        self._spec, self._digest = raw_spec(store.spec), spec_digest(store.spec)
        self._geometries: dict[str, Geometry] = {}
        self._found: dict[tuple[str, int], Location] = {}
        self._stale: dict[tuple[str, int], tuple[int, int]] = {}
        self._bound = self._is_ours()

    def _is_ours(self) -> bool:
        origin = read_origin(self._paths)
        if origin is None:
            return False
        if origin.kind != CACHE or origin.store != str(self._store.paths.root):
            raise UsageError(
                f"cache {self._paths.root}: is a {origin.kind} of {origin.store}, not a cache of {self._store.paths.root}"
            )
        return origin.spec == self._digest  # a store that was made anew: nothing counts until the cache is filled again

    def locate(self, plate: str, shard: int) -> Location | None:
        """The shard in the cache, if it is there as a whole and as the store has it now; else None: read the store."""
        key = plate, shard
        found = self._found.get(key)
        if found is not None:
            return found
        path = self._paths.shard(plate, shard)
        try:
            status = path.stat()
        except OSError:
            return None
        stamp = status.st_ino, status.st_mtime_ns
        if self._stale.get(key) == stamp:
            return None
        self._bound = self._bound or self._is_ours()
        geometry = self._geometry(plate)
        if not (self._bound and is_cached(self._store, self._paths, geometry, plate, shard)):
            self._stale[key] = stamp
            return None
        index = _raw_index(geometry, self._spec.itemsize, len(geometry.fields_of(shard)))
        located = Location(path=path, spec=self._spec, geometry=geometry, index=index)
        self._found[key] = located
        return located

    def _geometry(self, plate: str) -> Geometry:
        geometry = self._geometries.get(plate)
        if geometry is None:
            geometry = self._geometries[plate] = read_geometry(self._store.paths, plate)
        return geometry

    def forget(self, plate: str, shard: int) -> None:
        """The located file could not be opened: it was evicted."""
        self._found.pop((plate, shard), None)


def shards_of(snapshot: Snapshot) -> list[CacheShard]:
    """The shards that hold fields of a snapshot, in the order in which they are cached.

    The order follows from the names alone: every node holds the same ones, and a store that grows changes little of it.
    """
    found = []
    table, spec = snapshot.table, snapshot.store.spec
    bounds = np.searchsorted(table["plate"], np.arange(len(snapshot.plates) + 1))
    for number, plate in enumerate(snapshot.plates):
        geometry = read_geometry(snapshot.store.paths, plate)
        fields = table["field"][bounds[number] : bounds[number + 1]]
        shards, counts = np.unique(fields // geometry.fields_per_shard, return_counts=True)
        for shard, count in zip(shards.tolist(), counts.tolist(), strict=True):
            size = shard_bytes(geometry, spec, shard)
            found.append(CacheShard(plate=plate, shard=shard, num_fields=count, num_bytes=size))
    return sorted(found, key=lambda each: hashlib.sha256(unit_id(each.plate, each.shard).encode()).digest())


def within(shards: Sequence[CacheShard], max_bytes: int) -> list[CacheShard]:
    """Those that are cached when there is room for so many bytes: each, in order, that still fits."""
    kept, left = [], max_bytes
    for shard in shards:
        if shard.num_bytes <= left:
            kept.append(shard)
            left -= shard.num_bytes
    return kept


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """How full a cache is of a snapshot.  Bytes of the cached files; filler: who fills it now, "" for nobody.

    skipped: (plate, shard, field; reason) of shards that the store itself has damaged.
    """

    num_shards: int
    shards_held: int
    num_fields: int
    fields_held: int
    bytes_all: int
    bytes_held: int
    filler: str = ""
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def hit_rate(self) -> float:
        """Expected share of crops that are read from the cache: every field is as likely as another."""
        return self.fields_held / max(self.num_fields, 1)


def state_of(snapshot: Snapshot, folder: Path | str, skipped: tuple[tuple[str, str], ...] = ()) -> CacheState:
    """Look at a cache.  Raises UsageError when it is none of this store."""
    from phenomhpc.store.fill import filler_of

    cached = CachedShards(snapshot.store, folder)
    shards = shards_of(snapshot)
    held = [each for each in shards if cached.locate(each.plate, each.shard) is not None]
    return CacheState(
        num_shards=len(shards),
        shards_held=len(held),
        num_fields=sum(each.num_fields for each in shards),
        fields_held=sum(each.num_fields for each in held),
        bytes_all=sum(each.num_bytes for each in shards),
        bytes_held=sum(each.num_bytes for each in held),
        filler=filler_of(StorePaths(Path(folder).absolute())),
        skipped=skipped,
    )
