"""From the encoded chunks of a shard to the part of a crop that lies in each: decoded, put in order and cut in one go.

blosc decodes whole chunks, and most of its time goes into shuffling bits back.  Of what a crop of 256 pixels touches in chunks of
128, it wants less than half.  So the frames are read by the compiled code of `frames`, which calls LZ4 and Zstandard and puts
only the wanted rows in order, in the batch.  What is laid out otherwise is decoded by blosc and cut by NumPy.
"""

from __future__ import annotations

import ctypes
import functools
from types import ModuleType

import numpy as np
from imagecodecs import _lz4, _zstd
from numpy.typing import NDArray

from phenomhpc.store.shards import Geometry, decode_blosc
from phenomhpc.store.spec import DatasetSpec, packing

_WORD_BITS = 64
_COMPILED_CODECS = ("lz4", "lz4hc", "zstd")


class ChunkReader:
    """Puts parts of chunks (C, p, p) of one geometry where they belong.  One thread; memory: two decoded chunks."""

    def __init__(self, spec: DatasetSpec, geometry: Geometry) -> None:
        self._dtype = np.dtype(spec.dtype).newbyteorder("<")
        self._edge, self._is_raw = geometry.chunk_px, spec.codec is None
        self._shape = (geometry.num_channels, self._edge, self._edge)
        self._num_bytes = geometry.num_channels * self._edge**2 * self._dtype.itemsize
        self._is_for_compiled = _is_for_compiled(spec, self._edge * self._dtype.itemsize)
        self._decoded = np.empty(0, np.uint8)
        self._room = self._strip = self._decoded

    def put(
        self,
        data: memoryview,
        entries: NDArray[np.uint64],
        y: int,
        x: int,
        out: NDArray[np.generic],
        *,
        is_raw: bool = False,
    ) -> None:
        """Fill `out` (C, h, w), of any strides, from chunks that lie beside each other: from (y, x) of the first one on.

        data: the encoded chunks, one behind the other; entries [n, 2]: (offset in the shard, bytes) of each.  is_raw: nothing is
        compressed.  Raises ValueError or RuntimeError, with words that follow the name of a chunk, for what cannot be
        decoded; `out` is then as it was or partly filled.
        """
        is_raw = is_raw or self._is_raw
        turned = _turned(out) if self._is_for_compiled else None
        if turned is None:
            self._put_whole(range(len(entries)), data, entries, y, x, out, is_raw)
            return
        from phenomhpc.store import frames  # compiled code: not loaded for chunks that it cannot read

        if not len(self._room):
            self._room = np.empty(frames.room_bytes(self._num_bytes), np.uint8)
            self._strip = np.empty(frames.strip_bytes(self._edge * self._dtype.itemsize), np.uint8)
        view, mirror, swap = turned
        lz4, zstd = _decoders()
        encoded, number = np.frombuffer(data, np.uint8), 0
        while True:
            found, number = frames.put_row(
                lz4,
                zstd,
                encoded,
                entries,
                number,
                is_raw,
                self._num_bytes,
                self._edge,
                self._dtype.itemsize,
                y,
                x,
                view,
                mirror,
                swap,
                self._room,
                self._strip,
            )
            if found == frames.DONE:
                return
            if found != frames.FOR_BLOSC:
                raise ValueError(_words(frames)[found])
            self._put_whole(range(number, number + 1), data, entries, y, x, out, is_raw)
            number += 1

    def _put_whole(
        self,
        numbers: range,
        data: memoryview,
        entries: NDArray[np.uint64],
        y: int,
        x: int,
        out: NDArray[np.generic],
        is_raw: bool,
    ) -> None:
        """The same for the chunks `numbers` alone, each decoded whole."""
        at, done, column = 0, 0, x
        for number, size in enumerate(entries[:, 1].tolist()):
            wide = min(self._edge - column, out.shape[2] - done)
            if number in numbers:
                chunk = self._whole(data[at : at + size], is_raw)
                out[:, :, done : done + wide] = chunk[:, y : y + out.shape[1], column : column + wide]
            at, done, column = at + size, done + wide, 0

    def _whole(self, block: memoryview, is_raw: bool) -> NDArray[np.generic]:
        if is_raw:
            if len(block) != self._num_bytes:
                raise ValueError("it is raw and has the wrong length")
            return np.frombuffer(block, self._dtype).reshape(self._shape)
        if not len(self._decoded):
            self._decoded = np.empty(self._num_bytes, np.uint8)
        decode_blosc(block, self._decoded)
        return self._decoded.view(self._dtype).reshape(self._shape)


def _is_for_compiled(spec: DatasetSpec, row_bytes: int) -> bool:
    """Is this how the store's chunks are packed?  Others may lie among them: compiled code looks at each."""
    if spec.codec is None:
        return row_bytes >= _WORD_BITS
    shuffle, typesize = packing(spec)
    unit = _WORD_BITS * typesize if shuffle == "bitshuffle" else 8
    return spec.codec[0] in _COMPILED_CODECS and row_bytes % unit == 0


@functools.cache
def _decoders() -> tuple[int, int]:
    """Addresses of LZ4_decompress_safe and ZSTD_decompress in the libraries that imagecodecs has loaded; 0 for what it hides."""
    found = []
    for module, name in ((_lz4, "LZ4_decompress_safe"), (_zstd, "ZSTD_decompress")):
        try:
            function = getattr(ctypes.CDLL(module.__file__), name)
        except (OSError, AttributeError):
            found.append(0)
        else:
            found.append(ctypes.cast(function, ctypes.c_void_p).value or 0)
    return found[0], found[1]


@functools.cache
def _words(frames: ModuleType) -> dict[int, str]:
    return {
        frames.RAW_LENGTH: "it is raw and has the wrong length",
        frames.HEADER: "its header does not fit its length",
        frames.CUT: "it is cut",
        frames.OUTSIDE: "a block of it lies outside",
        frames.BLOCK_CUT: "a block of it is cut",
        frames.NOT_DECODED: "a block of it is not what was compressed",
    }


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
