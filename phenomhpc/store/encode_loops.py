"""Compiled code on the way into a shard: chunks cut out of a field, their bytes put apart, and LZ4.

blosc's byte shuffle puts the low bytes of all elements first, then the high ones.  Cut by NumPy and shuffled by blosc, each pixel
is moved twice; here it is read where it lies and written where LZ4 looks for it.

LZ4 of high bytes, which are nearly all matches one behind the other, is a chain: where a match ends says what is looked up next,
and the processor waits.  So two chunks go through it at the same time, step by step, which takes five sixths of the time.
What LZ4_compress_fast of LZ4 1.9 and 1.10 finds in a stream of 64 KiB and more (Y. Collet's lz4.c, LZ4_compress_generic with
limited output and a table of 32-bit places) is what is found here, for the same bytes.

A block of LZ4 (lz4_Block_format.md) is sequences: a token (number of literals, length of the match less four: four bits each),
more of the first number in bytes of 255 and a last one, literals, how far back the match is (16 bits), more of the second number.

Everything is an address here, or a place in a stream of `size` bytes; callers see to it that a chunk lies within a field.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from phenomhpc.compiled import compiled, inlined, part
from phenomhpc.store.vectors import (
    apart,
    byte_at,
    call_lz4_fast,
    copy_1,
    copy_8,
    copy_32,
    hash_of_5,
    number_at,
    put_1,
    put_2,
    put_4,
    same_of_16,
    unweave_32,
)

COMPILED_WITH = "7c030cfad12aa86e"
"""The beginning of vectors.py's sha256, as a test demands: with another one this file is another, and numba compiles it anew."""

# Pixels that are taken at once; a row of a chunk has a whole number of them.
LANES = 32
# What blosc puts before a chunk; with where its one block begins, and the length of that one's first stream.
OVERHEAD, HEAD = 16, 24
# Version 2 of the format, version 1 of LZ4's; byte shuffle and LZ4; bytes of an element.
_FLAGS = 2 | 1 << 8 | 0x21 << 16 | 2 << 24

# Shorter streams have a table of another kind, and are left to LZ4 itself.
LEAST_BYTES = 65536 + 11
TABLE_ENTRIES = 2**12
# Streams that are worked on: of high bytes, encoded and low of two chunks.
WORK_STREAMS = 6
# The last bytes of a stream are literals, and no match begins in the last twelve.
_LAST_LITERALS, _NO_MATCH = 5, 12
_LEAST_MATCH, _FARTHEST = 4, 65535
_IN_TOKEN = 15
# After so many (2^6) tries in vain, the places that are tried lie one further apart; they begin with `acceleration`.
_PATIENCE_BITS = 6


@part
def _copy(source: Any, to: Any, num: Any) -> None:
    at: Any = 0
    while at + 32 <= num:
        copy_32(source + at, to + at)
        at += 32
    while at + 8 <= num:
        copy_8(source + at, to + at)
        at += 8
    while at < num:
        copy_1(source + at, to + at)
        at += 1


@part
def _put_length(to: Any, num: Any) -> Any:
    """What of a number is not in its token; where the next byte goes."""
    apart()
    num -= _IN_TOKEN
    while num >= 255:
        put_1(to, 255)
        to += 1
        num -= 255
    put_1(to, num)
    return to + 1


@part
def _same(source: Any, ip: Any, match: Any, end: Any) -> Any:
    """How many bytes from `ip` on are those from `match` on, before `end`."""
    begin = ip
    while ip + 16 <= end:
        num = same_of_16(source + ip, source + match)
        if num < 16:
            return ip - begin + num
        ip += 16
        match += 16
    while ip < end and byte_at(source + ip) == byte_at(source + match):
        ip += 1
        match += 1
    return ip - begin


@part
def _last_literals(source: Any, size: Any, anchor: Any, to: Any, end: Any) -> Any:
    """Where the block ends; 0: not before `end`."""
    apart()
    num = size - anchor
    if to + num + 1 + (num + 240) // 255 > end:
        return 0
    token = to
    to += 1
    if num >= _IN_TOKEN:
        put_1(token, _IN_TOKEN << 4)
        to = _put_length(to, num)
    else:
        put_1(token, num << 4)
    _copy(source + anchor, to, num)
    return to + num


@part
def _put_match(source: Any, size: Any, ip: Any, match: Any, token: Any, literals: Any, to: Any, end: Any) -> Any:
    """How long a match is, and where the next byte goes; 0: not before `end`."""
    apart()
    put_2(to, ip - match)
    to += 2
    num = _same(source, ip + _LEAST_MATCH, match + _LEAST_MATCH, size - _LAST_LITERALS)
    if to + _LAST_LITERALS + 1 + (num + 240) // 255 > end:
        return num, 0
    put_1(token, literals << 4 | min(num, _IN_TOKEN))
    return num + _LEAST_MATCH, _put_length(to, num) if num >= _IN_TOKEN else to


@inlined
def _look_up(source: Any, table: Any, ip: Any) -> Any:
    """Where the same four bytes were; -1: nowhere, or too far away."""
    entry = table + 4 * hash_of_5(source + ip)
    match = number_at(entry)
    put_4(entry, ip)
    return match if match + _FARTHEST >= ip and number_at(source + match) == number_at(source + ip) else -1


@part
def _search(source: Any, size: Any, table: Any, acceleration: Any, ip: Any, anchor: Any, to: Any, end: Any) -> Any:
    """Go on from `ip`, which no match is known for, to a match that follows one without literals between.

    anchor: where literals begin.  (The match's place, what it matches, where its token goes); or, at the end of the stream,
    (0, -1, where the block ends), with 0 for a block that did not end before `end`.
    """
    first_behind = size - _NO_MATCH + 1
    while True:
        ahead, step, patience = ip, 1, acceleration << _PATIENCE_BITS
        code = hash_of_5(source + ip)
        while True:
            ip = ahead
            ahead += step
            step = patience >> _PATIENCE_BITS
            patience += 1
            if ahead > first_behind:
                return 0, -1, _last_literals(source, size, anchor, to, end)
            entry = table + 4 * code
            match = number_at(entry)
            code = hash_of_5(source + ahead)
            put_4(entry, ip)
            if match + _FARTHEST >= ip and number_at(source + match) == number_at(source + ip):
                break
        while ip > anchor and match > 0 and byte_at(source + ip - 1) == byte_at(source + match - 1):
            ip -= 1
            match -= 1
        num, token = ip - anchor, to
        to += 1
        if to + num + 3 + _LAST_LITERALS + num // 255 > end:
            return 0, -1, 0
        if num >= _IN_TOKEN:
            to = _put_length(to, num)
        _copy(source + anchor, to, num)
        num, to = _put_match(source, size, ip, match, token, min(num, _IN_TOKEN), to + num, end)
        ip += num
        if to == 0 or ip >= first_behind:
            return 0, -1, _last_literals(source, size, ip, to, end) if to else to
        put_4(table + 4 * hash_of_5(source + ip - 2), ip - 2)
        match = _look_up(source, table, ip)
        if match >= 0:
            return ip, match, to
        anchor = ip
        ip += 1


@part
def _begin(source: Any, size: Any, table: Any, acceleration: Any, to: Any, end: Any) -> Any:
    """The same for the beginning of a stream."""
    for entry in range(TABLE_ENTRIES):
        put_4(table + 4 * entry, 0)
    return _search(source, size, table, acceleration, 1, 0, to, end)


@inlined
def _step(source: Any, size: Any, table: Any, acceleration: Any, ip: Any, match: Any, to: Any, end: Any) -> Any:
    """Write a match without literals before it, and look for the next one; the same again."""
    num = same_of_16(source + ip + _LEAST_MATCH, source + match + _LEAST_MATCH)
    if num < 16 and ip + 20 + _LAST_LITERALS <= size and to + _LAST_LITERALS + 5 <= end:
        put_1(to, min(num, _IN_TOKEN))
        put_2(to + 1, ip - match)
        put_1(to + 3, 0)
        to += 3 + (num == _IN_TOKEN)
        ip += _LEAST_MATCH + num
    else:
        num, to = _put_match(source, size, ip, match, to, 0, to + 1, end)
        if to == 0:
            return 0, -1, to
        ip += num
    if ip > size - _NO_MATCH:
        return 0, -1, _last_literals(source, size, ip, to, end)
    put_4(table + 4 * hash_of_5(source + ip - 2), ip - 2)
    match = _look_up(source, table, ip)
    if match >= 0:
        return ip, match, to
    return _search(source, size, table, acceleration, ip + 1, ip, to, end)


@part
def _go_on(source: Any, size: Any, table: Any, acceleration: Any, ip: Any, match: Any, to: Any, end: Any) -> Any:
    """Where the block of one stream ends, as _search() says it, when the other one has ended."""
    apart()
    while match >= 0:
        ip, match, to = _step(source, size, table, acceleration, ip, match, to, end)
    return to


@part
def compress_pair(
    source_a: Any,
    source_b: Any,
    size: Any,
    acceleration: Any,
    to_a: Any,
    end_a: Any,
    to_b: Any,
    end_b: Any,
    tables: Any,
) -> Any:
    """What LZ4 makes of two streams of `size` bytes, LEAST_BYTES or more: how many bytes each took; 0: `end` came before.

    `end` is nearer than where LZ4 would not have to look.  Up to eight bytes behind a stream are read.
    """
    table_b, first_a, first_b = tables + 4 * TABLE_ENTRIES, to_a, to_b
    ip_a, match_a, to_a = _begin(source_a, size, tables, acceleration, to_a, end_a)
    ip_b, match_b, to_b = _begin(source_b, size, table_b, acceleration, to_b, end_b)
    while match_a | match_b >= 0:
        ip_a, match_a, to_a = _step(source_a, size, tables, acceleration, ip_a, match_a, to_a, end_a)
        ip_b, match_b, to_b = _step(source_b, size, table_b, acceleration, ip_b, match_b, to_b, end_b)
    to_a = _go_on(source_a, size, tables, acceleration, ip_a, match_a, to_a, end_a)
    to_b = _go_on(source_b, size, table_b, acceleration, ip_b, match_b, to_b, end_b)
    return max(to_a - first_a, 0), max(to_b - first_b, 0)


@part
def _cut(source: Any, plane_bytes: Any, row_bytes: Any, channels: Any, edge: Any, low: Any, high: Any) -> None:
    """The low and the high bytes of a chunk (C, edge, edge) of uint16 that begins at `source`."""
    at: Any = 0
    for channel in range(channels):
        for row in range(edge):
            begin = source + channel * plane_bytes + row * row_bytes
            for x in range(0, edge, LANES):
                unweave_32(begin + 2 * x, low + at + x, high + at + x)
            at += edge


@part
def _put_low(lz4: Any, low: Any, half: Any, acceleration: Any, spare: Any) -> Any:
    """Low bytes give way to what LZ4 makes of them, if that is less; its bytes."""
    size = call_lz4_fast(lz4, low, spare, half, half, acceleration)
    if size:
        _copy(spare, low, size)
        return size
    return half


@part
def _room(half: Any, low_size: Any) -> Any:
    """For high bytes: a chunk may be as long as blosc's header and what it holds."""
    return 2 * half + OVERHEAD - HEAD - low_size - 4


@part
def _finish(to: Any, half: Any, low_size: Any, encoded: Any, high_size: Any, high: Any) -> Any:
    """A frame whose low bytes are there; its bytes, 0: blosc stores this chunk as a whole.  high_size: 0 for a stored stream."""
    at = to + HEAD + low_size
    if high_size:
        _copy(encoded, at + 4, high_size)
    else:
        if _room(half, low_size) < half:
            return 0
        _copy(high, at + 4, half)
        high_size = half
    size = HEAD + low_size + 4 + high_size
    put_4(to, _FLAGS)
    put_4(to + 4, 2 * half)
    put_4(to + 8, 2 * half)
    put_4(to + 12, size)
    put_4(to + 16, HEAD - 4)
    put_4(to + 20, low_size)
    put_4(at, high_size)
    return size


@compiled("i8(i8, u1[::1], i8, i8, i8, i8, i8, i8, u1[:, ::1], u4[:, ::1], u1[::1], i8[::1])")
def encode_row(
    lz4: Any,
    planes: Any,
    first: Any,
    plane_bytes: Any,
    row_bytes: Any,
    channels: Any,
    edge: Any,
    acceleration: Any,
    work: Any,
    tables: Any,
    out: Any,
    sizes: Any,
) -> Any:
    """Frames of chunks (C, edge, edge) of uint16, neighbours in a row, one behind the other into `out`; how many.

    As many as `sizes` has places for, of which `out` has room for the longest, up to one that blosc stores as a whole.
    lz4: address of LZ4_compress_fast.  first: where in `planes` the first one begins; plane_bytes and row_bytes lie between
    channels and rows.  edge: a multiple of LANES.  work: u8[WORK_STREAMS, C * edge * edge], tables: u32[2, TABLE_ENTRIES].
    """
    half = channels * edge * edge
    source = np.int64(planes.ctypes.data) + first
    high_a, place = np.int64(work.ctypes.data), np.int64(tables.ctypes.data)
    high_b, low_b, spare, encoded_a, encoded_b = (
        high_a + half,
        high_a + 2 * half,
        high_a + 3 * half,
        high_a + 4 * half,
        high_a + 5 * half,
    )
    to, left = np.int64(out.ctypes.data), np.int64(len(out))
    most = 2 * half + OVERHEAD
    number: Any = 0
    while number < len(sizes) and left >= most:
        low_a = to + HEAD
        _cut(source, plane_bytes, row_bytes, channels, edge, low_a, high_a)
        low_size_a = _put_low(lz4, low_a, half, acceleration, spare)
        end_a = encoded_a + min(half, _room(half, low_size_a))
        low_size_b = 0
        if half >= LEAST_BYTES and number + 1 < len(sizes) and left >= 2 * most:
            source += 2 * edge
            _cut(source, plane_bytes, row_bytes, channels, edge, low_b, high_b)
            low_size_b = _put_low(lz4, low_b, half, acceleration, spare)
            end_b = encoded_b + min(half, _room(half, low_size_b))
            size_a, size_b = compress_pair(
                high_a, high_b, half, acceleration, encoded_a, end_a, encoded_b, end_b, place
            )
        else:
            size_a = call_lz4_fast(lz4, high_a, encoded_a, half, end_a - encoded_a, acceleration)
            size_b = size_a
        size = _finish(to, half, low_size_a, encoded_a, size_a, high_a)
        if size and low_size_b:
            sizes[number] = size
            number, to, left = number + 1, to + size, left - size
            _copy(low_b, to + HEAD, low_size_b)
            size = _finish(to, half, low_size_b, encoded_b, size_b, high_b)
        if not size:
            break
        sizes[number] = size
        number, to, left, source = number + 1, to + size, left - size, source + 2 * edge
    return number
