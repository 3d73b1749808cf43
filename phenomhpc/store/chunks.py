"""From the encoded chunks of a shard to the part of a crop that lies in each: decoded, put in order and cut in one go.

blosc decodes whole chunks, and most of its time goes into shuffling bits back.  Of what a crop of 256 pixels touches in chunks of
128, it wants less than half.  So the frame is read here: imagecodecs decodes LZ4 or Zstandard, and the compiled code of
`unshuffle` puts the wanted rows in order, in the batch.  What is laid out otherwise is decoded by blosc and cut by NumPy.

A frame of blosc 1 (README_HEADER.rst of c-blosc, format 2): version, format, flags, typesize, nbytes u32, blocksize u32, cbytes
u32, where each block starts (i32), then blocks; a block is one stream, or one for each byte of an element ("split"), each behind
its length (i32); a stream as long as what it holds is stored as it is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from phenomhpc.store.shards import BLOSC_OVERHEAD, Geometry, blosc_header, decode_blosc
from phenomhpc.store.spec import DatasetSpec

_NUMBER = struct.Struct("<i")
_SHUFFLED, _STORED, _BITS, _WHOLE = 0x1, 0x2, 0x4, 0x10
_FORMAT_BITS = 5
# By number of the format: LZ4 (of LZ4HC too) and Zstandard.
_DECODERS: dict[int, Callable[..., Any]] = {1: imagecodecs.lz4_decode, 4: imagecodecs.zstd_decode}
# blosc splits a block only where each stream then has so many bytes.
_LEAST_STREAM_BYTES = 128
_WORD_BITS = 64
_MAX_FRAMES = 64


@dataclass(frozen=True, slots=True)
class _Stream:
    """Where in the decoded chunk a stream's bytes go."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
    """How chunks with the same header are read.  blocks: the streams of each."""

    kind: int
    decode: Callable[..., Any]
    block_bytes: int
    blocks: tuple[tuple[_Stream, ...], ...]


class ChunkReader:
    """Puts parts of chunks (C, p, p) of one geometry where they belong.  One thread; memory: two decoded chunks."""

    def __init__(self, spec: DatasetSpec, geometry: Geometry) -> None:
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._edge, self._is_raw = geometry.chunk_px, spec.codec is None
        self._shape = (geometry.num_channels, self._edge, self._edge)
        self._num_bytes = geometry.num_channels * self._edge**2 * self._dtype.itemsize
        # In words, so that compiled code may take it for such.
        self._decoded = np.empty(-(-self._num_bytes // 8), np.uint64).view(np.uint8)[: self._num_bytes]
        self._chunk = self._decoded.view(self._dtype).reshape(self._shape)
        self._frames: dict[tuple[int, int], _Frame | None] = {}
        self._place: Callable[..., None] | None = None

    def put(self, block: memoryview, y: int, x: int, out: NDArray[np.generic], *, is_raw: bool = False) -> None:
        """Fill `out` (C, h, w), of any strides, with the chunk's pixels from (y, x) on.  is_raw: nothing is compressed.

        Raises ValueError or RuntimeError, with words that follow the name of a chunk, for what cannot be decoded; `out` is then
        as it was or partly filled.
        """
        if is_raw or self._is_raw:
            if len(block) != self._num_bytes:
                raise ValueError("it is raw and has the wrong length")
            self._cut(np.frombuffer(block, self._dtype).reshape(self._shape), y, x, out)
            return
        frame = self._frame(block)
        turned = None if frame is None else _turned(out)
        if frame is None or turned is None:
            decode_blosc(block, self._decoded)
            self._cut(self._chunk, y, x, out)
            return
        height, itemsize = out.shape[1], self._dtype.itemsize
        rows_per_block = frame.block_bytes // (self._edge * itemsize)
        for number in _touched(frame, y, height, self._edge, self._shape[0], rows_per_block):
            self._decode(block, number, frame)
        assert self._place is not None
        view, mirror, swap = turned
        self._place(
            frame.kind,
            self._decoded,
            frame.block_bytes,
            self._num_bytes,
            self._edge,
            itemsize,
            y,
            x,
            view,
            mirror,
            swap,
        )

    def _cut(self, chunk: NDArray[np.generic], y: int, x: int, out: NDArray[np.generic]) -> None:
        out[...] = chunk[:, y : y + out.shape[1], x : x + out.shape[2]]

    def _frame(self, block: memoryview) -> _Frame | None:
        """How this chunk is read; None for what blosc is asked to decode."""
        version, flags, typesize, block_bytes = blosc_header(block, self._num_bytes)
        key = (version << 16 | flags << 8 | typesize, block_bytes)
        if key not in self._frames:
            if len(self._frames) == _MAX_FRAMES:  # a writer makes one or two; more are damage
                self._frames.clear()
            self._frames[key] = self._laid_out(version, flags, typesize, block_bytes)
        return self._frames[key]

    def _laid_out(self, version: int, flags: int, typesize: int, block_bytes: int) -> _Frame | None:
        decode = _DECODERS.get(flags >> _FORMAT_BITS)
        if version != 2 or flags & _STORED or decode is None or typesize not in (1, 2) or not block_bytes:
            return None
        row_bytes = self._edge * self._dtype.itemsize
        words = row_bytes % (_WORD_BITS * typesize) == 0 if flags & _BITS else row_bytes % 8 == 0
        if not words or block_bytes % row_bytes:
            return None
        from phenomhpc.store import unshuffle  # compiled code: not loaded for chunks that it cannot read

        if flags & _BITS:
            kind = unshuffle.BITS_OF_1 if typesize == 1 else unshuffle.BITS_OF_2
        elif flags & _SHUFFLED and typesize == 2:
            kind = unshuffle.BYTES_OF_2
        else:
            kind = unshuffle.PLAIN
        self._place = unshuffle.place
        blocks = []
        for begin in range(0, self._num_bytes, block_bytes):
            end = min(begin + block_bytes, self._num_bytes)
            whole = end - begin == block_bytes
            split = not flags & _WHOLE and whole and block_bytes // typesize >= _LEAST_STREAM_BYTES
            size = (end - begin) // (typesize if split else 1)
            blocks.append(tuple(_Stream(at, at + size) for at in range(begin, end, size)))
        return _Frame(kind=kind, decode=decode, block_bytes=block_bytes, blocks=tuple(blocks))

    def _decode(self, block: memoryview, number: int, frame: _Frame) -> None:
        """One block's streams into their places, shuffled as they are."""
        entry = BLOSC_OVERHEAD + 4 * number
        if entry + 4 > len(block):
            raise ValueError("it is cut")
        at = _NUMBER.unpack_from(block, entry)[0]
        for stream in frame.blocks[number]:
            if not 0 < at <= len(block) - 4:
                raise ValueError("a block of it lies outside")
            (size,) = _NUMBER.unpack_from(block, at)
            at += 4
            if not 0 < size <= len(block) - at:
                raise ValueError("a block of it is cut")
            out = self._decoded[stream.begin : stream.end]
            if size == len(out):
                out[:] = np.frombuffer(block[at : at + size], np.uint8)
            elif len(frame.decode(block[at : at + size], out=out)) != len(out):
                raise ValueError("a block of it is too short")
            at += size


def _touched(frame: _Frame, y: int, height: int, edge: int, channels: int, rows_per_block: int) -> range | list[int]:
    """The blocks that hold rows [y, y + height) of any channel."""
    if len(frame.blocks) == 1:
        return range(1)
    wanted = {
        number
        for channel in range(channels)
        for number in range(
            (channel * edge + y) // rows_per_block, (channel * edge + y + height - 1) // rows_per_block + 1
        )
    }
    return sorted(wanted)


def _turned(out: NDArray[np.generic]) -> tuple[NDArray[np.uint8], bool, bool] | None:
    """`out` (C, h, w) as compiled code takes it: rows of bytes that lie together; is it to be filled backwards, axes swapped?

    None for a view whose pixels lie apart along both axes.
    """
    itemsize = out.itemsize
    swap = abs(out.strides[2]) != itemsize
    if swap:
        out = out.swapaxes(1, 2)
        if abs(out.strides[2]) != itemsize:
            return None
    mirror = out.strides[2] < 0
    if mirror:
        out = out[..., ::-1]
    return out.view(np.uint8), mirror, swap
