"""Compiled code that undoes blosc's shuffles and cuts a crop in one pass: only the rows that are wanted, straight into a batch.

What blosc's shuffles leave of n elements of s bytes is s planes of n bytes each (shuffle), or 8 s planes of n/8 bytes each, in
which bit j of byte k belongs to element 8 k + j (bitshuffle).  A plane keeps the order of the elements, so the rows of a crop
lie together in each of them, and no other row needs to be put together.

Bits are brought together by exchanging halves of words between planes (H. S. Warren, Hacker's Delight, 7-3: transposing a matrix of
8 x 8 bits, here 8 of them at once in words of 64 bits), then bytes by widening, 8 to 16 to 32 to 64 bits: each a loop that
becomes vector code.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from phenomhpc.compiled import compiled, part

# What became of the elements: nothing; planes of bytes of 2-byte elements; planes of bits of 1-byte and 2-byte elements.
PLAIN, BYTES_OF_2, BITS_OF_1, BITS_OF_2 = range(4)
# Rows that are put together before they are copied away: with all that is in between they stay in the first-level cache.
STRIP_ROWS = 32

_U64 = np.uint64
_NIBBLES, _PAIRS, _BITS = _U64(0x0F0F0F0F0F0F0F0F), _U64(0x3333333333333333), _U64(0x5555555555555555)
_BYTES, _SHORTS, _HALF = _U64(0x00FF00FF00FF00FF), _U64(0x0000FFFF0000FFFF), _U64(0x00000000FFFFFFFF)
_1, _2, _4, _8, _16, _32 = _U64(1), _U64(2), _U64(4), _U64(8), _U64(16), _U64(32)


@part
def _swapped(low: Any, high: Any, shift: Any, mask: Any) -> Any:
    """The two words with the upper half (of each of the pieces that `mask` shows) of `low` and the lower of `high` exchanged."""
    t = ((low >> shift) ^ high) & mask
    return low ^ (t << shift), high ^ t


@part
def _transposed(
    a0: Any,
    a1: Any,
    a2: Any,
    a3: Any,
    a4: Any,
    a5: Any,
    a6: Any,
    a7: Any,
    s0: Any,
    m0: Any,
    s1: Any,
    m1: Any,
    s2: Any,
    m2: Any,
) -> Any:
    """Eight words as the rows of a matrix of eight pieces each, transposed in three exchanges."""
    a0, a4 = _swapped(a0, a4, s0, m0)
    a1, a5 = _swapped(a1, a5, s0, m0)
    a2, a6 = _swapped(a2, a6, s0, m0)
    a3, a7 = _swapped(a3, a7, s0, m0)
    a0, a2 = _swapped(a0, a2, s1, m1)
    a1, a3 = _swapped(a1, a3, s1, m1)
    a4, a6 = _swapped(a4, a6, s1, m1)
    a5, a7 = _swapped(a5, a7, s1, m1)
    a0, a1 = _swapped(a0, a1, s2, m2)
    a2, a3 = _swapped(a2, a3, s2, m2)
    a4, a5 = _swapped(a4, a5, s2, m2)
    a6, a7 = _swapped(a6, a7, s2, m2)
    return a0, a1, a2, a3, a4, a5, a6, a7


@part
def _gather_bits(planes: Any, at: Any, apart: Any, num: Any, lanes: Any) -> None:
    """Words [at, at + num) of eight planes of bits, which lie `apart` words from each other, into lanes: byte k of lane
    j is the byte of element 8 k + j."""
    p0, p1 = planes[at : at + num], planes[at + apart : at + apart + num]
    p2, p3 = planes[at + 2 * apart : at + 2 * apart + num], planes[at + 3 * apart : at + 3 * apart + num]
    p4, p5 = planes[at + 4 * apart : at + 4 * apart + num], planes[at + 5 * apart : at + 5 * apart + num]
    p6, p7 = planes[at + 6 * apart : at + 6 * apart + num], planes[at + 7 * apart : at + 7 * apart + num]
    q0, q1, q2, q3 = lanes[0], lanes[1], lanes[2], lanes[3]
    q4, q5, q6, q7 = lanes[4], lanes[5], lanes[6], lanes[7]
    for g in range(num):
        q0[g], q1[g], q2[g], q3[g], q4[g], q5[g], q6[g], q7[g] = _transposed(
            p0[g], p1[g], p2[g], p3[g], p4[g], p5[g], p6[g], p7[g], _4, _NIBBLES, _2, _PAIRS, _1, _BITS
        )


@part
def _weave_8(lanes: Any, two: Any, four: Any, words: Any, num: Any) -> None:
    """words[k]: byte k of lanes 0 to 7, u8[8, num]."""
    for i in range(4):
        low, high, to = lanes[2 * i], lanes[2 * i + 1], two[i]
        for k in range(num):
            to[k] = np.uint16(low[k]) | (np.uint16(high[k]) << np.uint16(8))
    for i in range(2):
        low_2, high_2, to_4 = two[2 * i], two[2 * i + 1], four[i]
        for k in range(num):
            to_4[k] = np.uint32(low_2[k]) | (np.uint32(high_2[k]) << np.uint32(16))
    low_4, high_4 = four[0], four[1]
    for k in range(num):
        words[k] = np.uint64(low_4[k]) | (np.uint64(high_4[k]) << _32)


@part
def _weave_16(lanes: Any, two: Any, four: Any, words: Any, num: Any) -> None:
    """words[2 k], words[2 k + 1]: eight elements of two bytes, the low ones from lanes 0 to 7, the high ones from 8 to 15."""
    for i in range(8):
        low, high, to = lanes[i], lanes[i + 8], two[i]
        for k in range(num):
            to[k] = np.uint16(low[k]) | (np.uint16(high[k]) << np.uint16(8))
    for i in range(4):
        low_2, high_2, to_4 = two[2 * i], two[2 * i + 1], four[i]
        for k in range(num):
            to_4[k] = np.uint32(low_2[k]) | (np.uint32(high_2[k]) << np.uint32(16))
    a, b, c, d = four[0], four[1], four[2], four[3]
    for k in range(num):
        words[2 * k] = np.uint64(a[k]) | (np.uint64(b[k]) << _32)
        words[2 * k + 1] = np.uint64(c[k]) | (np.uint64(d[k]) << _32)


@part
def _mirror(words: Any, across: Any, num: Any, itemsize: Any) -> None:
    """Turn round, in place, each of `num` rows of `across` words."""
    for k in range(num):
        row = words[k * across : (k + 1) * across]
        for j in range((across + 1) // 2):
            a, b = row[j], row[_U64(across - 1 - j)]
            a, b = (a << _32) | (a >> _32), (b << _32) | (b >> _32)
            a, b = ((a & _SHORTS) << _16) | ((a >> _16) & _SHORTS), ((b & _SHORTS) << _16) | ((b >> _16) & _SHORTS)
            if itemsize == 1:
                a, b = ((a & _BYTES) << _8) | ((a >> _8) & _BYTES), ((b & _BYTES) << _8) | ((b >> _8) & _BYTES)
            row[j], row[_U64(across - 1 - j)] = b, a


@part
def _transpose_bytes(words: Any, across: Any, columns: Any) -> None:
    """STRIP_ROWS rows of `across` words of eight bytes to columns[8 across, STRIP_ROWS / 8]."""
    for g in range(STRIP_ROWS // 8):
        for q in range(across):
            at = 8 * g * across + q
            a0, a1, a2, a3, a4, a5, a6, a7 = _transposed(
                words[at], words[at + across], words[at + 2 * across], words[at + 3 * across], words[at + 4 * across],
                words[at + 5 * across], words[at + 6 * across], words[at + 7 * across],
                _32, _HALF, _16, _SHORTS, _8, _BYTES,
            )  # fmt: skip
            to = columns[8 * q : 8 * q + 8]
            to[0, g], to[1, g], to[2, g], to[3, g] = a0, a1, a2, a3
            to[4, g], to[5, g], to[6, g], to[7, g] = a4, a5, a6, a7


@part
def _transpose_shorts(words: Any, across: Any, columns: Any) -> None:
    """STRIP_ROWS rows of `across` words of four elements of two bytes to columns[4 across, STRIP_ROWS / 4]."""
    for g in range(STRIP_ROWS // 4):
        for q in range(across):
            at = 4 * g * across + q
            a0, a1, a2, a3 = words[at], words[at + across], words[at + 2 * across], words[at + 3 * across]
            a0, a2 = _swapped(a0, a2, _32, _HALF)
            a1, a3 = _swapped(a1, a3, _32, _HALF)
            a0, a1 = _swapped(a0, a1, _16, _SHORTS)
            a2, a3 = _swapped(a2, a3, _16, _SHORTS)
            to = columns[4 * q : 4 * q + 4]
            to[0, g], to[1, g], to[2, g], to[3, g] = a0, a1, a2, a3


@part
def _transpose_lanes(lanes: Any, across: Any, columns: Any, mirror: Any) -> None:
    """STRIP_ROWS rows, still in lanes of `across` words a row, to columns[64 across, STRIP_ROWS / 8]: bytes are transposed where
    they lie, which spares the weaving.  mirror: the last row first."""
    for j in range(8):
        lane = lanes[j]
        for g in range(STRIP_ROWS // 8):
            first, step = (STRIP_ROWS - 1 - 8 * g, -1) if mirror else (8 * g, 1)
            for w in range(across):
                at, row = first * across + w, step * across
                a0, a1, a2, a3, a4, a5, a6, a7 = _transposed(
                    lane[at], lane[at + row], lane[at + 2 * row], lane[at + 3 * row], lane[at + 4 * row],
                    lane[at + 5 * row], lane[at + 6 * row], lane[at + 7 * row], _32, _HALF, _16, _SHORTS, _8, _BYTES,
                )  # fmt: skip
                to = columns[64 * w + j : 64 * w + j + 57]
                to[0, g], to[8, g], to[16, g], to[24, g] = a0, a1, a2, a3
                to[32, g], to[40, g], to[48, g], to[56, g] = a4, a5, a6, a7


@part
def _copy(source: Any, column: Any, out: Any) -> None:
    """source[:, column:] to `out`, as far as that goes."""
    for k in range(out.shape[0]):
        line, row = out[k], source[k, column : column + out.shape[1]]
        for j in range(len(line)):
            line[j] = row[j]


@part
def _straighten(
    kind: Any,
    planes: Any,
    start: Any,
    size: Any,
    inside: Any,
    across: Any,
    num: Any,
    lanes: Any,
    two: Any,
    four: Any,
    words: Any,
) -> None:
    """`num` rows of `across` words each into `words`, from row `inside` on of the block of `size` bytes that begins at `start`.

    lanes, two, four: room for what is half done.
    """
    source = planes.view(np.uint64)
    if kind in (BITS_OF_1, BITS_OF_2):
        element = 2 if kind == BITS_OF_2 else 1
        n, apart = num * across // element, size // 64 // element
        at = (start + inside * across // element) // 8
        for byte in range(element):
            _gather_bits(source, at + byte * 8 * apart, apart, n // 8, lanes[8 * byte : 8 * byte + 8])
        if kind == BITS_OF_1:
            _weave_8(lanes.view(np.uint8), two, four, words, n)
        else:
            _weave_16(lanes.view(np.uint8), two, four, words, n)
    elif kind == BYTES_OF_2:
        at, n = start + inside * across * 4, num * across * 4
        low, high = planes[at : at + n], planes[at + size // 2 : at + size // 2 + n]
        shorts = words.view(np.uint16)
        for k in range(n):
            shorts[k] = np.uint16(low[k]) | (np.uint16(high[k]) << np.uint16(8))
    else:
        at = start // 8 + inside * across
        words[: num * across] = source[at : at + num * across]


@compiled("void(i8, u1[::1], i8, i8, i8, i8, i8, i8, u1[:,:,:], b1, b1)")
def place(
    kind: Any,
    planes: Any,
    block: Any,
    total: Any,
    edge: Any,
    itemsize: Any,
    first: Any,
    column: Any,
    out: Any,
    mirror: Any,
    swap: Any,
) -> None:
    """Part of a chunk (C, edge, edge) into `out`, u8[C, h, w * itemsize], a view of the batch as bytes.

    planes: what decoding left, `total` bytes in blocks of `block` bytes (the last may be shorter), shuffled as `kind` says;
    a block has whole rows, and a row whole words of each plane.  first, column: where in the chunk the part begins.
    swap: `out` is [C, w, h * itemsize], to be filled with axes swapped.  mirror: to be filled backwards along its last axis.
    """
    channels, height = out.shape[0], out.shape[2] // itemsize if swap else out.shape[1]
    row_bytes = edge * itemsize
    block_rows, across = block // row_bytes, row_bytes // 8
    lanes = np.empty((16, STRIP_ROWS * across // 8), np.uint64)
    two = np.empty((8, STRIP_ROWS * across), np.uint16)
    four = np.empty((4, STRIP_ROWS * across), np.uint32)
    words = np.empty(STRIP_ROWS * across, np.uint64)
    rows = words.view(np.uint8).reshape(STRIP_ROWS, row_bytes)
    down = STRIP_ROWS * itemsize // 8
    columns = np.empty((edge, down), np.uint64)
    column_bytes = columns.view(np.uint8).reshape(edge, STRIP_ROWS * itemsize)
    at_byte = row_bytes - column * itemsize - out.shape[2] if mirror and not swap else column * itemsize
    for c in range(channels):
        done = 0
        while done < height:
            place_row = c * edge + first + done
            number = place_row // block_rows
            inside = place_row - number * block_rows
            num = min(STRIP_ROWS, height - done, block_rows - inside)
            start, size = number * block, min(block, total - number * block)
            if swap and kind == BITS_OF_1 and itemsize == 1:
                at = (start + inside * across) // 8
                _gather_bits(planes.view(np.uint64), at, size // 64, num * across // 8, lanes[:8])
                _transpose_lanes(lanes, across // 8, columns, mirror)
            else:
                _straighten(kind, planes, start, size, inside, across, num, lanes, two, four, words)
                if swap and itemsize == 1:
                    _transpose_bytes(words, across, columns)
                elif swap:
                    _transpose_shorts(words, across, columns)
                if mirror:
                    turned = columns.reshape(-1) if swap else words
                    _mirror(turned, down if swap else across, edge if swap else num, itemsize)
            if swap:
                skipped = STRIP_ROWS - num if mirror else 0
                begin = height - done - num if mirror else done
                to = out[c, :, begin * itemsize : (begin + num) * itemsize]
                _copy(column_bytes[column:], skipped * itemsize, to)
            else:
                _copy(rows, at_byte, out[c, done : done + num])
            done += num
