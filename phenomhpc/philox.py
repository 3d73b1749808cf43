"""Keyed randomness: numpy's Philox4x64-10 as a function of (seed, purpose, index, draw), vectorised over the index.

key = (seed, purpose), counter = (index, draw, 0, 0); the four words of that counter's block are the value.  The same block
out of numpy itself: `np.random.Philox(key=[seed, purpose], counter=C).random_raw(4)` with C one less than the counter
(as a 256-bit number, least word first), since numpy counts up before it computes a block.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import ArrayLike, NDArray

U64 = NDArray[np.uint64]

ORDER, OFFSET, FLIP, MASK, DROP_PATH, SUBSET, WITHIN, REPLACE = 1, 2, 3, 4, 5, 6, 7, 8

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_WORD = 2**64
# Mask noise of 16 crops of 256 patches: 0.3 ms each time, where compiled code takes 0.02, and half a second to load.
_MANY_BLOCKS = 1024


def _multiply(a: np.uint64, b: U64) -> tuple[U64, U64]:
    """High and low 64 bits of the 128-bit product, by 32-bit halves."""
    a_low, a_high = a & _LOW, a >> _32
    b_low, b_high = b & _LOW, b >> _32
    low = a_low * b_low
    middle = a_high * b_low + (low >> _32)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _32) + (other >> _32), a * b


def philox(seed: int, purpose: int, index: ArrayLike, draw: ArrayLike = 0) -> U64:
    """Blocks of random words: u64[..., 4] for the broadcast of `index` and `draw` (u64 or non-negative integers).

    By compiled code, which gives the same words, from the first time on that many are asked for.
    """
    word0, word1 = np.broadcast_arrays(np.asarray(index, np.uint64), np.asarray(draw, np.uint64))
    if _is_compiled(word0.size):
        from phenomhpc.philox_loops import fill_blocks

        words = np.empty((*word0.shape, 4), np.uint64)
        counters = np.ascontiguousarray(word0).ravel(), np.ascontiguousarray(word1).ravel()
        fill_blocks(np.uint64(seed % _WORD), np.uint64(purpose % _WORD), *counters, words.reshape(-1, 4))
        return words
    return _by_numpy(seed, purpose, word0.copy(), word1.copy())


def _is_compiled(num_blocks: int) -> bool:
    return num_blocks >= _MANY_BLOCKS or "phenomhpc.philox_loops" in sys.modules


def _by_numpy(seed: int, purpose: int, word0: U64, word1: U64) -> U64:
    word2, word3 = np.zeros_like(word0), np.zeros_like(word0)
    key0, key1 = seed % _WORD, purpose % _WORD
    with np.errstate(over="ignore"):
        for _ in range(_ROUNDS):
            high0, low0 = _multiply(_MULTIPLIERS[0], word0)
            high1, low1 = _multiply(_MULTIPLIERS[1], word2)
            word0, word1 = high1 ^ word1 ^ np.uint64(key0), low1
            word2, word3 = high0 ^ word3 ^ np.uint64(key1), low0
            key0, key1 = (key0 + _WEYL[0]) % _WORD, (key1 + _WEYL[1]) % _WORD
    return np.stack([word0, word1, word2, word3], axis=-1)


def uniform(words: U64) -> NDArray[np.float64]:
    """float64 in [0, 1) from the top 53 bits of each word."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def uniform32(words: U64) -> NDArray[np.float32]:
    """float32 in [0, 1) from the top 24 bits of each word."""
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
