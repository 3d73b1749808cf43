"""A field's pixels from its raw planes, and what was found on the way: each source read once, hashed and decoded."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from phenomhpc.errors import WorkError
from phenomhpc.plates import Field, Plane, Plate, UnreadableImage, decode_plane, plane_bytes, plane_name, qc
from phenomhpc.plates.illumination import divide, profile
from phenomhpc.plates.images import is_array
from phenomhpc.plates.project import Projection
from phenomhpc.plates.types import BAD_SHAPE, MISSING_PLANE, OK, UNREADABLE, Stack
from phenomhpc.store.checksum import crc32c
from phenomhpc.store.inplace import FieldMemory
from phenomhpc.store.lookup import Lookup
from phenomhpc.store.shards import Geometry, Pixels
from phenomhpc.store.spec import DatasetSpec

# What a file system says that is not there any more; of one bad file it says other things.
_GONE = (errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.EHOSTDOWN, errno.ETIMEDOUT)

Problem = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """What is done with the pixels of a field beside storing them.

    qc: measure their quality.  light: for each channel what its pixels are divided by, as plates.illumination takes it; ()
    for none.  lookup: store 16-bit sources as 8 bits.
    """

    qc: bool = True
    light: tuple[str | None, ...] = ()
    lookup: Lookup | None = None

    def settings(self) -> dict[str, Any]:
        """What a record's digest binds to."""
        light = {"light": self.light} if self.light else {}
        return {"qc": qc.VERSION if self.qc else None, **light, "lookup": self.lookup and self.lookup.attribute()}


@dataclass(frozen=True, kw_only=True)
class Source:
    """One raw plane as it was read: what the digest binds to."""

    channel: str
    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class FieldPixels:
    """pixels (C, H, W), None when the field is set aside; its row of the fields table; bytes read."""

    pixels: Pixels | None
    row: Mapping[str, Any]
    num_bytes: int


class FieldReader:
    """Reads the fields of one plate, one at a time into the same buffer: what read() returns holds until the next one."""

    def __init__(self, plate: Plate, spec: DatasetSpec, geometry: Geometry, treatment: Treatment) -> None:
        self._plate, self._geometry, self._treatment = plate, geometry, treatment
        self._dna = qc.dna_channel([channel.name for channel in plate.channels])
        self._dtype = np.dtype("uint16" if treatment.lookup else spec.dtype)
        size = geometry.height, geometry.width
        self._flats = [profile(text, *size) for text in treatment.light]
        self._tables = treatment.lookup.tables() if treatment.lookup else None
        shape = (geometry.num_channels, geometry.height, geometry.width)
        self._memory = FieldMemory(shape, self._dtype.newbyteorder("<"))
        self._pixels = self._memory.pixels
        self._stored: Pixels = np.empty(shape, np.uint8) if treatment.lookup else self._pixels

    def close(self) -> None:
        """What read() returned is no longer used."""
        self._memory.close()

    def read(self, field: Field) -> FieldPixels:
        """The field; planes that are missing, unreadable or of another size or dtype set it aside, all others are hashed."""
        self._memory.begin()
        sources: list[Source] = []
        problems: list[Problem] = [field.problem] if field.problem else []
        for channel, stack in enumerate(field.planes):
            problem = self._channel(channel, stack, sources)
            if problem is not None:
                problems.append((problem[0], f"{self._plate.channels[channel].name}: {problem[1]}"))
        for channel, flat in enumerate(self._flats if not problems else ()):
            if flat is not None:
                divide(self._pixels[channel], flat)
        if self._tables is not None and not problems:
            for channel, table in enumerate(self._tables):
                np.take(table, self._pixels[channel], out=self._stored[channel])
        status, reason = problems[0] if problems else (OK, None)
        row: dict[str, Any] = {
            "field_index": field.index,
            "well": field.well.name,
            "row": field.well.row,
            "column": field.well.column,
            "site": field.site,
            "timepoint": field.timepoint,
            "z": field.z,
            "status": status,
            "reason": reason,
            "position_x_um": field.position_x_um,
            "position_y_um": field.position_y_um,
            "pixel_size_um": field.pixel_size_um,
            "sources": [asdict(source) for source in sources],
            "crc32c": None if problems else self._checksum(),
        }
        if self._treatment.qc and not problems:
            row |= qc.measure(self._pixels, self._dna, field.pixel_size_um).columns()
        num_bytes = sum(source.bytes for source in sources)
        return FieldPixels(pixels=None if problems else self._stored, row=row, num_bytes=num_bytes)

    def _checksum(self) -> int:
        """crc32c of the stored pixels, in the order of (C, H, W)."""
        if self._tables is not None:
            return crc32c(self._stored)
        if any(flat is not None for flat in self._flats):
            self._memory.begin()  # they are no longer as they came
        return self._memory.checksum()

    def _channel(self, channel: int, stack: Stack, sources: list[Source]) -> Problem | None:
        """Fill one channel from its planes; returns the first problem."""
        if not stack:
            return MISSING_PLANE, "not imaged at this z plane; --z max or focus makes one field of a stack"
        if len(stack) == 1:
            out = self._pixels[channel]
            pixels, problem = self._plane(channel, stack[0], sources, out)
            if problem is None and pixels is not None and not np.may_share_memory(pixels, out):
                out[...] = pixels
            return problem
        projection = Projection(self._plate.projection)
        first: Problem | None = None
        for plane in stack:
            pixels, problem = self._plane(channel, plane, sources, None)
            first = first or problem
            if pixels is not None and first is None:
                projection.add(pixels)
        if first is None:
            self._pixels[channel] = projection.result()
        return first

    def _plane(
        self, channel: int, plane: Plane | None, sources: list[Source], out: Pixels | None
    ) -> tuple[Pixels | None, Problem | None]:
        if plane is None:
            return None, (MISSING_PLANE, "no plane")
        root, label = self._plate.root, plane_name(plane)
        try:
            placed = None if out is None or is_array(plane) else self._memory.read(channel, plane)
            data = placed or plane_bytes(plane)
        except UnreadableImage as error:
            return None, (UNREADABLE, f"{label}: {error}")
        except FileNotFoundError as error:
            self._refuse_vanished()
            return None, (MISSING_PLANE, f"{label}: {error.strerror}" if is_array(plane) else f"{label} does not exist")
        except OSError as error:
            if error.errno in _GONE:
                raise WorkError(f"plate {root}: cannot be reached ({error.strerror}); run again when it can") from error
            return None, (UNREADABLE, f"{label}: {error.strerror}")
        name = plane_name(plane, root)
        digest = hashlib.sha256(data).hexdigest()
        sources.append(Source(channel=self._plate.channels[channel].name, path=name, sha256=digest, bytes=len(data)))
        try:
            if placed and self._memory.settle(channel, plane, placed):
                return out, None
            pixels = decode_plane(plane, bytes(data), out)
        except UnreadableImage as error:
            return None, (UNREADABLE, f"{label}: {error}")
        return pixels, self._misfit(pixels)

    def _refuse_vanished(self) -> None:
        """A folder that is not there any more is no plate without images: nothing is set aside for it."""
        root = self._plate.root
        if not root.is_dir():
            raise WorkError(f"plate {root}: its folder is gone; is the file system still mounted? run again when it is")

    def _misfit(self, plane: Pixels) -> Problem | None:
        geometry = self._geometry
        if plane.shape != (geometry.height, geometry.width):
            have, want = "x".join(map(str, plane.shape)), f"{geometry.height}x{geometry.width}"
            return BAD_SHAPE, f"{have} pixels, the plate has {want}"
        if plane.dtype != self._dtype:
            what = "the look-up table is for" if self._tables is not None else "the store has"
            return BAD_SHAPE, f"{plane.dtype}, {what} {self._dtype}"
        return None
