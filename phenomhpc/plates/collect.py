"""From a list of declared images, in any order and with any faults, to the fields of a plate."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from phenomhpc.plates.types import DUPLICATE, HOSTILE, MISSING_PLANE, Field, Plane, Well

# Sites, timepoints and z planes are 16 bits in a store.
MAX_COUNT = 65535
# The largest plate made has 48 x 72 wells.
MAX_ROWS, MAX_COLUMNS = 48, 72


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an image belongs; fields go in this order."""

    well: Well
    site: int
    timepoint: int = 0
    z: int = 0


@dataclass(slots=True)
class _Declared:
    planes: dict[Hashable, Plane | None] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    position_um: tuple[float | None, float | None, float | None] = (None, None, None)


class Declarations:
    """Collects what a layout declares of one plate; a fault of one image is its field's problem, not the plate's.

    names_z: whether z planes have names in the layout, so that a single one has too.
    """

    def __init__(self, root: Path, *, names_z: bool = False) -> None:
        self._root, self._names_z = root, names_z
        self._fields: dict[Place, _Declared] = {}
        self._strays: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self._fields)

    @property
    def strays(self) -> tuple[tuple[str, str], ...]:
        return tuple(self._strays)

    @property
    def wells(self) -> list[Well]:
        return sorted({place.well for place in self._fields})

    @property
    def sites(self) -> list[int]:
        return sorted({place.site for place in self._fields})

    def stray(self, thing: str, reason: str) -> None:
        """An image that has no place on the plate."""
        self._strays.append((thing, reason))

    def declare(self, place: Place) -> None:
        """A field that the layout declares, whether or not an image of it comes."""
        self._fields.setdefault(place, _Declared())

    def add(
        self,
        place: Place,
        channel: Hashable,
        name: str | None,
        position_um: tuple[float | None, float | None, float | None] = (None, None, None),
        index: tuple[int, ...] | None = None,
    ) -> None:
        """An image of a channel, its file named relative to the plate's folder; None: the layout says that it is missing.

        position_um: x and y of the field and the size of a pixel, micrometres; the first that is told holds.  index: which
        plane of the file, where it has several.
        """
        entry = self._fields.setdefault(place, _Declared())
        if entry.position_um == (None, None, None):
            x, y, pixel = (value if value is not None and math.isfinite(value) else None for value in position_um)
            entry.position_um = (x, y, pixel if pixel is not None and pixel > 0 else None)
        if name is not None and not is_inside(name):
            entry.problem = entry.problem or (HOSTILE, f"image {shown(name)} leaves the plate's folder")
            entry.planes[channel] = None
            return
        if entry.planes.get(channel) is not None and name is not None:
            other = entry.planes[channel]
            assert other is not None
            entry.problem = entry.problem or (
                DUPLICATE, f"{other.path.name} and {PurePosixPath(name).name} are the same plane",
            )  # fmt: skip
            return
        entry.planes.setdefault(channel, None)
        if name is not None:
            entry.planes[channel] = Plane(self._root / name, index)

    def fault(self, place: Place, reason: str, status: str = MISSING_PLANE) -> None:
        """The field cannot be converted, for this reason."""
        entry = self._fields.setdefault(place, _Declared())
        entry.problem = entry.problem or (status, reason)

    def drop(self, channel: Hashable, reason: str) -> None:
        """A channel that is none: the fields that have an image of it cannot be converted, for this reason."""
        for place, entry in self._fields.items():
            if channel in entry.planes:
                del entry.planes[channel]
                self.fault(place, reason)

    def channels(self) -> set[Hashable]:
        return {channel for entry in self._fields.values() for channel in entry.planes}

    def fields(self, channels: Sequence[Hashable]) -> tuple[Field, ...]:
        """In order of place, with a plane or None for each of the channels."""
        return tuple(
            Field(
                index=index,
                well=place.well,
                site=place.site,
                timepoint=place.timepoint,
                z=str(place.z) if self._names_z or place.z else "",
                planes=tuple((entry.planes.get(channel),) for channel in channels),
                problem=entry.problem,
                position_x_um=entry.position_um[0],
                position_y_um=entry.position_um[1],
                pixel_size_um=entry.position_um[2],
            )
            for index, (place, entry) in enumerate(sorted(self._fields.items(), key=lambda item: item[0]))
        )


def is_inside(name: str) -> bool:
    """Is a file's name relative, and does it stay in the folder: no `..`, drive, scheme, backslash or NUL?"""
    path = PurePosixPath(name)
    strange = any(sign in name for sign in ("\\", ":", "\0"))
    return bool(name) and not strange and not path.is_absolute() and ".." not in path.parts and name not in (".", "./")


def shown(text: str, most: int = 80) -> str:
    """Text of a file as it can be put into one line of a message."""
    quoted = repr(text)
    return quoted if len(quoted) <= most else f"{quoted[:most]}... of {len(text)} characters"


def count(text: str | None, name: str, default: int | None = None, *, least: int = 0) -> int:
    """A site's, timepoint's or plane's number.  Raises ValueError naming it and the text."""
    if text is None or text == "":
        if default is None:
            raise ValueError(f"it lacks {name}")
        return default
    digits = text.strip()
    if len(digits) <= 12 and not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"{name} {shown(text)} is no number")
    if len(digits) > 12 or not least <= int(digits) <= MAX_COUNT:
        raise ValueError(f"{name} {shown(text)} is out of range")
    return int(digits)


def well_of(row: str | None, column: str | None, rows: int, columns: int) -> Well:
    """A well by the numbers of its row and column.  Raises ValueError for one that is not on the plate."""
    well = Well(row=count(row, "its row", least=1), column=count(column, "its column", least=1))
    if well.row > rows or well.column > columns:
        raise ValueError(
            f"well {well.name if well.row <= MAX_ROWS else (well.row, well.column)} lies outside the plate of {rows} x {columns}"
        )
    return well


def plate_size(rows: str | None, columns: str | None) -> tuple[int, int]:
    """Rows and columns of a plate.  Raises ValueError for what no plate has."""
    try:
        size = count(rows, "the number of rows", least=1), count(columns, "the number of columns", least=1)
    except ValueError as error:
        raise ValueError(f"no plate has {rows} x {columns} wells") from error
    if size[0] > MAX_ROWS or size[1] > MAX_COLUMNS:
        raise ValueError(f"no plate has {size[0]} x {size[1]} wells")
    return size
