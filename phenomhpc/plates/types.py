"""What a plate is: Plate, Well, Field, Channel.  Frozen; positions are 1-based, as people write them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phenomhpc.errors import UsageError

# Why a field is set aside; the store's fields table has these.
OK, MISSING_PLANE, UNREADABLE, BAD_SHAPE, DUPLICATE, HOSTILE = (
    "ok", "missing_plane", "unreadable", "bad_shape", "duplicate", "hostile",
)  # fmt: skip

_WELL = re.compile(r"([A-Za-z]{1,2})0*([1-9][0-9]{0,2})")
_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9._-]")
# A key becomes a file name with endings; file systems hold 255 bytes.
_KEY_LENGTH = 160
_DIGEST_LENGTH = 8
LETTERS = 26


class UnreadableImage(Exception):
    """An image file that does not hold what it should; str() is a short reason without the file's name."""


@dataclass(frozen=True, kw_only=True, order=True)
class Well:
    """A position on a plate: row and column from 1; rows go past Z (A..Z, AA..AF)."""

    row: int
    column: int

    def __post_init__(self) -> None:
        if self.row < 1 or self.column < 1:
            raise ValueError(f"row {self.row}, column {self.column}: positions count from 1")

    @property
    def name(self) -> str:
        """`A01`, `AA02`: at least two digits."""
        letters = ""
        number = self.row
        while number:
            number, rest = divmod(number - 1, LETTERS)
            letters = chr(ord("A") + rest) + letters
        return f"{letters}{self.column:02d}"

    @classmethod
    def parse(cls, text: str) -> Well:
        """`A1`, `a01`, `AA02`.  Raises ValueError naming the text."""
        match = _WELL.fullmatch(text.strip())
        if not match:
            raise ValueError(f"{text!r} is no well; a well is one or two letters and a column, such as A01 or AA02")
        row = 0
        for letter in match[1].upper():
            row = row * LETTERS + ord(letter) - ord("A") + 1
        return cls(row=row, column=int(match[2]))


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One channel, in stored order; wavelengths in nm where the microscope says them."""

    index: int
    name: str
    excitation_nm: float | None = None
    emission_nm: float | None = None


@dataclass(frozen=True, slots=True, order=True)
class Plane:
    """One two-dimensional image: the only one of a file, or one of several.

    path: absolute.  index: None for a file's only image; else its position along the leading axes of what `path` names
    (an array of an OME-Zarr image is a folder).
    """

    path: Path
    index: tuple[int, ...] | None = None


# The z planes of one channel in order; one, unless a stack is projected.  None: the layout says that there is none.
Stack = tuple[Plane | None, ...]


@dataclass(frozen=True, kw_only=True)
class Field:
    """One site of one well: for each channel a plane, or the planes of a z stack that become one.

    index: position on the stored array's first axis, from the declared layout.  planes: in channel order.  problem:
    (status, reason) of a field that its layout declares in a way that cannot be converted; it keeps its slot.  z: the
    plane's name in the layout, or how a stack was projected.  Positions and pixel size in micrometres.
    """

    index: int
    well: Well
    site: int
    timepoint: int = 0
    z: str = ""
    planes: tuple[Stack, ...]
    problem: tuple[str, str] | None = None
    position_x_um: float | None = None
    position_y_um: float | None = None
    pixel_size_um: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A plate as its layout declares it.

    key: EXPERIMENT__PLATE, the name in a store.  metadata: well name -> column -> text; columns are those of the store's
    fields table (perturbation, gene, is_control ...), a user's own are meta_*.  projection: how the stacks of its fields
    become planes, "max" or "focus"; "" where no field has one.  illumination: for each channel what its layout says of
    uneven light, as JSON text; () where it says nothing.  strays: (thing, reason) of images that have no place on it.
    """

    key: str
    experiment: str
    plate: str
    measurement: str | None = None
    rows: int
    columns: int
    channels: tuple[Channel, ...]
    fields: tuple[Field, ...]
    root: Path
    layout: str
    metadata: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    projection: str = ""
    illumination: tuple[str | None, ...] = ()
    strays: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What a person says about raw plates beside their folders.

    metadata: a CSV joined by plate and well, in place of the one that the layout brings.  columns: column of the store ->
    column of that CSV, where the names are not known ones.  plate_format: wells of the plates, where the layout does not
    say.  z: "all" keeps every plane as a field, "max" and "focus" project, a plane's name keeps that one.  timepoint:
    keeps that one.
    """

    metadata: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    plate_format: int | None = None
    z: str = "all"
    timepoint: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlateFolder:
    """A plate that was found but not read yet."""

    path: Path
    layout: str
    key: str
    experiment: str
    plate: str


def plate_key(*parts: str) -> str:
    """Parts joined by `__`, a plate's name in a store: letters, digits, '.', '_' and '-'.

    Any other character is written as '-' and a digest of the parts appended, so that "P 1" and "P-1" never meet in one
    store, not even over several conversions.  Raises UsageError for a name that no file can have.
    """
    stripped = [part.strip() for part in parts if part.strip()]
    written = [_NOT_IN_KEYS.sub("-", part) for part in stripped]
    key = "__".join(written)
    if written != stripped:
        key += "-" + hashlib.sha256(json.dumps(stripped).encode()).hexdigest()[:_DIGEST_LENGTH]
    if not stripped or key.startswith(".") or len(key) > _KEY_LENGTH:
        name = "/".join(parts)
        shown = name if len(name) <= _KEY_LENGTH else f"{name[:40]}... of {len(name)} characters"
        raise UsageError(
            f"plate name {shown!r}: no usable name; rename it (1 to {_KEY_LENGTH} characters, no '.' first)"
        )
    return key


# Rows and columns of the plates that are made.
PLATE_FORMATS = ((2, 3), (3, 4), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))
# Of plates with fewer wells nobody guesses: a corner of a larger plate looks the same.
_GUESSED = 96


def plate_format(wells: list[Well], num_wells: int | None = None) -> tuple[int, int]:
    """Rows and columns of the plate with so many wells; where that is not said, of the smallest made one of at least 96 that
    holds all wells, or their own extent where none does.

    Raises ValueError when the plate said is too small for its wells, or not made.
    """
    rows = max((well.row for well in wells), default=1)
    columns = max((well.column for well in wells), default=1)
    if num_wells is not None:
        found = [size for size in PLATE_FORMATS if size[0] * size[1] == num_wells]
        if not found:
            raise ValueError(f"no plate of {num_wells} wells is made")
        if rows > found[0][0] or columns > found[0][1]:
            raise ValueError(f"row {rows}, column {columns} lie outside a plate of {num_wells} wells")
        return found[0]
    for size in (size for size in PLATE_FORMATS if size[0] * size[1] >= _GUESSED):
        if rows <= size[0] and columns <= size[1]:
            return size
    return rows, columns
