"""Finding plates by looking at folders, and reading them.

A layout is a module that has what `Layout` says; adding one is a file and a line in LAYOUTS.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from phenomhpc.errors import UsageError
from phenomhpc.plates import cellvoyager, gallery, imagexpress, omezarr, phenix, rxrx
from phenomhpc.plates.select import select
from phenomhpc.plates.types import Plate, PlateFolder, ReadOptions

# A plate lies in the folder named, in one below it, or two below it: ROOT/EXPERIMENT/PLATE.
DEPTH = 2


class Layout(Protocol):
    """One raw layout.  `sniff` and `describe` list and read heads only: a login node calls them on thousands of plates."""

    NAME: str
    LOOKED_FOR: str

    def sniff(self, folder: Path) -> bool:
        """Whether `folder` is a plate of this layout.  Raises OSError where it cannot be listed."""

    def describe(self, folder: Path) -> PlateFolder:
        """Path, key and names of a plate that sniff() has found."""

    def read(self, found: PlateFolder, options: ReadOptions) -> Plate:
        """Parse the plate, all z planes and timepoints of it.  Raises UsageError with one line."""


# In this order: the first that knows a folder has it.
LAYOUTS: dict[str, Layout] = {
    module.NAME: module for module in (phenix, cellvoyager, omezarr, gallery, rxrx, imagexpress)
}


def find_plates(patterns: Sequence[str], layout: str = "auto") -> list[PlateFolder]:
    """The plates that folders and globs name, by key; lists and sniffs only.

    A folder is a plate, or holds plates up to two levels below, also of several layouts; hidden folders are passed over.
    Raises UsageError for a folder without a plate, and for two sources of one key.
    """
    layouts = _chosen(layout)
    found: dict[str, PlateFolder] = {}
    for folder in _folders(patterns):
        for plate in _plates_in(folder, layouts):
            other = found.setdefault(plate.key, plate)
            if not other.path.samefile(plate.path):
                raise UsageError(
                    f"plate {plate.key}: two sources, {other.path} and {plate.path}; rename or leave out one"
                )
    return [found[key] for key in sorted(found)]


def _chosen(layout: str) -> list[Layout]:
    if layout == "auto":
        return list(LAYOUTS.values())
    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: no such layout; allowed: auto, {', '.join(LAYOUTS)}")
    return [LAYOUTS[layout]]


def _folders(patterns: Sequence[str]) -> list[Path]:
    if not patterns:
        raise UsageError("--plates: no folder is named; name plates, experiments or a folder of experiments")
    folders: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            folders.append(_absolute(path))
            continue
        # Files beside the plates (a metadata CSV) are what a glob brings along.
        matches = [_absolute(Path(name)) for name in sorted(glob.glob(pattern)) if Path(name).is_dir()]  # noqa: PTH207
        if not matches:
            what = "is a file, a plate is a folder" if path.exists() else "no such folder, and no folder matches"
            raise UsageError(f"--plates {pattern}: {what}")
        folders += matches
    return folders


def _absolute(path: Path) -> Path:
    """Absolute and without `..`, but with the user's symbolic links: names of experiments come from it."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _plates_in(folder: Path, layouts: Sequence[Layout]) -> list[PlateFolder]:
    try:
        plates = list(_walk(folder, layouts, DEPTH))
    except OSError as error:
        raise UsageError(f"--plates {folder}: {error.filename or folder} cannot be read ({error.strerror})") from error
    if not plates:
        looked_for = " or ".join(layout.LOOKED_FOR for layout in layouts)
        raise UsageError(
            f"--plates {folder}: is no plate, and holds none down to two folders below; looked for {looked_for}"
        )
    return plates


def _walk(folder: Path, layouts: Sequence[Layout], depth: int) -> Iterator[PlateFolder]:
    for layout in layouts:
        if layout.sniff(folder):
            yield layout.describe(folder)
            return
    if depth == 0:
        return
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        yield from _walk(folder / name, layouts, depth - 1)


def read_plate(found: PlateFolder, options: ReadOptions = ReadOptions()) -> Plate:  # noqa: B008  frozen
    """Parse a found plate and keep what `options` ask for.  Raises UsageError with one line."""
    return select(LAYOUTS[found.layout].read(found, options), options.z, options.timepoint)
