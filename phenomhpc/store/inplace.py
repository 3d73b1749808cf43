"""A field's memory, into which files are read so that the pixels of an uncompressed TIFF lie where they belong.

Each plane has some room before and behind it:

    | room | plane 0 | room | room | plane 1 | room | ...

A file that is as long as a plane and a little more is read to where its pixels will fall on the plane if they begin as far into
the file as those of the file before.  Its bytes are read once, and what is hashed is what is stored.
"""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from phenomhpc.plates import Plane, raw_pixels
from phenomhpc.store.checksum import crc32c
from phenomhpc.store.shards import Pixels

# Before and behind each plane; TIFF headers and what microscopes write into them are shorter.
ROOM_BYTES = 2**15
# What is read at once.
PIECE_BYTES = 2**19

# The memory that was last used, unless it is in use again, and where in a raw file its pixels began.
_spare: list[tuple[NDArray[np.uint8], int]] = []


class FieldMemory:
    """Room for a field; pixels: (C, H, W) of it, whose planes lie apart.  One thread.

    close() keeps it for the next one of this process: to have 50 MB of memory made takes a tenth of a second per gigabyte
    that is converted in it.
    """

    def __init__(self, shape: tuple[int, int, int], dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> None:
        channels, height, width = shape
        self._plane_bytes = height * width * dtype.itemsize
        apart = -(-(self._plane_bytes + 2 * ROOM_BYTES) // 64) * 64
        # Where in the last raw file its pixels began.
        self._offset = 0
        self._memory = np.empty((0, 0), np.uint8)
        if _spare:
            self._memory, self._offset = _spare.pop()
        if self._memory.shape != (channels, apart):
            self._memory = np.empty((channels, apart), np.uint8)
        planes = self._memory[:, ROOM_BYTES : ROOM_BYTES + self._plane_bytes]
        self.pixels: Pixels = planes.view(dtype).reshape(shape)
        # crc32c of the first `_summed` planes; `_sum`: with the one that was read last.
        self._crc = self._sum = self._summed = 0

    def close(self) -> None:
        """The pixels are no longer used."""
        _spare[:] = [(self._memory, self._offset)]

    def begin(self) -> None:
        """Another field comes."""
        self._crc = self._summed = 0

    def checksum(self) -> int:
        """crc32c of the pixels in the order of (C, H, W), as they came."""
        crc = self._crc
        for plane in self.pixels[self._summed :]:
            crc = crc32c(plane, crc)
        return crc

    def read(self, channel: int, plane: Plane) -> memoryview | None:
        """A plane's file, read over the plane of this channel; None for one that is too short or too long for that.

        Raises OSError.
        """
        begin = ROOM_BYTES - self._offset
        with plane.path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if not self._plane_bytes <= size < self._plane_bytes + ROOM_BYTES + self._offset:
                return None
            room = memoryview(self._memory[channel])[begin : begin + size + 1]
            done, self._sum = 0, self._crc
            while done < len(room) and (got := file.readinto(room[done : done + PIECE_BYTES])):
                self._add(channel, begin + done, begin + done + got)
                done += got
        return room[:size] if done == size else None  # another size: somebody is writing it

    def _add(self, channel: int, begin: int, end: int) -> None:
        """Sum what of a plane lies among these bytes of its room: they are in the processor's cache now, and soon will not be."""
        if channel == self._summed:
            begin, end = max(begin, ROOM_BYTES), min(end, ROOM_BYTES + self._plane_bytes)
            if begin < end:
                self._sum = crc32c(self._memory[channel, begin:end], self._sum)

    def settle(self, channel: int, plane: Plane, data: memoryview) -> bool:
        """Put the pixels of what read() gave into place; False, and the plane is undefined, where they are no raw ones of its kind.

        Raises UnreadableImage.
        """
        out = self.pixels[channel]
        found = raw_pixels(plane, data)
        if found is None or (found.shape, found.dtype) != (out.shape, out.dtype):
            return False
        if found.offset != self._offset:
            out[...] = np.frombuffer(data, out.dtype, out.size, found.offset).reshape(out.shape)
            self._offset = min(found.offset, ROOM_BYTES)
        elif channel == self._summed:
            self._crc, self._summed = self._sum, channel + 1
        return True
