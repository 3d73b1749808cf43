"""The compiled loop of `philox`, which imports it when first asked for many blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from phenomhpc.compiled import compiled, instruction

_FIRST, _SECOND = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_ROUNDS = 10


@instruction
def _high(typing: Any, a: Any, b: Any) -> Any:
    """The upper 64 bits of the product: one instruction, where halves of 32 bits take a dozen."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(value, wide) for value in arguments))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), generate


@compiled("void(u8, u8, u8[::1], u8[::1], u8[:,::1])")
def fill_blocks(key0: Any, key1: Any, index: Any, draw: Any, words: Any) -> None:
    """words u64[n, 4]: the block of each counter (index, draw, 0, 0), u64[n] each."""
    for k in range(len(index)):
        word0, word1, word2, word3 = index[k], draw[k], np.uint64(0), np.uint64(0)
        round0, round1 = key0, key1
        for _ in range(_ROUNDS):
            high0, low0 = _high(_FIRST, word0), _FIRST * word0
            high1, low1 = _high(_SECOND, word2), _SECOND * word2
            word0, word1 = high1 ^ word1 ^ round0, low1
            word2, word3 = high0 ^ word3 ^ round1, low0
            round0, round1 = round0 + _WEYL_0, round1 + _WEYL_1
        words[k, 0], words[k, 1], words[k, 2], words[k, 3] = word0, word1, word2, word3
