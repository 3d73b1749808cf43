"""Finding plates by looking at folders, and reading them: one module per layout, tried in this order."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates import phenix, rxrx
from phenomhpc.plates.metadata import read_metadata
from phenomhpc.plates.types import Plate, PlateFolder

_LAYOUTS = {phenix.NAME: phenix, rxrx.NAME: rxrx}


def find_plates(patterns: Sequence[str], layout: str = "auto") -> list[PlateFolder]:
    """The plates that folders and globs name, by key; lists and sniffs only.

    Raises UsageError for a folder without a plate, and for two sources of one key.
    """
    found: dict[str, PlateFolder] = {}
    for folder in _folders(patterns):
        for plate in _plates_in(folder, layout):
            other = found.get(plate.key)
            if other is not None and other.path != plate.path:
                raise UsageError(
                    f"plate {plate.key}: two sources, {other.path} and {plate.path}; rename or leave out one"
                )
            found[plate.key] = plate
    return [found[key] for key in sorted(found)]


def _folders(patterns: Sequence[str]) -> list[Path]:
    folders: list[Path] = []
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            folders.append(path.absolute())
            continue
        # Files beside the plates (a metadata CSV) are what a glob brings along.
        matches = [Path(name).absolute() for name in sorted(glob.glob(pattern)) if Path(name).is_dir()]  # noqa: PTH207
        if not matches:
            what = "is a file, a plate is a folder" if path.exists() else "no such folder, and no folder matches"
            raise UsageError(f"--plates {pattern}: {what}")
        folders += matches
    return folders


def _plates_in(folder: Path, layout: str) -> list[PlateFolder]:
    tried = _LAYOUTS.values() if layout == "auto" else [_LAYOUTS[layout]]
    try:
        for module in tried:
            plates = list(module.find(folder))
            if plates:
                return plates
    except OSError as error:
        raise UsageError(f"--plates {folder}: cannot be listed ({error.strerror})") from error
    looked_for = " or ".join(module.LOOKED_FOR for module in tried)
    raise UsageError(f"--plates {folder}: is no plate, and holds none; looked for {looked_for}")


def read_plate(found: PlateFolder, metadata: Path | None = None) -> Plate:
    """Parse a found plate; `metadata` joins a CSV by plate and well.  Raises UsageError with one line."""
    table = read_metadata(metadata) if metadata else None
    if found.layout == rxrx.NAME:
        return rxrx.read(found, table)
    plate = phenix.read(found)
    return replace(plate, metadata=table.wells(plate.experiment, (plate.plate, plate.key))) if table else plate
