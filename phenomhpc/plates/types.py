"""What a plate is: Plate, Well, Field, Channel.  Frozen; positions are 1-based, as people write them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phenomhpc.errors import UsageError

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


@dataclass(frozen=True, kw_only=True)
class Field:
    """One site of one well: a plane per channel.

    index: position on the stored array's first axis, from the declared layout.  planes: absolute paths in channel order,
    None where the layout says that there is none.  Positions and pixel size in micrometres.
    """

    index: int
    well: Well
    site: int
    timepoint: int = 0
    z: str = ""
    planes: tuple[Path | None, ...]
    position_x_um: float | None = None
    position_y_um: float | None = None
    pixel_size_um: float | None = None


@dataclass(frozen=True, kw_only=True)
class Plate:
    """A plate as its layout declares it.

    key: EXPERIMENT__PLATE, the name in a store.  metadata: well name -> column -> text; columns are those of the store's
    fields table (perturbation, gene, is_control ...), a user's own are meta_*.
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
PLATE_FORMATS = ((8, 12), (16, 24), (32, 48))


def plate_format(wells: list[Well]) -> tuple[int, int]:
    """The smallest made plate (rows, columns) that holds all wells; their own extent where none does."""
    rows = max((well.row for well in wells), default=1)
    columns = max((well.column for well in wells), default=1)
    for size in PLATE_FORMATS:
        if rows <= size[0] and columns <= size[1]:
            return size
    return rows, columns
