"""crc32c by compiled code.

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

from phenomhpc.compiled import compiled

# Bytes of each of the three stretches.
STRETCH = 2048
_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_I64 = ir.IntType(64)
_BYTES = types.Array(types.u1, 1, "C")

_declared: Any = cgutils.get_or_insert_function

HAS_CRC = bool(binding.get_host_cpu_features().get("sse4.2"))


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any, element: Any) -> Any:
    """To `element`s that begin at byte `at` of an array of bytes."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), element.as_pointer())


def _crc_of_8_code(typing: Any, crc: Any, data: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        crc, data, at = arguments
        kind, name = ir.FunctionType(_I64, [_I64, _I64]), "llvm.x86.sse42.crc32.64.64"
        instruction = _declared(builder.module, kind, name)
        word = builder.load(_pointer(context, builder, _BYTES, data, at, _I64), align=1)
        return builder.call(instruction, [crc, word])

    return types.u8(types.u8, _BYTES, types.i8), generate


_crc_of_8: Any = intrinsic(_crc_of_8_code)


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
