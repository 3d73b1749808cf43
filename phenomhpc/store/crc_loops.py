"""crc32c by compiled code.

crc32c of eight bytes is one instruction of x86-64 whose result is there three cycles later, so three stretches of the data are
summed at once and brought together: the sum of a followed by b is that of a, moved over the length of b, xor that of b begun with
0 (M. Adler's crc32_combine in zlib; V. Gopal et al., Fast CRC Computation for iSCSI Polynomial Using CRC32 Instruction, 2011).

Where vectors of 64 bytes can be multiplied without carries, the data are folded: 16 bytes are a polynomial L x^64 + H, and as a
remainder the same as L (x^(d + 64) mod P) + H (x^d mod P) d bits later, of 80 bits, which is added to what stands there.  (V. Gopal
et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction, 2009.)
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from phenomhpc.compiled import compiled, part

# Bytes of each of the three stretches.
STRETCH = 2048
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BYTES = types.Array(types.u1, 1, "C")

_declared: Any = cgutils.get_or_insert_function
_variable: Any = cgutils.alloca_once_value

_features = binding.get_host_cpu_features()
HAS_CRC = bool(_features.get("sse4.2"))
HAS_FOLD = HAS_CRC and all(_features.get(name) for name in ("avx512f", "pclmul", "vpclmulqdq"))
# Bytes that are folded at once: four vectors.
FOLDED = 256


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, element: Any) -> Any:
    """To `element`s that begin at byte `at` of an array of bytes."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), element.as_pointer())


def _crc_call(builder: Any, crc: Any, word: Any) -> Any:
    kind = ir.FunctionType(_I64, [_I64, _I64])
    return builder.call(_declared(builder.module, kind, "llvm.x86.sse42.crc32.64.64"), [crc, word])


def _crc_of_8_code(typing: Any, crc: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        crc, data, at = arguments
        return _crc_call(builder, crc, builder.load(_pointer(context, builder, _BYTES, data, at, _I64), align=1))

    return types.u8(types.u8, _BYTES, types.i8), generate


def _power(exponent: int) -> int:
    """x^exponent mod P, bits reversed as in a sum."""
    found = 1 << 31
    for _ in range(exponent):
        found = found >> 1 ^ (_POLYNOMIAL if found & 1 else 0)
    return found


def _folded_code(typing: Any, crc: Any, data: Any, num_bytes: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        crc, data, num_bytes = arguments
        wide = ir.VectorType(_I64, 8)

        def number(value: int) -> Any:
            return ir.Constant(_I64, value)

        def load(at: Any) -> Any:
            return builder.load(_pointer(context, builder, _BYTES, data, at, wide), align=1)

        def moved(value: Any, distance: int, other: Any) -> Any:
            """`value` over `distance` bytes, added to `other`.  A product has one factor x more, a constant 32."""
            kind = value.type
            name = "llvm.x86.pclmulqdq.512" if kind is wide else "llvm.x86.pclmulqdq"
            multiply = _declared(builder.module, ir.FunctionType(kind, [kind, kind, ir.IntType(8)]), name)
            powers = [_power(8 * distance + 31), _power(8 * distance - 33)]
            by = ir.Constant(kind, powers * (kind.count // 2))
            for halves in (0x00, 0x11):
                other = builder.xor(other, builder.call(multiply, [value, by, ir.Constant(ir.IntType(8), halves)]))
            return other

        sums = [_variable(builder, load(number(64 * place))) for place in range(4)]
        begun = builder.insert_element(ir.Constant(wide, None), crc, number(0))
        builder.store(builder.xor(builder.load(sums[0]), begun), sums[0])
        with cgutils.for_range_slice(builder, number(FOLDED), num_bytes, number(FOLDED), _I64) as (at, _):
            for place, held in enumerate(sums):
                builder.store(moved(builder.load(held), FOLDED, load(builder.add(at, number(64 * place)))), held)
        one, *others = (builder.load(held) for held in sums)
        for other in others:
            one = moved(one, 64, other)
        lanes = [
            builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, 2), [lane, lane + 1]))
            for lane in (0, 2, 4, 6)
        ]
        last = lanes[0]
        for lane in lanes[1:]:
            last = moved(last, 16, lane)
        low, high = (builder.extract_element(last, number(half)) for half in range(2))
        return _crc_call(builder, _crc_call(builder, number(0), low), high)

    return types.u8(types.u8, _BYTES, types.i8), generate


_crc_of_8: Any = intrinsic(_crc_of_8_code)
_folded: Any = intrinsic(_folded_code)


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

    @part
    def _rest(a: Any, at: Any, data: Any, single: Any) -> Any:
        while at + 8 <= len(data):
            a = _crc_of_8(a, data, at)
            at += 8
        while at < len(data):
            a = _U64(single[(a ^ _U64(data[at])) & _255]) ^ (a >> _8)
            at += 1
        return ~np.uint32(a)

    def by_stretches(crc: Any, data: Any, moved: Any, single: Any) -> Any:
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
        return _rest(a, at, data, single)

    def by_folding(crc: Any, data: Any, moved: Any, single: Any) -> Any:
        """The same, in half the time."""
        a, num_bytes = _U64(~crc), len(data) // FOLDED * FOLDED
        if num_bytes:
            a = _folded(a, data, num_bytes)
        return _rest(a, num_bytes, data, single)

    SIGNATURE = "u4(u4, u1[::1], u4[:, ::1], u4[::1])"
    crc32c = compiled(SIGNATURE)(by_folding if HAS_FOLD else by_stretches)
