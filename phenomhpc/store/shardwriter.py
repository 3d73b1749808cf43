"""Writing a shard as a stream: fields are encoded one by one into a buffer, which is summed and written as it fills."""

from __future__ import annotations

import struct
from typing import BinaryIO

import numpy as np

from phenomhpc.store.checksum import crc32c
from phenomhpc.store.encode import Bytes, ChunkEncoder
from phenomhpc.store.shards import Geometry, Pixels
from phenomhpc.store.spec import DatasetSpec

# Chunks of 100 kB each, written one by one, cost twice the CPU time of this; more of them would leave the processor's cache.  A
# power of two, and no byte more: Linux keeps a file in pieces of such sizes, and one write then fills one of them (a sixth less
# CPU time than for pieces of odd lengths).
WRITE_BYTES = 2**20


class ShardWriter:
    """Streams one shard into an open file: append() each field in order, then finish().

    Memory: six chunks, and WRITE_BYTES.  The same fields give the same bytes.
    size, crc: how many bytes were written, and their crc32c.
    """

    def __init__(self, file: BinaryIO, spec: DatasetSpec, geometry: Geometry) -> None:
        self._file, self._geometry = file, geometry
        self._encoder = ChunkEncoder(spec, geometry)
        self._buffer: Bytes = np.empty(WRITE_BYTES + self._encoder.room_bytes, np.uint8)
        self._filled = 0
        self._entries: list[tuple[int, int]] = []
        self.size, self.crc = 0, 0

    def append(self, pixels: Pixels | None) -> None:
        """Add the next field, (C, H, W) of the store's dtype; None for a field set aside, stored as zeros."""
        edge = self._geometry.chunk_px
        self._encoder.begin(pixels)
        for y in range(0, self._geometry.height, edge):
            x = 0
            while x < self._geometry.width:
                for num_bytes in self._encoder.put(y, x, self._buffer[self._filled :]):
                    self._entries.append((self.size + self._filled, num_bytes))
                    self._filled += num_bytes
                    x += edge
                if self._filled >= WRITE_BYTES:
                    self._flush(self._filled // WRITE_BYTES * WRITE_BYTES)

    def finish(self) -> None:
        """Write the index; slots behind the plate's last field stay absent (all ones), as the codec says."""
        self._flush(self._filled)
        missing = 2**64 - 1
        absent = self._geometry.chunks_per_shard - len(self._entries)
        flat = [number for entry in self._entries for number in entry] + [missing] * (2 * absent)
        index = np.array(flat, dtype="<u8").view(np.uint8)
        self._write(np.concatenate([index, np.frombuffer(struct.pack("<I", crc32c(index)), np.uint8)]))

    def _flush(self, num_bytes: int) -> None:
        """Write the buffer's first bytes; what lies behind them moves to the front."""
        self._write(self._buffer[:num_bytes])
        self._filled -= num_bytes
        self._buffer[: self._filled] = self._buffer[num_bytes : num_bytes + self._filled]

    def _write(self, data: Bytes) -> None:
        self._file.write(data.data)
        self.crc = crc32c(data, self.crc)
        self.size += len(data)
