"""Buffers of pixels that processes share: filled in place by workers, never copied.  Linux only."""

from __future__ import annotations

import mmap
import os

import numpy as np
from numpy.typing import NDArray


class SharedBuffers:
    """Sets of micro-batches in one stretch of anonymous memory, known by a descriptor and by no name: it is gone when the last
    process that has it is, however that one ends.

    Memory is taken when a set is first written to, so that sets which nobody needs cost nothing.
    """

    def __init__(self, num_sets: int, num_micro: int, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> None:
        """shape: (B, C, h, w) of a micro-batch."""
        self._num_micro, self._shape, self._dtype = num_micro, shape, dtype
        self._crop_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        # Each begins on a page of its own, as page-locking wants it.
        self._micro_bytes = -(-shape[0] * self._crop_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.descriptor = os.memfd_create("crops", os.MFD_CLOEXEC)
        self.size = num_sets * num_micro * self._micro_bytes
        os.ftruncate(self.descriptor, self.size)
        self._mapped = mmap.mmap(self.descriptor, self.size)

    def arrays(self, number: int) -> list[NDArray[np.generic]]:
        """The micro-batches of a set, (B, C, h, w) each; they keep the memory alive."""
        return [
            np.ndarray(self._shape, self._dtype, self._mapped, self._micro_start(number, micro))
            for micro in range(self._num_micro)
        ]

    def places(self, number: int, first: int, last: int) -> list[int]:
        """Where the crops [first, last) of a set begin, bytes from the start of the memory."""
        size = self._shape[0]
        return [self._micro_start(number, slot // size) + slot % size * self._crop_bytes for slot in range(first, last)]

    def _micro_start(self, number: int, micro: int) -> int:
        return (number * self._num_micro + micro) * self._micro_bytes

    def close(self) -> None:
        """No further process can be given the memory; it goes with the last array over it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
