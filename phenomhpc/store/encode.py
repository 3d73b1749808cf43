"""From the pixels of a field to the encoded chunks of a shard, each to where it lies in a buffer.

What blosc makes of byte-shuffled uint16 with LZ4, the packing that trainings read fastest, is made here, byte for byte: chunks are
cut and shuffled in one pass by the compiled code of `encode_loops`, the low bytes to where they stay if they cannot be compressed,
which is nearly always so.  LZ4 is imagecodecs', called by its address, and our own for the high bytes of two chunks at a time;
that both give the bytes of blosc's is found out before the first chunk.  All else is encoded by blosc, also where LZ4's address is
not to be had, and so is what `verify` compares with.

A frame (README_HEADER.rst of c-blosc, format 2, and blosc_c in its blosc.c) of a chunk that is one block, split in two: header,
start of the block i32, then length i32 and bytes of the stream of low bytes, length and bytes of that of the high ones.  A stream
that LZ4 does not get below its length is stored.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from imagecodecs import _lz4
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from phenomhpc.store.shards import BLOSC_OVERHEAD, Geometry, Pixels, blosc_header, encoder_of
from phenomhpc.store.spec import DatasetSpec, packing

Bytes = NDArray[np.uint8]

_VERSION, _LZ4_SHUFFLED = 2, 0x21
# Compiled code takes half a second to load: not for chunks of less.
COMPILED_BYTES = 2**16


class ChunkEncoder:
    """Encodes the chunks (C, p, p) of one field after the other.  Memory: four chunks."""

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
        # What put() is quickest with.
        self.room_bytes = self.most_bytes * (1 if self._split is None else 2)

    def begin(self, pixels: Pixels | None) -> None:
        """The field (C, H, W) whose chunks are wanted next; None: one of zeros."""
        self._pixels = pixels
        self._memory = None if self._split is None or pixels is None else _memory_of(pixels)

    def put(self, y: int, x: int, out: Bytes) -> list[int]:
        """Encode chunks of a row, the one at (y, x) and those behind it, one behind the other into `out`; the bytes of each.

        As many as `out` surely has room for, of which one needs `most_bytes`; at least one.  Zero behind the field's edges.
        """
        edge, pixels = self._geometry.chunk_px, self._pixels
        whole = (self._geometry.width - x) // edge if y + edge <= self._geometry.height else 0
        if self._memory is not None and pixels is not None and whole:
            assert self._split is not None
            if sizes := self._split.put(self._memory, pixels.strides, y, x, whole, out):
                return sizes
        return [self._put_one(y, x, out)]

    def _put_one(self, y: int, x: int, out: Bytes) -> int:
        geometry, edge, pixels = self._geometry, self._geometry.chunk_px, self._pixels
        height, width = min(edge, geometry.height - y), min(edge, geometry.width - x)
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
    if not _lz4_address():
        return None
    return spec.codec[1] if _as_blosc(spec, geometry.num_channels, geometry.chunk_px) else None


@functools.cache
def _lz4_address() -> int:
    """Of LZ4_compress_fast in the library that imagecodecs has loaded; 0: it hides it."""
    try:
        function = ctypes.CDLL(_lz4.__file__).LZ4_compress_fast
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(function, ctypes.c_void_p).value or 0


@functools.cache
def _as_blosc(spec: DatasetSpec, channels: int, edge: int) -> bool:
    """Are chunks of this size one block for blosc, and is what it makes of one what is made here?

    Libraries come with an LZ4 of their own; one day two of them may find other matches.
    """
    from phenomhpc.store import encode_loops

    shape = channels, edge, 2 * edge
    encode, num_bytes = encoder_of(spec), 2 * channels * edge**2
    out = np.empty(2 * (num_bytes + BLOSC_OVERHEAD), np.uint8)
    # High bytes in runs of a few values, low ones that cannot be compressed, as a camera's; then such that can.
    noise = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    for values in (noise & 0xFF | (noise >> 8 & noise >> 9 & noise >> 10 & 0x3) << 8, noise & 0x70):
        sample: Pixels = values.astype(np.uint16)
        chunks = [bytes(encode(sample[:, :, x : x + edge].copy())) for x in (0, edge)]
        headers = {blosc_header(chunk, num_bytes) for chunk in chunks}
        if edge % encode_loops.LANES or headers != {(_VERSION, _LZ4_SHUFFLED, 2, num_bytes)}:
            return False
        memory = _memory_of(sample)
        assert spec.codec is not None and memory is not None
        encoder = _SplitEncoder(spec.codec[1], channels, edge)
        for num in (1, 2):
            sizes = encoder.put(memory, sample.strides, 0, 0, num, out)
            if out[: sum(sizes)].tobytes() != b"".join(chunks[:num]):
                return False
    return True


class _SplitEncoder:
    """Chunks (C, p, p) of uint16 as blosc encodes them with LZ4 and byte shuffle, in one block."""

    def __init__(self, level: int, channels: int, edge: int) -> None:
        from phenomhpc.store import encode_loops  # compiled code

        self._encode_row, self._lz4 = encode_loops.encode_row, _lz4_address()
        self._acceleration = 10 - level
        self._channels, self._edge = channels, edge
        self._work = np.empty((encode_loops.WORK_STREAMS, channels * edge**2), np.uint8)
        self._tables = np.empty((2, encode_loops.TABLE_ENTRIES), np.uint32)

    def put(self, memory: Bytes, strides: tuple[int, ...], y: int, x: int, num: int, out: Bytes) -> list[int]:
        """Encode `num` chunks of the field in `memory`, at (y, x) and behind it, and say how many bytes of `out` each took.

        Fewer when `out` may become full, or blosc stores one of them as a whole.  strides: bytes from channel to channel, and
        from row to row.
        """
        sizes = np.empty(num, np.int64)
        first = y * strides[1] + x * 2
        done = self._encode_row(
            self._lz4,
            memory,
            first,
            strides[0],
            strides[1],
            self._channels,
            self._edge,
            self._acceleration,
            self._work,
            self._tables,
            out,
            sizes,
        )
        return [int(size) for size in sizes[:done]]
