"""Reading crops: one request per row of chunks, each decoded and cut straight into the caller's buffer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import DamagedError, WorkError
from phenomhpc.store.cache import CachedShards
from phenomhpc.store.chunks import ChunkReader
from phenomhpc.store.shardfiles import Access, ShardFiles, Traffic, access_for
from phenomhpc.store.shardindex import ABSENT, open_shard_index
from phenomhpc.store.shards import BLOSC_OVERHEAD, Geometry, own_geometry, read_array_metadata
from phenomhpc.store.snapshot import Snapshot
from phenomhpc.store.spec import Store

# Together well under the usual limit of 1,024 open files: a mapped index holds one too.
MAX_OPEN_SHARDS = 256
MAX_OPEN_INDICES = 128
_ABSENT = int(ABSENT)


@dataclass(frozen=True, kw_only=True)
class _Plate:
    """A plate that is being read."""

    number: int
    name: str
    geometry: Geometry
    index: NDArray[np.uint64]


@dataclass(slots=True)
class _Source:
    """A shard and where its bytes come from: the store, or raw from a cache.  entries: of the field that is read."""

    plate: _Plate
    shard: int
    files: ShardFiles
    path: Callable[[], Path]
    is_raw: bool
    entries: NDArray[np.uint64]


class _Scratch(threading.local):
    """Buffers of one thread: the encoded row of chunks, and what decodes chunks, by the number of pixels along their edge."""

    encoded = bytearray()

    def __init__(self) -> None:
        self.chunks: dict[int, ChunkReader] = {}


class ShardReader:
    """Random crops of a snapshot's fields.

    Thread-safe: files are opened once and read at positions, or mapped; each thread has its own buffers (one row of encoded
    chunks and one decoded chunk).  At most MAX_OPEN_SHARDS shards and MAX_OPEN_INDICES indices are open; indices are mapped.
    """

    def __init__(
        self, store: Store, snapshot: Snapshot, access: Access | None = None, cache: Path | None = None
    ) -> None:
        """access: how files are read; default what suits the store's file system.  cache: where raw shards of the store may lie
        (store.cache); it may be filling.  Raises UsageError for a cache of another store."""
        self._store, self._snapshot = store, snapshot
        self._cached = None if cache is None else CachedShards(store, cache)
        self._cache_files = None if cache is None else ShardFiles(MAX_OPEN_SHARDS, access or access_for(cache))
        self._num_read = self._num_from_cache = 0
        self._dtype = np.dtype(store.spec.dtype).newbyteorder("<")
        # Columns of the table: taking one number of a row of it costs ten times as much.
        self._plate_of, self._field_of = snapshot.table["plate"], snapshot.table["field"]
        self._plates: OrderedDict[int, _Plate] = OrderedDict()
        self._plates_lock = threading.Lock()
        self._files = ShardFiles(MAX_OPEN_SHARDS, access or access_for(store.paths.plates))
        self._scratch = _Scratch()

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """Fill `out` (C, h, w), of the store's dtype, with the crop at (y, x) of row `field_no` of the snapshot's table.

        `out` may have any strides: a flipped view is filled as it stands.  Raises IndexError for a crop that leaves the
        field, ValueError for an `out` of another dtype or number of channels, DamagedError naming store, plate and shard for
        a chunk that is not there or is damaged; `out` is then partly filled.  A bit flipped inside a chunk that still
        decodes is not noticed here: only the whole field has a checksum (store verify).
        """
        plate = self._plate(int(self._plate_of[field_no]))
        geometry = plate.geometry
        self._check(field_no, geometry, y, x, out)
        number, slot = divmod(int(self._field_of[field_no]), geometry.fields_per_shard)
        self._num_read += 1  # threads may lose a count of each other's: it is for the meter
        location = None if self._cached is None else self._cached.locate(plate.name, number)
        if location is not None:
            assert self._cached is not None and self._cache_files is not None
            raw = location.index[slot]
            try:
                self._fill(_Source(plate, number, self._cache_files, lambda: location.path, True, raw), y, x, out)
            except DamagedError as error:  # evicted, or the node's disk fails: the store has it
                self._cached.forget(plate.name, number)
                error.forget()
            else:
                self._num_from_cache += 1
                return
        is_raw, entries = self._store.spec.codec is None, plate.index[number, slot]
        path = lambda: self._store.paths.shard(plate.name, number)  # noqa: E731
        self._fill(_Source(plate, number, self._files, path, is_raw, entries), y, x, out)

    def _fill(self, source: _Source, y: int, x: int, out: NDArray[np.generic]) -> None:
        geometry = source.plate.geometry
        height, width = out.shape[1:]
        chunks = self._chunks(geometry)
        first, from_x = divmod(x, geometry.chunk_px)
        last = (x + width - 1) // geometry.chunk_px + 1
        for row, from_y, rows in _overlaps(y, height, geometry.chunk_px):
            entries = source.entries[row * geometry.chunk_columns + first : row * geometry.chunk_columns + last]
            data = self._read_row(source, entries.tolist())
            try:
                chunks.put(data, entries, from_y, from_x, out[:, rows], is_raw=source.is_raw)
            except (RuntimeError, ValueError) as error:
                raise self._damage(source, f"a chunk cannot be decoded ({error})") from error

    @property
    def traffic(self) -> Traffic:
        """The crops read so far, and what they asked of the store's file system."""
        read = Traffic(crops=self._num_read, from_cache=self._num_from_cache)
        return read + self._files.traffic

    def _check(self, field_no: int, geometry: Geometry, y: int, x: int, out: NDArray[np.generic]) -> None:
        if out.dtype != self._dtype or out.ndim != 3 or out.shape[0] != geometry.num_channels:
            raise ValueError(
                f"crop buffer of {out.dtype} {out.shape}: the store has {self._dtype} and {geometry.num_channels} channels"
            )
        height, width = out.shape[1:]
        inside = 0 <= y <= geometry.height - height and 0 <= x <= geometry.width - width
        if not inside or not height or not width:
            size = f"{geometry.height}x{geometry.width}"
            raise IndexError(f"crop of {height}x{width} at ({y}, {x}) leaves field {field_no}, which has {size}")

    def _plate(self, number: int) -> _Plate:
        with self._plates_lock:
            plate = self._plates.get(number)
            if plate is not None:
                self._plates.move_to_end(number)
                return plate
        name, paths = self._snapshot.plates[number], self._store.paths
        try:
            raw = read_array_metadata(paths, name)
        except (OSError, ValueError) as error:
            raise WorkError(f"store {paths.root}: plate {name}: {error}") from error
        try:
            geometry = own_geometry(raw, self._store.spec)
        except ValueError as error:
            raise WorkError(
                f"store {paths.root}: plate {name}: {error}; convert it again, or train with data.reader=tensorstore"
            ) from error
        try:
            index = open_shard_index(paths.shard_index(name))
        except (OSError, ValueError) as error:
            raise WorkError(f"store {paths.root}: plate {name}: {error}") from error
        wanted = (geometry.num_shards, geometry.fields_per_shard, geometry.chunks_per_field, 2)
        if index.shape != wanted:
            raise WorkError(f"store {paths.root}: plate {name}: its shard index is another array's; run store seal")
        plate = _Plate(number=number, name=name, geometry=geometry, index=index)
        with self._plates_lock:
            self._plates[number] = plate
            if len(self._plates) > MAX_OPEN_INDICES:
                # Whoever reads it now keeps the mapping alive until done.
                self._plates.popitem(last=False)
        return plate

    def _chunks(self, geometry: Geometry) -> ChunkReader:
        """What decodes this plate's chunks in this thread: all plates of a store have the same channels, dtype and codec."""
        chunks = self._scratch.chunks.get(geometry.chunk_px)
        if chunks is None:
            chunks = self._scratch.chunks[geometry.chunk_px] = ChunkReader(self._store.spec, geometry)
        return chunks

    def _read_row(self, source: _Source, span: list[list[int]]) -> memoryview:
        """The encoded chunks (offset, size) of one row of a crop, one behind the other: neighbours in the file, so one read.

        They are the file's pages, or lie in this thread's buffer until its next row.
        """
        geometry = source.plate.geometry
        chunk_bytes = geometry.num_channels * geometry.chunk_px**2 * self._dtype.itemsize
        begin = end = span[0][0]
        for offset, size in span:
            if offset == _ABSENT:
                raise self._damage(source, "has no such chunk; convert it again")
            if offset != end or size > chunk_bytes + BLOSC_OVERHEAD:
                raise self._damage(source, "its entry in the shard index makes no sense; run store seal")
            end += size
        scratch = self._scratch
        if source.files.access == "positioned" and len(scratch.encoded) < end - begin:
            # Also room for the neighbours to come: freshly mapped memory costs more than reading into it.
            scratch.encoded = bytearray(len(span) * (chunk_bytes + BLOSC_OVERHEAD))
        try:
            key = source.plate.number, source.shard
            data = source.files.fetch(key, source.path, begin, end - begin, scratch.encoded)
        except OSError as error:
            raise self._damage(source, f"cannot be read ({error.strerror})") from error
        if len(data) != end - begin:
            raise self._damage(source, f"ends after {begin + len(data)} bytes, {end} are needed")
        return data

    def _damage(self, source: _Source, what: str) -> DamagedError:
        plate, shard = source.plate, source.shard
        text = f"store {self._store.paths.root}: plate {plate.name}, shard {shard}: {what}; see store verify"
        return DamagedError(text, lambda: source.files.forget((plate.number, shard)))

    def close(self) -> None:
        """Close every file; no read may be going on."""
        for files in (self._files, self._cache_files):
            if files is not None:
                files.close()
        with self._plates_lock:
            self._plates.clear()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _overlaps(start: int, size: int, edge: int) -> list[tuple[int, int, slice]]:
    """The chunks along one axis that [start, start + size) touches: number, where in it that begins, where it goes in the crop."""
    found = []
    for number in range(start // edge, (start + size - 1) // edge + 1):
        first, last = max(start, number * edge), min(start + size, (number + 1) * edge)
        found.append((number, first - number * edge, slice(first - start, last - start)))
    return found
