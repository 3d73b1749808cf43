"""From the pixels of a field to the encoded chunks of a shard, each to where it lies in a buffer.

What blosc makes of byte-shuffled uint16 with LZ4, the packing that trainings read fastest, is made here, byte for byte: a chunk is
cut and shuffled in one pass by the compiled code of `shuffle`, its low bytes to where they stay if they cannot be compressed,
which is nearly always so.  LZ4 is imagecodecs'; that it gives the bytes of blosc's own is found out before the first chunk.  All
else is encoded by blosc, and so is what `verify` compares with.

A frame (README_HEADER.rst of c-blosc, format 2, and blosc_c in its blosc.c) of a chunk that is one block, split in two: header,
start of the block i32, then length i32 and bytes of the stream of low bytes, length and bytes of that of the high ones.  A stream
that LZ4 does not get below its length is stored.
"""

from __future__ import annotations

import functools
import struct
from typing import Any

import imagecodecs
import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from phenomhpc.store.shards import BLOSC_OVERHEAD, Geometry, Pixels, blosc_header, encoder_of
from phenomhpc.store.spec import DatasetSpec, packing

Bytes = NDArray[np.uint8]

# Header, start of the block, length of its first stream.
_HEAD = struct.Struct("<4B3I2i")
_LENGTH = struct.Struct("<i")
_VERSION, _LZ4_VERSION, _LZ4_SHUFFLED = 2, 1, 0x21
# Compiled code takes half a second to load: not for chunks of less.
COMPILED_BYTES = 2**16


class ChunkEncoder:
    """Encodes the chunks (C, p, p) of one field after the other.  Memory: two chunks."""

    def __init__(self, spec: DatasetSpec, geometry: Geometry) -> None:
        edge = geometry.chunk_px
        self._geometry, self._is_raw = geometry, spec.codec is None
        self._chunk = np.zeros((geometry.num_channels, edge, edge), np.dtype(spec.dtype).newbyteorder("<"))
        self._encode = encoder_of(spec)
        level = _level(spec, geometry)
        self._split = None if level is None else _SplitEncoder(level, geometry.num_channels, edge)
        self._pixels: Pixels | None = None
        self._memory: Bytes | None = None
        # The length of the longest encoded chunk.
        self.most_bytes = self._chunk.nbytes + BLOSC_OVERHEAD

    def begin(self, pixels: Pixels | None) -> None:
        """The field (C, H, W) whose chunks are wanted next; None: one of zeros."""
        self._pixels = pixels
        self._memory = None if self._split is None or pixels is None else _memory_of(pixels)

    def put(self, y: int, x: int, out: Bytes) -> int:
        """Encode the chunk at (y, x), zero behind the field's edges; how many bytes of `out`, which has `most_bytes`, that took."""
        geometry, edge, pixels = self._geometry, self._geometry.chunk_px, self._pixels
        height, width = min(edge, geometry.height - y), min(edge, geometry.width - x)
        if self._memory is not None and pixels is not None and height == width == edge:
            assert self._split is not None
            if size := self._split.put(self._memory, pixels.strides, y, x, out):
                return size
        chunk: Pixels = self._chunk
        if self._is_raw:
            chunk = out[: chunk.nbytes].view(chunk.dtype).reshape(chunk.shape)
        if pixels is None or height < edge or width < edge:
            chunk[...] = 0
        if pixels is not None:
            chunk[:, :height, :width] = pixels[:, y : y + height, x : x + width]
        if self._is_raw:
            return chunk.nbytes
        data = self._encode(chunk)
        out[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)


def _memory_of(pixels: Pixels) -> Bytes | None:
    """The memory from a field's first byte to its last; None where it is not as compiled code takes it."""
    apart, row, pixel = pixels.strides
    if pixels.dtype != np.dtype("<u2") or pixel != 2 or row < 0 or apart < 0 or not pixels.flags.writeable:
        return None
    num_bytes = sum(stride * (size - 1) for stride, size in zip(pixels.strides, pixels.shape, strict=True)) + 2
    return as_strided(pixels[0, 0].view(np.uint8), (num_bytes,), (1,))


def _level(spec: DatasetSpec, geometry: Geometry) -> int | None:
    """blosc's level, where chunks are encoded here; None: by blosc."""
    if spec.codec is None or spec.codec[0] != "lz4" or packing(spec) != ("shuffle", 2):
        return None
    chunk_bytes = geometry.num_channels * geometry.chunk_px**2 * 2
    if chunk_bytes < COMPILED_BYTES or spec.dtype != "uint16":
        return None
    return spec.codec[1] if _as_blosc(spec, geometry.num_channels, geometry.chunk_px) else None


@functools.cache
def _as_blosc(spec: DatasetSpec, channels: int, edge: int) -> bool:
    """Are chunks of this size one block for blosc, and is what it makes of one what is made here?

    Libraries come with an LZ4 of their own; one day two of them may find other matches.
    """
    from phenomhpc.store import shuffle

    shape = channels, edge, edge
    encode, num_bytes = encoder_of(spec), 2 * channels * edge**2
    # High bytes in runs of a few values, low ones that cannot be compressed, as a camera's; then such that can.
    noise = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    for values in (noise & 0xFF | (noise >> 8 & noise >> 9 & noise >> 10 & 0x3) << 8, noise & 0x70):
        sample: Pixels = values.astype(np.uint16)
        expected = encode(sample)
        header = blosc_header(expected, num_bytes)
        if edge % shuffle.LANES or header != (_VERSION, _LZ4_SHUFFLED, 2, num_bytes):
            return False
        out, memory = np.empty(num_bytes + BLOSC_OVERHEAD, np.uint8), _memory_of(sample)
        assert spec.codec is not None and memory is not None
        size = _SplitEncoder(spec.codec[1], channels, edge).put(memory, sample.strides, 0, 0, out)
        if out[:size].tobytes() != bytes(expected):
            return False
    return True


class _SplitEncoder:
    """Chunks (C, p, p) of uint16 as blosc encodes them with LZ4 and byte shuffle, in one block."""

    def __init__(self, level: int, channels: int, edge: int) -> None:
        from phenomhpc.store import shuffle  # compiled code

        self._cut = shuffle.cut
        self._acceleration = 10 - level
        self._channels, self._edge = channels, edge
        self._half = channels * edge**2
        self._high, self._encoded = np.empty(self._half, np.uint8), np.empty(self._half, np.uint8)

    def put(self, memory: Bytes, strides: tuple[int, ...], y: int, x: int, out: Bytes) -> int:
        """Encode the chunk at (y, x) of the field in `memory`; bytes of `out` that it took; 0: blosc stores this one as a whole.

        strides: bytes from channel to channel, and from row to row.
        """
        half, begin = self._half, _HEAD.size
        low = out[begin : begin + half]
        first = y * strides[1] + x * 2
        self._cut(memory, first, strides[0], strides[1], self._channels, self._edge, low, self._high)
        low_size = self._lz4(low, self._encoded)
        if low_size:
            low[:low_size] = self._encoded[:low_size]
        else:
            low_size = half
        end = begin + low_size + _LENGTH.size
        room = 2 * half + BLOSC_OVERHEAD - end
        high_size = self._lz4(self._high, out[end : end + min(half, room)])
        if not high_size:
            if room < half:
                return 0
            out[end : end + half] = self._high
            high_size = half
        size = end + high_size
        _HEAD.pack_into(out.data, 0, _VERSION, _LZ4_VERSION, _LZ4_SHUFFLED, 2, 2 * half, 2 * half, size, 20, low_size)
        _LENGTH.pack_into(out.data, end - _LENGTH.size, high_size)
        return size

    def _lz4(self, stream: Bytes, out: Bytes) -> int:
        """Bytes of `out` that LZ4 needed; 0: they were not enough."""
        try:
            encode: Any = imagecodecs.lz4_encode  # its stubs know no arrays
            return len(encode(stream, level=self._acceleration, out=out))
        except imagecodecs.Lz4Error:
            return 0
