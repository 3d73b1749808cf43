"""Compiled code from the encoded chunks of a row to the part of a crop that lies in them: one call, no Python between chunks.

A frame of blosc 1 (README_HEADER.rst of c-blosc, format 2): version, format, flags, typesize, nbytes u32, blocksize u32, cbytes
u32, where each block starts (i32), then blocks; a block is one stream, or one for each byte of an element ("split"), each behind
its length (i32); a stream as long as what it holds is stored as it is.

What blosc's shuffles leave of n elements of s bytes is s planes of n bytes each (shuffle), or 8 s planes of n/8 bytes each, in
which bit j of byte k belongs to element 8 k + j (bitshuffle).  A plane keeps the order of the elements, so the rows of a crop
lie together in each of them, and no other row needs to be put together.

Everything is an address here.  Lengths and places that a chunk gives are looked at before they are used; LZ4 and Zstandard look
at what they are given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from phenomhpc.compiled import compiled, part
from phenomhpc.store.vectors import (
    bits_to_bytes,
    byte_at,
    call_lz4,
    call_zstd,
    copy_1,
    copy_8,
    copy_32,
    number_at,
    reverse_bytes,
    reverse_shorts,
    transpose_bytes,
    transpose_shorts,
    weave_32,
)

COMPILED_WITH = "7c030cfad12aa86e"
"""The beginning of vectors.py's sha256, as a test demands: with another one this file is another, and numba compiles it anew."""

# What a chunk turns out to be: put where it belongs; laid out so that blosc must decode it; damaged.
DONE, FOR_BLOSC, RAW_LENGTH, HEADER, CUT, OUTSIDE, BLOCK_CUT, NOT_DECODED = range(8)
# Rows that are put together before they are copied away: with all that is in between they stay in the first-level cache.
STRIP_ROWS = 32
# A vector's worth behind what is read or written; bits come as 256 elements at a time.
SLACK = 256

# What became of the elements: nothing; planes of bytes of 2-byte elements; planes of bits of 1-byte and 2-byte elements.
_PLAIN, _BYTES_OF_2, _BITS_OF_1, _BITS_OF_2 = range(4)
_SHUFFLED, _STORED, _BITS, _WHOLE, _FORMAT = 0x1, 0x2, 0x4, 0x10, 5
_LZ4, _ZSTD = 1, 4
_OVERHEAD = 16
# blosc splits a block only where each stream then has so many bytes.
_LEAST_STREAM = 128


@part
def _copy(source: Any, to: Any, num: Any) -> None:
    """`num` bytes, by whole vectors: the last one may lie over the one before."""
    if num >= 32:
        for at in range(0, num - 31, 32):
            copy_32(source + at, to + at)
        copy_32(source + num - 32, to + num - 32)
    elif num >= 8:
        for at in range(0, num - 7, 8):
            copy_8(source + at, to + at)
        copy_8(source + num - 8, to + num - 8)
    else:
        for at in range(num):
            copy_1(source + at, to + at)


@part
def _reverse(source: Any, to: Any, num: Any, itemsize: Any) -> None:
    """`num` bytes of elements, the last one first."""
    if num >= 32 and itemsize == 1:
        for at in range(0, num - 31, 32):
            reverse_bytes(source + num - 32 - at, to + at)
        reverse_bytes(source, to + num - 32)
    elif num >= 32:
        for at in range(0, num - 31, 32):
            reverse_shorts(source + num - 32 - at, to + at)
        reverse_shorts(source, to + num - 32)
    else:
        for at in range(0, num, itemsize):
            for byte in range(itemsize):
                copy_1(source + num - itemsize - at + byte, to + at + byte)


@part
def _weave(low: Any, high: Any, to: Any, num: Any) -> None:
    """`num` elements of two bytes, from as many low and high ones."""
    if num >= 32:
        for at in range(0, num - 31, 32):
            weave_32(low + at, high + at, to + 2 * at)
        weave_32(low + num - 32, high + num - 32, to + 2 * (num - 32))
    else:
        for at in range(num):
            copy_1(low + at, to + 2 * at)
            copy_1(high + at, to + 2 * at + 1)


@part
def _gather(planes: Any, apart: Any, to: Any, num: Any) -> None:
    """`num` elements of one byte from planes of bits; up to SLACK - 1 more are read and written."""
    for at in range(0, num, 256):
        bits_to_bytes(planes + at // 8, apart, to + at)


@part
def _swap_axes(
    strip: Any, row: Any, itemsize: Any, num: Any, wide: Any, to: Any, down: Any, mirror: Any, room: Any
) -> None:
    """`num` rows of a strip, `row` bytes apart, to `wide` columns, `down` bytes apart.  mirror: the last row first.

    room: for columns of which only a part is wanted.
    """
    across, tall = 16 // itemsize, STRIP_ROWS // itemsize
    first, step = (strip + (STRIP_ROWS - 1) * row, -row) if mirror else (strip, row)
    skipped = (STRIP_ROWS - num) * itemsize if mirror else 0
    for column in range(0, wide, across):
        direct = num == STRIP_ROWS and wide - column >= across
        place, apart = (to + column * down, down) if direct else (room, STRIP_ROWS * itemsize)
        source = first + column * itemsize
        if itemsize == 1:
            transpose_bytes(source, step, place, apart)
        else:
            transpose_shorts(source, step, place, apart)
            transpose_shorts(source + tall * step, step, place + 32, apart)
        if not direct:
            for k in range(min(across, wide - column)):
                _copy(room + k * STRIP_ROWS * itemsize + skipped, to + (column + k) * down, num * itemsize)


@part
def _decode(
    lz4: Any, zstd: Any, chunk: Any, size: Any, number: Any, length: Any, streams: Any, lies: Any, room: Any
) -> Any:
    """(what it turned out to be, where its first, where its last stream begins) of a block of `length` bytes.

    lies: a stored stream may stay where it lies; all others come into `room`, one behind the other.
    """
    entry = _OVERHEAD + 4 * number
    if entry + 4 > size:
        return CUT, room, room
    at, held = number_at(chunk + entry), length // streams
    first = last = room
    for stream in range(streams):
        if at <= 0 or at > size - 4:
            return OUTSIDE, room, room
        encoded = number_at(chunk + at)
        at += 4
        if encoded <= 0 or encoded > size - at:
            return BLOCK_CUT, room, room
        place = room + stream * held
        if encoded == held and lies:
            place = chunk + at
        elif encoded == held:
            _copy(chunk + at, place, held)
        elif lz4:
            if call_lz4(lz4, chunk + at, place, encoded, held) != held:
                return NOT_DECODED, room, room
        elif call_zstd(zstd, place, held, chunk + at, encoded) != held:
            return NOT_DECODED, room, room
        if stream == 0:
            first = place
        last = place
        at += encoded
    return DONE, first, last


@part
def _kind(flags: Any, typesize: Any) -> Any:
    if flags & _BITS:
        return _BITS_OF_1 if typesize == 1 else _BITS_OF_2
    return _BYTES_OF_2 if flags & _SHUFFLED and typesize == 2 else _PLAIN


@part
def _put(
    kind: Any, low: Any, high: Any, length: Any, begin: Any, num: Any, row: Any, itemsize: Any, column: Any, wide: Any,
    to: Any, down: Any, mirror: Any, swap: Any, strip: Any,
) -> None:  # fmt: skip
    """`num` rows of a decoded block of `length` bytes, from byte `begin` on, to `to`: `wide` pixels of each from `column` on."""
    size, room = num * row, strip + STRIP_ROWS * row + SLACK
    at, across = column * itemsize, wide * itemsize
    if kind == _BYTES_OF_2 and itemsize == 2 and not swap and not mirror:
        for k in range(num):
            place = begin // 2 + k * row // 2 + column
            _weave(low + place, high + place, to + k * down, wide)
        return
    source = strip
    if kind == _BITS_OF_1:
        _gather(low + begin // 8, length // 8, strip, size)
    elif kind == _BITS_OF_2:
        half, apart = room + STRIP_ROWS * row // 2 + SLACK, length // 16
        _gather(low + begin // 16, apart, room, size // 2)
        _gather(low + length // 2 + begin // 16, apart, half, size // 2)
        _weave(room, half, strip, size // 2)
    elif kind == _BYTES_OF_2:
        _weave(low + begin // 2, high + begin // 2, strip, size // 2)
    elif swap:
        _copy(low + begin, strip, size)
    else:
        source = low + begin
    if swap:
        _swap_axes(source + at, row, itemsize, num, wide, to, down, mirror, room)
    elif mirror:
        for k in range(num):
            _reverse(source + k * row + at, to + k * down, across, itemsize)
    else:
        for k in range(num):
            _copy(source + k * row + at, to + k * down, across)


@part
def _put_chunk(
    lz4: Any, zstd: Any, chunk: Any, size: Any, raw: Any, total: Any, edge: Any, itemsize: Any, channels: Any, y: Any,
    height: Any, column: Any, wide: Any, to: Any, apart: Any, down: Any, mirror: Any, swap: Any, room: Any, strip: Any,
) -> Any:  # fmt: skip
    """Of one encoded chunk; the same, of a channel's [y, y + height) and of all channels, whose places are `apart` bytes apart."""
    row = edge * itemsize
    kind, block, streams, decoder = _PLAIN, total, 1, _LZ4
    held, flags, typesize = raw, 0, 1
    low = high = chunk
    if raw:
        if size != total:
            return RAW_LENGTH
    else:
        # blosc trusts its header: a shorter chunk would leave the last one's pixels, a longer one be read past its end.
        if size < _OVERHEAD or number_at(chunk + 4) != total or number_at(chunk + 12) != size:
            return HEADER
        flags, typesize = byte_at(chunk + 2), byte_at(chunk + 3)
        if byte_at(chunk) != 2:
            return FOR_BLOSC
        if flags & _STORED:
            if size != total + _OVERHEAD:
                return FOR_BLOSC
            held, low = True, chunk + _OVERHEAD
        else:
            block, decoder, kind = number_at(chunk + 8), flags >> _FORMAT, _kind(flags, typesize)
            has_decoder = (decoder == _LZ4 and lz4 != 0) or (decoder == _ZSTD and zstd != 0)
            known = has_decoder and (typesize == 1 or typesize == 2)
            if not known or block <= 0 or block > total or block % row or row % (64 * typesize if flags & _BITS else 8):
                return FOR_BLOSC
    current = -1
    rows_of_block = block // row
    for channel in range(channels):
        done = 0
        while done < height:
            at_row = channel * edge + y + done
            number = at_row // rows_of_block
            length = min(block, total - number * block)
            if number != current and not held:
                whole = length == block and block // typesize >= _LEAST_STREAM
                streams = typesize if whole and not flags & _WHOLE else 1
                lies = kind == _BYTES_OF_2 or (kind == _PLAIN and streams == 1)
                found, low, high = _decode(
                    lz4 if decoder == _LZ4 else 0, zstd, chunk, size, number, length, streams, lies, room
                )
                if found != DONE:
                    return found
                if streams == 1:
                    high = low + length // 2
            current = number
            inside = at_row - number * rows_of_block
            num = min(STRIP_ROWS, height - done, rows_of_block - inside)
            place = to + channel * apart
            if swap:
                place += (height - done - num if mirror else done) * itemsize
            else:
                place += done * down
            _put(
                kind,
                low,
                high,
                length,
                inside * row,
                num,
                row,
                itemsize,
                column,
                wide,
                place,
                down,
                mirror,
                swap,
                strip,
            )
            done += num
    return DONE


@compiled(
    "UniTuple(i8, 2)(i8, i8, Array(u1, 1, 'C', readonly=True), Array(u8, 2, 'C', readonly=True), i8, b1, i8, i8, i8, i8, i8, "
    "u1[:,:,:], b1, b1, u1[::1], u1[::1])"
)
def put_row(
    lz4: Any,
    zstd: Any,
    data: Any,
    entries: Any,
    first: Any,
    raw: Any,
    total: Any,
    edge: Any,
    itemsize: Any,
    y: Any,
    x: Any,
    out: Any,
    mirror: Any,
    swap: Any,
    room: Any,
    strip: Any,
) -> Any:
    """Chunks (C, edge, edge) of `total` bytes, neighbours in a row, from chunk `first` on, into `out`, u8[C, h, w * itemsize].

    (DONE, how many), or what is wrong with a chunk, or that blosc must decode it, and its number.
    lz4, zstd: addresses of LZ4_decompress_safe and ZSTD_decompress (0: there is none).
    data: encoded chunks, one behind the other; entries u64[n, 2]: (offset in the shard, bytes) of each.
    raw: nothing is encoded.  y, x: where in the first chunk the crop begins.
    swap: `out` is [C, w, h * itemsize], to be filled with axes swapped.  mirror: to be filled backwards along its last axis.
    room, strip: see `room_bytes` and `strip_bytes`.
    """
    channels = out.shape[0]
    width, height = out.shape[1], out.shape[2] // itemsize
    if not swap:
        width, height = out.shape[2] // itemsize, out.shape[1]
    apart, down = out.strides[0], out.strides[1]
    source, target = np.int64(data.ctypes.data), np.int64(out.ctypes.data)
    room_at, strip_at = np.int64(room.ctypes.data), np.int64(strip.ctypes.data)
    at: Any = 0
    done, column = 0, x
    for number in range(len(entries)):
        size, wide = np.int64(entries[number, 1]), min(edge - column, width - done)
        if size < 0 or size > len(data) - at:
            return CUT, number
        if number >= first:
            if swap:
                to = target + done * down
            else:
                to = target + (width - done - wide if mirror else done) * itemsize
            found = _put_chunk(
                lz4, zstd, source + at, size, raw, total, edge, itemsize, channels, y, height, column, wide, to, apart,
                down, mirror, swap, room_at, strip_at,
            )  # fmt: skip
            if found != DONE:
                return found, number
        at, done, column = at + size, done + wide, 0
    return DONE, len(entries)


def room_bytes(total: int) -> int:
    """For a decoded block of a chunk of `total` bytes."""
    return total + SLACK


def strip_bytes(row: int) -> int:
    """For a strip of rows of `row` bytes, and twice the same for what is half done."""
    return 3 * (STRIP_ROWS * row + SLACK) + 32 * STRIP_ROWS * 2
