"""Reading whole fields of a store, each checked against its crc32c before anybody gets its pixels."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from google_crc32c import value as crc32c
from numpy.typing import NDArray

from phenomhpc.errors import DamagedInputError, WorkError
from phenomhpc.store.shardindex import ABSENT
from phenomhpc.store.shards import BLOSC_OVERHEAD, Geometry, Pixels, decode_blosc, index_of
from phenomhpc.store.spec import Store

# (path below the store, bytes, mtime_ns) of a shard's file; another content is another stat, since shards are renamed into place.
Stat = tuple[str, int, int]


class DamagedField(DamagedInputError):
    """A field whose stored pixels are not what was recorded.  `where`: PLATE, shard N, field I; `reason`: in words."""

    def __init__(self, store: Store, where: str, reason: str) -> None:
        super().__init__(f"store {store.paths.root}: plate {where}: {reason}; store verify names all that is damaged")
        self.where, self.reason = where, reason


class WholeFields:
    """Fields of one plate, one at a time into the same buffer: what read() returns holds until the next one.

    Memory: one field, and one row of its chunks as they are encoded.  One shard is open at a time, so ascending order is quick;
    a shard that is replaced meanwhile is read to its end as it was.  Not thread-safe.
    """

    def __init__(self, store: Store, plate: str, geometry: Geometry) -> None:
        self._store, self._plate, self._geometry = store, plate, geometry
        dtype = np.dtype(store.spec.dtype).newbyteorder("<")
        self._pixels: Pixels = np.empty((geometry.num_channels, geometry.height, geometry.width), dtype)
        self._chunk: Pixels = np.empty((geometry.num_channels, geometry.chunk_px, geometry.chunk_px), dtype)
        self._flat = self._chunk.reshape(-1).view(np.uint8)
        self._encoded = bytearray(geometry.chunk_columns * (self._chunk.nbytes + BLOSC_OVERHEAD))
        self._number = -1
        self._file: BinaryIO | None = None
        self._index: NDArray[np.uint64] | None = None

    def open(self, shard: int) -> Stat:
        """Open a shard, if it is not the one that is open; its stat.

        Raises DamagedField when it cannot be opened or its index is damaged, WorkError when the whole store is gone.
        """
        if self._file is None or shard != self._number:
            self.close()
            path = self._store.paths.shard(self._plate, shard)
            try:
                self._file = path.open("rb")
                self._index = index_of(self._file, path, self._geometry)
            except OSError as error:
                self._refuse_vanished()
                raise self._damage(shard, None, f"cannot be read ({error.strerror})") from error
            except ValueError as error:
                raise self._damage(shard, None, str(error)) from error
            self._number = shard
        assert self._file is not None
        status = os.fstat(self._file.fileno())
        name = str(self._store.paths.shard(self._plate, shard).relative_to(self._store.paths.root))
        return name, status.st_size, status.st_mtime_ns

    def read(self, field: int, checksum: int) -> Pixels:
        """Pixels (C, H, W) of a field, little-endian, whose crc32c is `checksum`.  Raises DamagedField."""
        geometry = self._geometry
        shard, slot = divmod(field, geometry.fields_per_shard)
        self.open(shard)
        assert self._index is not None
        rows = self._index[slot].reshape(geometry.chunk_rows, geometry.chunk_columns, 2).tolist()
        for row, span in enumerate(rows):
            for column, block in enumerate(self._read_row(shard, field, span)):
                self._paste(self._decode(shard, field, block), row * geometry.chunk_px, column * geometry.chunk_px)
        if crc32c(self._pixels) != checksum:
            raise self._damage(shard, field, "the pixels do not match their checksum")
        return self._pixels

    def _read_row(self, shard: int, field: int, span: list[list[int]]) -> list[memoryview]:
        """The encoded chunks (offset, size) of one row, which lie one behind the other."""
        begin = end = span[0][0]
        for offset, size in span:
            if offset == int(ABSENT):
                raise self._damage(shard, field, "its chunks are not in the shard's index")
            if offset != end or size > self._chunk.nbytes + BLOSC_OVERHEAD:
                raise self._damage(shard, field, "its chunks do not lie one behind the other")
            end += size
        data, done = memoryview(self._encoded)[: end - begin], 0
        assert self._file is not None
        try:
            while done < len(data):
                got = os.preadv(self._file.fileno(), [data[done:]], begin + done)
                if not got:
                    raise self._damage(shard, field, f"the shard ends after {begin + done} bytes, {end} are needed")
                done += got
        except OSError as error:
            self._refuse_vanished()
            raise self._damage(shard, field, f"cannot be read ({error.strerror})") from error
        return [data[offset - begin : offset - begin + size] for offset, size in span]

    def _decode(self, shard: int, field: int, block: memoryview) -> Pixels:
        chunk: Any = self._chunk
        if self._store.spec.codec is None:
            if len(block) != chunk.nbytes:
                raise self._damage(shard, field, "a raw chunk has the wrong length")
            raw: Pixels = np.frombuffer(block, chunk.dtype).reshape(chunk.shape)
            return raw
        try:
            decode_blosc(block, self._flat)
        except (RuntimeError, ValueError) as error:
            raise self._damage(shard, field, f"a chunk cannot be decoded ({error})") from error
        return self._chunk

    def _paste(self, chunk: Pixels, top: int, left: int) -> None:
        into = self._pixels[:, top : top + chunk.shape[1], left : left + chunk.shape[2]]
        into[...] = chunk[:, : into.shape[1], : into.shape[2]]

    def _damage(self, shard: int, field: int | None, reason: str) -> DamagedField:
        which = "" if field is None else f", field {field}"
        return DamagedField(self._store, f"{self._plate}, shard {shard}{which}", reason)

    def _refuse_vanished(self) -> None:
        """A file system that is not mounted any more is no damage."""
        if not self._store.paths.dataset.is_file():
            raise WorkError(
                f"store {self._store.paths.root}: its dataset.json is gone; is the file system still mounted? run again when it is"
            )

    def close(self) -> None:
        """Close the shard that is open."""
        if self._file is not None:
            self._file.close()
        self._file, self._index, self._number = None, None, -1

    def __enter__(self) -> WholeFields:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
