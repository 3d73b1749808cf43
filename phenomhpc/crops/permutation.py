"""A keyed permutation of 0..n-1 in O(1) memory: any position of any epoch at once.

A Feistel network over the smallest even number of bits that holds n, its round function Philox keyed by (seed, ORDER);
positions that fall outside n walk on along their cycle (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phenomhpc.philox import ORDER, philox

# Luby and Rackoff prove four; shuffles are no secrets, but tiny domains mix slowly.
ROUNDS = 8


def permute(seed: int, num: int, epoch: NDArray[np.uint64], position: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Image (i64[k], in 0..num-1) of each position (u64[k]) under the permutation of its epoch (u64[k])."""
    half_bits = max(1, (max(num - 1, 1).bit_length() + 1) // 2)
    value = position.astype(np.uint64)
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        value[outside] = _network(seed, half_bits, epoch[outside], value[outside])
        outside = value >= np.uint64(num)
    return value.astype(np.int64)


def _network(seed: int, half_bits: int, epoch: NDArray[np.uint64], value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask, shift = np.uint64(2**half_bits - 1), np.uint64(half_bits)
    left, right = value >> shift, value & mask
    for number in range(ROUNDS):
        words = philox(seed, ORDER, right, epoch * np.uint64(ROUNDS) + np.uint64(number))[:, 0]
        left, right = right, left ^ (words & mask)
    return (left << shift) | right
