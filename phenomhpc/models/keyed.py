"""Philox4x64-10 in torch's int64 arithmetic: the same numbers on any device, and the same as numpy's.

Random choices inside the model (stochastic depth) are keyed by the sample and the block, so that they depend neither on
the rank that computes a sample nor on the micro-batch it falls into.  torch has no unsigned 64-bit arithmetic; a 64-bit
word is an int64 with the same bits, addition and multiplication wrap, and shifts to the right are made logical by a mask.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Random123, philox4x64).
"""

from __future__ import annotations

import torch
from torch import Tensor

DROP_PATH = 5
"""The purpose under which stochastic depth is drawn; the one of `phenomhpc.philox`, which this layer does not import."""

_MASK_32 = 0xFFFFFFFF
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10


def _signed(word: int) -> int:
    """The int64 with the bits of an unsigned 64-bit word."""
    word &= 0xFFFFFFFFFFFFFFFF
    return word - (1 << 64) if word >= 1 << 63 else word


def _multiply(multiplier: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the 128-bit product of unsigned words, in 32-bit halves."""
    a_low, a_high = multiplier & _MASK_32, multiplier >> 32
    x_low, x_high = x & _MASK_32, (x >> 32) & _MASK_32
    low = x_low * a_low
    middle = x_high * a_low + ((low >> 32) & _MASK_32)
    carry = x_low * a_high + (middle & _MASK_32)
    high = x_high * a_high + ((middle >> 32) & _MASK_32) + ((carry >> 32) & _MASK_32)
    return high, x * _signed(multiplier)


def philox(seed: int, purpose: int, index: Tensor, draw: Tensor) -> Tensor:
    """The four words of Philox4x64-10 for key (seed, purpose) and counter (index, draw, 0, 0).

    `index` and `draw` are int64 tensors of shapes that broadcast to S; the result is int64[*S, 4], bits as unsigned.
    """
    zero = torch.zeros_like(index + draw)
    words = [index + zero, draw + zero, zero, zero]
    key = [seed, purpose]
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply(_MULTIPLIERS[0], words[0])
        high_1, low_1 = _multiply(_MULTIPLIERS[1], words[2])
        words = [high_1 ^ words[1] ^ _signed(key[0]), low_1, high_0 ^ words[3] ^ _signed(key[1]), low_0]
        key = [key[0] + _WEYL[0], key[1] + _WEYL[1]]
    return torch.stack(words, dim=-1)


def uniform32(words: Tensor) -> Tensor:
    """float32 in [0, 1) from the top 24 bits of each int64 word."""
    return ((words >> 40) & 0xFFFFFF).to(torch.float32) * 2.0**-24


def drop_path_factors(seed: int, drop_key_B: Tensor, rate_K: Tensor) -> Tensor:
    """What each residual branch is multiplied by: f32[K, B], 0 (dropped) or 1 / (1 - rate).

    Sample b of branch k is dropped with probability rate_K[k] (f32, on the keys' device), by the first word at counter
    (drop_key[b], k, 0, 0).
    """
    branches = torch.arange(len(rate_K), device=drop_key_B.device)[:, None]
    uniform = uniform32(philox(seed, DROP_PATH, drop_key_B[None, :], branches)[..., 0])
    return (uniform >= rate_K[:, None]) / (1 - rate_K[:, None])
