"""Reading crops: one positioned read per row of chunks, decoded by blosc, cut into the caller's buffer."""

from __future__ import annotations

import os
import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import WorkError
from phenomhpc.store.openfiles import OpenFiles
from phenomhpc.store.shardindex import ABSENT, open_shard_index
from phenomhpc.store.shards import Geometry, compressor_of, read_geometry
from phenomhpc.store.snapshot import Snapshot
from phenomhpc.store.spec import Store

# Together well under the usual limit of 1,024 open files: a mapped index holds one too.
MAX_OPEN_SHARDS = 256
MAX_OPEN_INDICES = 128
# A blosc chunk: version, format, flags, typesize, nbytes u32, blocksize u32, cbytes u32, then data.
_BLOSC_HEADER = struct.Struct("<4xI4xI")
# blosc stores what it cannot compress, behind its header.
_MAX_OVERHEAD = 16
_ABSENT = int(ABSENT)


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One shard, and its plate's geometry and name for messages."""

    plate_no: int
    plate: str
    number: int
    geometry: Geometry


class _Scratch(threading.local):
    """Buffers of one thread: the encoded row of chunks, and one decoded chunk (C, p, p)."""

    encoded = bytearray()
    chunk: NDArray[np.generic] | None = None


class ShardReader:
    """Random crops of a snapshot's fields.

    Thread-safe: files are opened once and read at positions; each thread has its own buffers (one row of encoded chunks and
    one decoded chunk).  At most MAX_OPEN_SHARDS shards and MAX_OPEN_INDICES indices are open; indices are mapped, not read.
    """

    def __init__(self, store: Store, snapshot: Snapshot) -> None:
        self._store, self._snapshot = store, snapshot
        self._compressor = compressor_of(store.spec)
        self._dtype = np.dtype(store.spec.dtype).newbyteorder("<")
        self._geometries: dict[int, Geometry] = {}
        self._indices: OrderedDict[int, NDArray[np.uint64]] = OrderedDict()
        self._indices_lock = threading.Lock()
        self._files = OpenFiles(MAX_OPEN_SHARDS)
        self._scratch = _Scratch()

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """Fill `out` (C, h, w), of the store's dtype, with the crop at (y, x) of row `field_no` of the snapshot's table.

        `out` may have any strides: a flipped view is filled as it stands.  Raises IndexError for a crop that leaves the
        field, ValueError for an `out` of another dtype or number of channels, WorkError naming store, plate and shard for
        a chunk that is not there or is damaged; `out` is then partly filled.  A bit flipped inside a chunk that still
        decodes is not noticed here: only the whole field has a checksum (store verify).
        """
        row = self._snapshot.table[field_no]
        plate_no, field = int(row["plate"]), int(row["field"])
        geometry, index = self._plate(plate_no)
        self._check(field_no, geometry, y, x, out)
        number, slot = divmod(field, geometry.fields_per_shard)
        shard = _Shard(plate_no=plate_no, plate=self._snapshot.plates[plate_no], number=number, geometry=geometry)
        entries, edge = index[number, slot], geometry.chunk_px
        height, width = out.shape[1:]
        first_column, last_column = x // edge, (x + width - 1) // edge
        for chunk_row in range(y // edge, (y + height - 1) // edge + 1):
            first = chunk_row * geometry.chunk_columns + first_column
            span = entries[first : first + last_column - first_column + 1].tolist()
            for column, block in enumerate(self._read_row(shard, span), first_column):
                _paste(self._decode(shard, block), chunk_row * edge, column * edge, y, x, out)

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

    def _plate(self, plate_no: int) -> tuple[Geometry, NDArray[np.uint64]]:
        with self._indices_lock:
            index = self._indices.get(plate_no)
            if index is not None:
                self._indices.move_to_end(plate_no)
                return self._geometries[plate_no], index
        name, paths = self._snapshot.plates[plate_no], self._store.paths
        try:
            geometry = self._geometries.get(plate_no) or read_geometry(paths, name)
            index = open_shard_index(paths.shard_index(name))
        except (OSError, ValueError, KeyError) as error:
            raise WorkError(f"store {paths.root}: plate {name}: {error}") from error
        wanted = (geometry.num_shards, geometry.fields_per_shard, geometry.chunks_per_field, 2)
        if index.shape != wanted:
            raise WorkError(f"store {paths.root}: plate {name}: its shard index is another array's; run store seal")
        with self._indices_lock:
            self._geometries[plate_no] = geometry
            self._indices[plate_no] = index
            if len(self._indices) > MAX_OPEN_INDICES:
                # Whoever reads it now keeps the mapping alive until done.
                self._indices.popitem(last=False)
        return geometry, index

    def _read_row(self, shard: _Shard, span: list[list[int]]) -> list[memoryview]:
        """The encoded chunks (offset, size) of one row of a crop: neighbours in the file, so one read.

        They lie in this thread's buffer, until its next row.
        """
        geometry = shard.geometry
        chunk_bytes = geometry.num_channels * geometry.chunk_px**2 * self._dtype.itemsize
        begin = end = span[0][0]
        for offset, size in span:
            if offset == _ABSENT:
                raise self._damage(shard, "has no such chunk; convert it again")
            if offset != end or size > chunk_bytes + _MAX_OVERHEAD:
                raise self._damage(shard, "its entry in the shard index makes no sense; run store seal")
            end += size
        scratch = self._scratch
        if len(scratch.encoded) < end - begin:
            # Also room for the neighbours to come: freshly mapped memory costs more than reading into it.
            scratch.encoded = bytearray(len(span) * (chunk_bytes + _MAX_OVERHEAD))
        data = memoryview(scratch.encoded)[: end - begin]
        got = self._pread(shard, data, begin)
        if got != end - begin:
            raise self._damage(shard, f"ends after {begin + got} bytes, {end} are needed")
        return [data[offset - begin : offset - begin + size] for offset, size in span]

    def _pread(self, shard: _Shard, data: memoryview, offset: int) -> int:
        """Read until `data` is full or the file ends; bytes read."""
        path, done = self._store.paths.shard(shard.plate, shard.number), 0
        try:
            with self._files.use((shard.plate_no, shard.number), path) as descriptor:
                while done < len(data):
                    got = os.preadv(descriptor, [data[done:]], offset + done)
                    if not got:
                        break
                    done += got
        except OSError as error:
            raise self._damage(shard, f"cannot be read ({error.strerror})") from error
        return done

    def _decode(self, shard: _Shard, block: memoryview) -> NDArray[np.generic]:
        """One chunk (C, p, p); valid until this thread decodes the next."""
        geometry = shard.geometry
        shape = (geometry.num_channels, geometry.chunk_px, geometry.chunk_px)
        if self._compressor is None:
            if len(block) != int(np.prod(shape)) * self._dtype.itemsize:
                raise self._damage(shard, "a raw chunk has the wrong length")
            return np.frombuffer(block, self._dtype).reshape(shape)
        chunk = self._scratch.chunk
        if chunk is None or chunk.shape != shape:
            chunk = self._scratch.chunk = np.empty(shape, self._dtype)
        # blosc trusts its header: a shorter chunk would leave the last one's pixels, a longer one be read past its end.
        if len(block) < _MAX_OVERHEAD or _BLOSC_HEADER.unpack_from(block) != (chunk.nbytes, len(block)):
            raise self._damage(shard, "a chunk's header does not fit its length")
        try:
            self._compressor.decode(block, out=chunk)
        except (RuntimeError, ValueError) as error:
            raise self._damage(shard, f"a chunk cannot be decoded ({error})") from error
        return chunk

    def _damage(self, shard: _Shard, what: str) -> WorkError:
        return WorkError(
            f"store {self._store.paths.root}: plate {shard.plate}, shard {shard.number}: {what}; see store verify"
        )

    def close(self) -> None:
        """Close every file; no read may be going on."""
        self._files.close()
        with self._indices_lock:
            self._indices.clear()

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
