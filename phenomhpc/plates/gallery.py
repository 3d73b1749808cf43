"""The Cell Painting Gallery's load_data.csv: a row per site, FileName_OrigDNA and PathName_OrigDNA for each channel; also
as load_data.csv.gz.

The folders in it are those of the machine that wrote it.  An image is looked for, in this order, where the path says if that
is below one of the folders around the CSV, and by the path's last parts below the CSV's own folder and those around it, up
to five levels up; nowhere else.  Illumination functions (FileName_IllumDNA, .npy) are found in the same way and kept.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from phenomhpc.errors import UsageError
from phenomhpc.plates.collect import Declarations, Place, count, is_inside, shown
from phenomhpc.plates.metadata import Wells, joined
from phenomhpc.plates.types import HOSTILE, Channel, Plate, PlateFolder, ReadOptions, Well, plate_format, plate_key

NAME = "gallery"
LOOKED_FOR = "Cell Painting Gallery (load_data.csv)"
# With illumination functions first: it says more of the same images.
_NAMES = tuple(f"{name}{gz}" for name in ("load_data_with_illum.csv", "load_data.csv") for gz in ("", ".gz"))
_OTHER = re.compile(r"load_data.*\.csv(\.gz)?", re.IGNORECASE)
# Of a table, whatever its .gz unpacks to: one of 17,280 images has some ten MiB; and of a line, which has some three KiB.
_MAX_BYTES, _MAX_LINE = 2**30, 2**20
_FILE, _PATH, _ILLUM, _ILLUM_PATH = "FileName_Orig", "PathName_Orig", "FileName_Illum", "PathName_Illum"
_LEVELS_UP = 5
# With so many images that are not found their folder is not here.
_TRIES = 100
_SITES = ("Metadata_Site", "Metadata_FieldID", "Metadata_Field")
_PLANES, _TIMES = ("Metadata_PlaneID", "Metadata_Z"), ("Metadata_TimepointID", "Metadata_Timepoint", "Metadata_T")

Row = Mapping[str, str]


def csv_file(folder: Path) -> Path | None:
    """The CSV of a plate's folder."""
    for name in _NAMES:
        if (folder / name).is_file():
            return folder / name
    return next((path for path in sorted(folder.glob("*.csv*")) if _OTHER.fullmatch(path.name)), None)


def sniff(folder: Path) -> bool:
    """Whether the folder has a CSV of this name whose header names images."""
    path = csv_file(folder)
    return path is not None and any(name.startswith(_FILE) for name in _header(path))


def _header(path: Path) -> list[str]:
    try:
        with _text(path, errors="replace") as file:
            return [name.strip() for name in next(csv.reader([file.readline(2**16)]), [])]
    except (EOFError, zlib.error, gzip.BadGzipFile, csv.Error):
        return []


def _text(path: Path, errors: str = "strict") -> io.TextIOWrapper:
    """A table as text, unpacked as it is read.  Reading raises csv.Error where it is longer than any."""
    binary: Any = path.open("rb") if path.suffix.lower() != ".gz" else gzip.GzipFile(path)
    return io.TextIOWrapper(io.BufferedReader(_Bounded(binary)), newline="", encoding="utf-8-sig", errors=errors)


def _lines(file: io.TextIOWrapper) -> Iterator[str]:
    while line := file.readline(_MAX_LINE):
        if len(line) == _MAX_LINE:
            raise csv.Error(f"a line of more than {_MAX_LINE} characters")
        yield line


class _Bounded(io.RawIOBase):
    """A file that ends with an error after _MAX_BYTES: a small .gz may hold terabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._left = file, _MAX_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise csv.Error(f"more than {_MAX_BYTES // 2**20} MiB")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def describe(folder: Path) -> PlateFolder:
    """The plate's name from the first row; the experiment is the folder above (a batch)."""
    path = csv_file(folder)
    if path is None:
        raise UsageError(f"plate {folder}: its load_data.csv is gone")
    first = next(_rows(folder, path), {})
    plate = first.get("Metadata_Plate") or folder.name
    experiment = first.get("Metadata_Batch") or folder.parent.name
    return PlateFolder(path=folder, layout=NAME, key=plate_key(experiment, plate), experiment=experiment, plate=plate)


def _rows(folder: Path, path: Path) -> Iterator[Row]:
    """Rows by column.  Raises UsageError naming the line for what is no such table."""
    try:
        with _text(path) as file:
            rows = csv.reader(_lines(file), strict=True)
            header = [name.strip() for name in next(rows, [])]
            for row in rows:
                if row and len(row) != len(header):
                    raise UsageError(
                        f"plate {folder}: {path.name} line {rows.line_num} has {len(row)} cells, the header {len(header)}"
                    )
                if row:
                    yield dict(zip(header, (cell.strip() for cell in row), strict=True))
    except (csv.Error, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"plate {folder}: {path.name} is no CSV in UTF-8 ({error})") from error
    except OSError as error:
        raise UsageError(f"plate {folder}: {path.name} cannot be read ({error.strerror})") from error


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """Parse the table.  Raises UsageError with one line when nothing can be made of it."""
    path = csv_file(found.path)
    if path is None:
        raise UsageError(f"plate {found.path}: its load_data.csv is gone")
    names = [name.removeprefix(_FILE) for name in _header(path) if name.startswith(_FILE)]
    known = joined(options, found.experiment, (found.plate,))
    finder = _Finder(found.path)
    fields = Declarations(finder.top)
    first: Row = {}
    for row in _rows(found.path, path):
        plate = row.get("Metadata_Plate", found.plate)
        if plate != found.plate:
            raise UsageError(
                f"plate {found.path}: {path.name} lists plates {found.plate} and {plate}; make one CSV for each"
            )
        first = first or row
        _add(fields, row, names, finder)
    if not names or not len(fields):
        raise UsageError(f"plate {found.path}: {path.name} lists no image that has a place on the plate")
    return _plate(found, options, fields, names, first, finder, known)


def _add(fields: Declarations, row: Row, names: list[str], finder: _Finder) -> None:
    label = shown(row.get(_FILE + names[0], ""))
    try:
        place = Place(_well(row), count(_first(row, _SITES), "the site", 1), count(_first(row, _TIMES), "the timepoint", 0),
                      count(_first(row, _PLANES), "the plane", 0))  # fmt: skip
    except ValueError as error:
        fields.stray(label, str(error))
        return
    where = tuple(None if (value := _metres(row.get(name))) is None else value * 1e6
                  for name in ("Metadata_PositionX", "Metadata_PositionY", "Metadata_ImageResolutionX"))  # fmt: skip
    for name in names:
        file, folder = row.get(_FILE + name, ""), row.get(_PATH + name, "")
        if not file:
            fields.add(place, name, None)
            continue
        image = finder.find(folder, file)
        if image is None:
            fields.add(place, name, None)
            if not is_inside(file):
                fields.fault(place, f"image {shown(file)} leaves the plate's folder", HOSTILE)
            elif "://" in folder:
                fields.fault(place, f"{name}: {shown(folder)} is no folder here; copy the images beside the CSV")
            else:
                fields.fault(place, f"{name}: {shown(file)} is not found below {finder.top}")
            continue
        fields.add(place, name, image, (where[0], where[1], where[2]))


def _well(row: Row) -> Well:
    if row.get("Metadata_Well"):
        return Well.parse(row["Metadata_Well"])
    return Well(row=count(row.get("Metadata_Row"), "Metadata_Well", least=1),
                column=count(row.get("Metadata_Col"), "Metadata_Well", least=1))  # fmt: skip


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    return next((row[name] for name in names if row.get(name)), None)


def _metres(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


class _Finder:
    """Where the images of a CSV are on this machine; each folder of it is looked for once.

    top: the highest folder that is looked into.
    """

    def __init__(self, folder: Path) -> None:
        self._around = [folder, *folder.parents][: _LEVELS_UP + 1]
        self._around = [place for place in self._around if place != place.parent] or [folder]  # never the whole disk
        self.top = self._around[-1]
        self._folders: dict[str, Path | None] = {}
        self._tries: Counter[str] = Counter()

    def find(self, folder: str, file: str) -> str | None:
        """The image's path relative to `top`; None where it is not found, or would lie elsewhere."""
        if not is_inside(file):
            return None
        if folder not in self._folders:
            place = self._find(folder, file)
            self._tries[folder] += 1
            if place is not None or self._tries[folder] == _TRIES:  # the first images may be those that are missing
                self._folders[folder] = place
        else:
            place = self._folders[folder]
            place = place if place is not None and (place / file).is_file() else None
        return None if place is None else str(place.relative_to(self.top) / file)

    def _find(self, folder: str, file: str) -> Path | None:
        parts = [part for part in PurePosixPath(folder.replace("\\", "/")).parts if part != "/"]
        if ".." in parts or "://" in folder:
            return None
        whole = Path(folder)
        if whole.is_absolute() and whole.is_relative_to(self.top) and (whole / file).is_file():
            return whole
        for start in range(len(parts) + 1):  # the more of the path agrees, the better
            tail = Path(*parts[start:])
            for place in self._around:
                if (place / tail / file).is_file():
                    return place / tail
        return None


def _plate(
    found: PlateFolder,
    options: ReadOptions,
    fields: Declarations,
    names: list[str],
    first: Row,
    finder: _Finder,
    known: Wells,
) -> Plate:
    try:
        rows, columns = plate_format(fields.wells, options.plate_format)
    except ValueError as error:
        raise UsageError(f"plate {found.path}: {error}") from error
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        rows=rows,
        columns=columns,
        channels=tuple(
            Channel(
                index=position,
                name=name,
                excitation_nm=_metres(first.get(f"Metadata_MainExcitationWavelength_Orig{name}")),
                emission_nm=_metres(first.get(f"Metadata_MainEmissionWavelength_Orig{name}")) or None,
            )
            for position, name in enumerate(names)
        ),
        fields=fields.fields(names),
        root=finder.top,
        layout=NAME,
        metadata=known,
        illumination=_illumination(first, names, finder),
        strays=fields.strays,
    )


def _illumination(first: Row, names: list[str], finder: _Finder) -> tuple[str | None, ...]:
    """The functions of the first row: the Gallery has one of a channel for a whole plate."""

    def function(name: str) -> str | None:
        file = first.get(_ILLUM + name, "")
        path = finder.find(first.get(_ILLUM_PATH + name, ""), file) if file else None
        return json.dumps({"kind": "npy", "path": str(finder.top / path)}, sort_keys=True) if path else None

    found = tuple(function(name) for name in names)
    return found if any(found) else ()
