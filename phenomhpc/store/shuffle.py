"""Compiled code on the way into a shard: a chunk cut out of a field and its bytes put apart in one pass, and crc32c.

blosc's byte shuffle puts the low bytes of all elements first, then the high ones.  Cut by NumPy and shuffled by blosc, each pixel
is moved twice; here it is read where it lies and written where LZ4 looks for it.  What is done with a vector of pixels is said in
LLVM's words: before a loop over the 128 pixels of a row its compiler looks twice whether the rows overlap, which takes longer.

crc32c of eight bytes is one instruction of x86-64 whose result is there three cycles later, so three stretches of the data are
summed at once and brought together: the sum of a followed by b is that of a, moved over the length of b, xor that of b begun with
0 (M. Adler's crc32_combine in zlib; V. Gopal et al., Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction, 2011).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from phenomhpc.compiled import compiled, part

# Pixels that are taken at once; a row of a chunk has a whole number of them.
LANES = 32
# What blosc puts before a chunk; with where its one block begins, and the length of that one's first stream.
OVERHEAD, HEAD = 16, 24
# Version 2 of the format, version 1 of LZ4's; byte shuffle and LZ4; bytes of an element.
FLAGS = 2 | 1 << 8 | 0x21 << 16 | 2 << 24
# Bytes of each of the three stretches.
STRETCH = 2048
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_I8, _I32, _I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_BYTES = types.Array(types.u1, 1, "C")

_declared: Any = cgutils.get_or_insert_function

HAS_CRC = bool(binding.get_host_cpu_features().get("sse4.2"))


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, element: Any) -> Any:
    """To `element`s that begin at byte `at` of an array of bytes."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), element.as_pointer())


def _put_apart_code(typing: Any, source: Any, at: Any, low: Any, high: Any, to: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, at, low, high, to = arguments
        pixels, half = ir.VectorType(_I8, 2 * LANES), ir.VectorType(_I8, LANES)
        read = builder.load(_pointer(context, builder, _BYTES, source, at, pixels), align=1)
        for first, out in ((0, low), (1, high)):
            places = ir.Constant(ir.VectorType(_I32, LANES), [2 * lane + first for lane in range(LANES)])
            chosen = builder.shuffle_vector(read, ir.Constant(pixels, ir.Undefined), places)
            builder.store(chosen, _pointer(context, builder, _BYTES, out, to, half), align=1)
        return context.get_dummy_value()

    return types.void(_BYTES, types.i8, _BYTES, _BYTES, types.i8), generate


def _crc_of_8_code(typing: Any, crc: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        crc, data, at = arguments
        kind, name = ir.FunctionType(_I64, [_I64, _I64]), "llvm.x86.sse42.crc32.64.64"
        instruction = _declared(builder.module, kind, name)
        word = builder.load(_pointer(context, builder, _BYTES, data, at, _I64), align=1)
        return builder.call(instruction, [crc, word])

    return types.u8(types.u8, _BYTES, types.i8), generate


def _call_lz4_code(typing: Any, function: Any, source: Any, to: Any, size: Any, capacity: Any, effort: Any) -> Any:
    """int LZ4_compress_fast(source, to, size, capacity, acceleration), at the address `function`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place, *given = arguments
        kind = ir.FunctionType(_I32, [_I64, _I64, _I32, _I32, _I32])
        numbers = [builder.trunc(value, _I32) for value in given[2:]]
        found = builder.call(builder.inttoptr(place, kind.as_pointer()), [*given[:2], *numbers])
        return builder.sext(found, _I64)

    return types.int64(*[types.int64] * 6), generate


_call_lz4: Any = intrinsic(_call_lz4_code)
_put_apart: Any = intrinsic(_put_apart_code)
_crc_of_8: Any = intrinsic(_crc_of_8_code)


@part
def _cut(
    planes: Any, first: Any, plane_bytes: Any, row_bytes: Any, channels: Any, edge: Any, low: Any, high: Any
) -> None:
    """A chunk (C, edge, edge) of uint16 into its low and its high bytes, u8[C * edge * edge] each; edge: a multiple of LANES.

    first: where in `planes` it begins; plane_bytes and row_bytes lie between its channels and its rows.
    """
    at = 0
    for channel in range(channels):
        for row in range(edge):
            begin = first + channel * plane_bytes + row * row_bytes
            for x in range(0, edge, LANES):
                _put_apart(planes, begin + 2 * x, low, high, at + x)
            at += edge


@part
def _put_number(out: Any, at: Any, number: Any) -> None:
    """i32, little-endian."""
    for byte in range(4):
        out[at + byte] = number >> 8 * byte & 255


@compiled("i8(i8, u1[::1], i8, i8, i8, i8, i8, i8, u1[::1], u1[::1], u1[::1], i8[::1])")
def encode_row(
    lz4: Any,
    planes: Any,
    first: Any,
    plane_bytes: Any,
    row_bytes: Any,
    channels: Any,
    edge: Any,
    acceleration: Any,
    high: Any,
    spare: Any,
    out: Any,
    sizes: Any,
) -> Any:
    """Frames of chunks (C, edge, edge) of uint16, neighbours in a row, one behind the other into `out`; how many.

    As many as `sizes` has places for, of which `out` has room for the longest, up to one that blosc stores as a whole.
    lz4: address of LZ4_compress_fast.  first: where in `planes` the first one begins; plane_bytes and row_bytes lie between
    channels and rows.  high, spare: u8[C * edge * edge] each, to work in.  edge: a multiple of LANES.
    """
    half = channels * edge * edge
    source, target, other = np.int64(high.ctypes.data), np.int64(out.ctypes.data), np.int64(spare.ctypes.data)
    begin: Any = 0
    for number in range(len(sizes)):
        if len(out) - begin < 2 * half + OVERHEAD:
            return number
        at = begin + HEAD
        low = out[at : at + half]
        _cut(planes, first + 2 * edge * number, plane_bytes, row_bytes, channels, edge, low, high)
        low_size = _call_lz4(lz4, target + at, other, half, half, acceleration)
        if low_size:
            low[:low_size] = spare[:low_size]
        else:
            low_size = half
        at += low_size + 4
        room = begin + 2 * half + OVERHEAD - at
        high_size = _call_lz4(lz4, source, target + at, half, min(half, room), acceleration)
        if not high_size:
            if room < half:
                return number
            out[at : at + half] = high
            high_size = half
        size = at + high_size - begin
        for place, value in (
            (0, FLAGS),
            (4, 2 * half),
            (8, 2 * half),
            (12, size),
            (16, HEAD - 4),
            (20, low_size),
            (at - begin - 4, high_size),
        ):
            _put_number(out, begin + place, value)
        sizes[number] = size
        begin += size
    return len(sizes)


def _moved(num_bytes: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """u32[4, 256]: what byte k of a sum with value v becomes when `num_bytes` zeros are summed behind it."""

    def times(matrix: list[int], vector: int) -> int:
        product = 0
        for bit in range(32):
            if vector >> bit & 1:
                product ^= matrix[bit]
        return product

    # A matrix over GF(2), as its 32 columns: one zero bit, then squared as often as it takes (num_bytes is a power of two).
    matrix = [_POLYNOMIAL, *(1 << bit for bit in range(31))]
    for _ in range((8 * num_bytes).bit_length() - 1):
        matrix = [times(matrix, column) for column in matrix]
    return np.array([[times(matrix, value << 8 * byte) for value in range(256)] for byte in range(4)], np.uint32)


MOVED = _moved(STRETCH)
# Of what is left of three stretches, and of the last bytes.
SINGLE = _moved(1)[0]

if HAS_CRC:
    _U64, _255 = np.uint64, np.uint64(255)
    _8, _16, _24 = np.uint64(8), np.uint64(16), np.uint64(24)

    @compiled("u4(u4, u1[::1], u4[:, ::1], u4[::1])")
    def crc32c(crc: Any, data: Any, moved: Any, single: Any) -> Any:
        """crc32c of what `crc` is the sum of, followed by `data`.  moved, single: MOVED and SINGLE."""
        a, at = _U64(~crc), 0
        while at + 3 * STRETCH <= len(data):
            b, c = _U64(0), _U64(0)
            for k in range(at, at + STRETCH, 8):
                a = _crc_of_8(a, data, k)
                b = _crc_of_8(b, data, k + STRETCH)
                c = _crc_of_8(c, data, k + 2 * STRETCH)
            a = _U64(moved[0, a & _255] ^ moved[1, a >> _8 & _255] ^ moved[2, a >> _16 & _255] ^ moved[3, a >> _24]) ^ b
            a = _U64(moved[0, a & _255] ^ moved[1, a >> _8 & _255] ^ moved[2, a >> _16 & _255] ^ moved[3, a >> _24]) ^ c
            at += 3 * STRETCH
        while at + 8 <= len(data):
            a = _crc_of_8(a, data, at)
            at += 8
        while at < len(data):
            a = _U64(single[(a ^ _U64(data[at])) & _255]) ^ (a >> _8)
            at += 1
        return ~np.uint32(a)
