"""A keyed permutation of 0..n-1 in O(1) memory: any position of any epoch at once.

A Feistel network over just the bits that hold n, halves of a and b bits changed in turn.  Its round keys come from Philox
by (seed, purpose, epoch), its round function is a 64-bit finaliser, so that a position costs no Philox of its own.  Positions
that fall outside n walk on along their cycle, less than twice on average.

Sources: Luby and Rackoff 1988 (the network); Black and Rogaway 2002, "Ciphers with arbitrary finite domains" (the walk);
Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser, variant 13 of Stafford).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from phenomhpc.philox import ORDER, philox

U64 = NDArray[np.uint64]

# Luby and Rackoff prove four to suffice for long words; short ones mix more slowly.
ROUNDS = 12
_WORDS = 4
_30, _27, _31 = np.uint64(30), np.uint64(27), np.uint64(31)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def permute(seed: int, num: int, epoch: U64, position: U64, purpose: int = ORDER) -> NDArray[np.int64]:
    """Image (i64[k], in 0..num-1) of each position (u64[k], below num) under the permutation of its epoch (u64[k])."""
    keys = _round_keys(seed, epoch, purpose)
    bits = max(2, (num - 1).bit_length())
    value = position.astype(np.uint64)
    outside = np.arange(len(value))
    while len(outside):
        value[outside] = _network(bits, keys[:, outside], value[outside])
        outside = outside[value[outside] >= np.uint64(num)]
    return value.astype(np.int64)


def _round_keys(seed: int, epoch: U64, purpose: int) -> U64:
    """u64[ROUNDS, k]; computed once per epoch that occurs, which is one or two in a step."""
    epochs, which = np.unique(epoch, return_inverse=True)
    draws = np.arange(ROUNDS // _WORDS, dtype=np.uint64)
    keys: U64 = philox(seed, purpose, epochs[:, None], draws[None, :]).reshape(len(epochs), ROUNDS)
    return keys.T[:, which]


def _network(bits: int, keys: U64, value: U64) -> U64:
    """A permutation of 0..2**bits-1 for each column of `keys`."""
    low_bits = bits // 2
    low_mask, high_mask = np.uint64(2**low_bits - 1), np.uint64(2 ** (bits - low_bits) - 1)
    high, low = value >> np.uint64(low_bits), value & low_mask
    for number in range(0, ROUNDS, 2):
        high = high ^ (_mixed(low, keys[number]) & high_mask)
        low = low ^ (_mixed(high, keys[number + 1]) & low_mask)
    return (high << np.uint64(low_bits)) | low


def _mixed(half: U64, key: U64) -> U64:
    # The key goes in twice: before, to choose the input, and between, so that no two keys are mere shifts of another.
    mixed = half ^ key
    mixed = (mixed ^ (mixed >> _30)) * _MIX[0] + key
    mixed = (mixed ^ (mixed >> _27)) * _MIX[1]
    return mixed ^ (mixed >> _31)
