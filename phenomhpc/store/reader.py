"""Reading crops: one positioned read per row of chunks, decoded by blosc, cut into the caller's buffer."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import WorkError
from phenomhpc.store.shardindex import ABSENT, open_shard_index
from phenomhpc.store.shards import Compressor, Geometry, compressor_of, read_geometry
from phenomhpc.store.snapshot import Snapshot
from phenomhpc.store.spec import Store

MAX_OPEN_SHARDS = 256


class _Plate:
    """What is known of a plate once its first crop was read."""

    def __init__(self, store: Store, plate: str) -> None:
        self.geometry: Geometry = read_geometry(store.paths, plate)
        self.index = open_shard_index(store.paths.shard_index(plate))


class ShardReader:
    """Random crops of a snapshot's fields.

    Thread-safe: shard files are opened once and read with pread; each thread decodes into a chunk of its own.  At most
    MAX_OPEN_SHARDS files are open; indices are mapped, not read.
    """

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self._store, self._snapshot = store, snapshot
        self._compressor: Compressor | None = compressor_of(store.spec)
        self._dtype = np.dtype(store.spec.dtype).newbyteorder("<")
        self._plates: dict[int, _Plate] = {}
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._retired: list[int] = []
        self._lock = threading.Lock()
        self._local = threading.local()

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """Fill `out` (C, h, w), of the store's dtype, with the crop at (y, x) of row `field_no` of the snapshot's table.

        Raises IndexError for a crop that leaves the field, WorkError naming plate and shard for a damaged chunk.
        """
        row = self._snapshot.table[field_no]
        plate_no, field = int(row["plate"]), int(row["field"])
        plate = self._plate(plate_no)
        geometry, edge = plate.geometry, plate.geometry.chunk_px
        height, width = out.shape[-2:]
        if y < 0 or x < 0 or y + height > geometry.height or x + width > geometry.width:
            size = f"{geometry.height}x{geometry.width}"
            raise IndexError(f"crop of {height}x{width} at ({y}, {x}) leaves field {field_no}, which has {size}")
        shard, slot = divmod(field, geometry.fields_per_shard)
        entries = plate.index[shard, slot]
        first_column, last_column = x // edge, (x + width - 1) // edge
        for chunk_row in range(y // edge, (y + height - 1) // edge + 1):
            first = chunk_row * geometry.chunk_columns + first_column
            span = entries[first : first + last_column - first_column + 1]
            blocks = self._read_row(plate_no, shard, span)
            for column, block in zip(range(first_column, last_column + 1), blocks, strict=True):
                chunk = self._decode(plate_no, shard, block, geometry)
                _paste(chunk, chunk_row * edge, column * edge, y, x, out)

    def _plate(self, plate_no: int) -> _Plate:
        plate = self._plates.get(plate_no)
        if plate is None:
            name = self._snapshot.plates[plate_no]
            try:
                plate = self._plates[plate_no] = _Plate(self._store, name)
            except (OSError, ValueError) as error:
                raise WorkError(f"store {self._store.paths.root}: plate {name}: {error}") from error
        return plate

    def _read_row(self, plate_no: int, shard: int, span: NDArray[np.uint64]) -> list[memoryview]:
        """The encoded chunks of one row of a crop: neighbours in the file, so one read."""
        if (span[:, 0] == ABSENT).any():
            raise self._damage(plate_no, shard, "has no such chunk; convert it again")
        begin, end = int(span[0, 0]), int(span[-1, 0] + span[-1, 1])
        data = memoryview(self._pread(plate_no, shard, end - begin, begin))
        if len(data) != end - begin:
            raise self._damage(plate_no, shard, f"ends after {begin + len(data)} bytes, {end} are needed")
        return [data[int(offset) - begin : int(offset) - begin + int(size)] for offset, size in span]

    def _pread(self, plate_no: int, shard: int, size: int, offset: int) -> bytes:
        key = (plate_no, shard)
        with self._lock:
            descriptor = self._files.get(key)
            if descriptor is None:
                path = self._store.paths.shard(self._snapshot.plates[plate_no], shard)
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise self._damage(plate_no, shard, f"cannot be opened ({error.strerror})") from error
                self._files[key] = descriptor
                if len(self._files) > MAX_OPEN_SHARDS:
                    # Another thread may be inside pread: the oldest is closed one eviction later than it is dropped.
                    self._retired.append(self._files.popitem(last=False)[1])
                    if len(self._retired) > MAX_OPEN_SHARDS:
                        os.close(self._retired.pop(0))
            else:
                self._files.move_to_end(key)
        return os.pread(descriptor, size, offset)

    def _decode(self, plate_no: int, shard: int, block: memoryview, geometry: Geometry) -> NDArray[np.generic]:
        """One chunk (C, p, p); valid until this thread decodes the next."""
        shape = (geometry.num_channels, geometry.chunk_px, geometry.chunk_px)
        if self._compressor is None:
            if len(block) != int(np.prod(shape)) * self._dtype.itemsize:
                raise self._damage(plate_no, shard, "a raw chunk has the wrong length")
            return np.frombuffer(block, self._dtype).reshape(shape)
        scratch = getattr(self._local, "scratch", None)
        if scratch is None or scratch.shape != shape:
            scratch = self._local.scratch = np.empty(shape, self._dtype)
        try:
            self._compressor.decode(block, out=scratch)
        except (RuntimeError, ValueError) as error:
            raise self._damage(plate_no, shard, f"a chunk cannot be decoded ({error})") from error
        chunk: NDArray[np.generic] = scratch
        return chunk

    def _damage(self, plate_no: int, shard: int, what: str) -> WorkError:
        plate = self._snapshot.plates[plate_no]
        return WorkError(f"store {self._store.paths.root}: plate {plate}, shard {shard}: {what}; see store verify")

    def close(self) -> None:
        """Close every file."""
        with self._lock:
            for descriptor in (*self._files.values(), *self._retired):
                os.close(descriptor)
            self._files.clear()
            self._retired.clear()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _paste(chunk: NDArray[np.generic], top: int, left: int, y: int, x: int, out: NDArray[np.generic]) -> None:
    """Copy the part of a chunk whose corner is (top, left) that lies in the crop at (y, x)."""
    edge_y, edge_x = chunk.shape[-2:]
    height, width = out.shape[-2:]
    y0, y1 = max(y, top), min(y + height, top + edge_y)
    x0, x1 = max(x, left), min(x + width, left + edge_x)
    out[:, y0 - y : y1 - y, x0 - x : x1 - x] = chunk[:, y0 - top : y1 - top, x0 - left : x1 - left]
