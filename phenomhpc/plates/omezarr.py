"""OME-Zarr HCS plates, 0.5 (Zarr v3) and 0.4 (Zarr v2): the groups' metadata list rows, columns, wells and images.

    PLATE.zarr / A / 1 / 0 / 0      plate, row, column: a well, image (a site), array of full resolution (t, c, z, y, x)

Only level 0 is read.  A site is the image's number, where its path is one, else its place in the well; along a t axis
timepoints count from 1, along z planes do.  Several acquisitions of the same channels are timepoints, one after the other.
A well whose metadata cannot be read has no place; an image whose metadata cannot be read is a field that is set aside.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from phenomhpc.errors import UsageError
from phenomhpc.plates import zarrlayout
from phenomhpc.plates.collect import MAX_COLUMNS, MAX_COUNT, MAX_ROWS, Declarations, Place, is_inside, shown
from phenomhpc.plates.metadata import joined
from phenomhpc.plates.omezarr_image import MAX_PLANES, Image, attributes, list_of, look_into, object_of
from phenomhpc.plates.types import BAD_SHAPE, Channel, Plate, PlateFolder, ReadOptions, Well, plate_format, plate_key

NAME = "omezarr"
LOOKED_FOR = 'OME-Zarr (zarr.json or .zattrs with "plate")'
# What `store export-hcs` writes beside the specification: see store/hcs.py.
WELLS_TABLE = ("tables", "wells", "table.csv")
_ENDINGS = (".ome.zarr", ".zarr")
_MAX_TABLE_BYTES = 64 * 2**20


def sniff(folder: Path) -> bool:
    """Whether the folder is a plate: its group's attributes have one."""
    if not (folder / zarrlayout.V3).is_file() and not (folder / ".zattrs").is_file():
        return False
    try:
        return isinstance(attributes(folder).get("plate"), dict)
    except ValueError:
        return False


def describe(folder: Path) -> PlateFolder:
    """Key and names from the folder's: EXPERIMENT__PLATE.zarr, or PLATE.zarr."""
    stem = next((folder.name.removesuffix(ending) for ending in _ENDINGS if folder.name.endswith(ending)), folder.name)
    experiment, told, plate = stem.partition("__")
    if not (told and experiment and plate):
        return PlateFolder(path=folder, layout=NAME, key=plate_key(stem), experiment=stem, plate=stem)
    return PlateFolder(path=folder, layout=NAME, key=plate_key(experiment, plate), experiment=experiment, plate=plate)


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """Read the metadata of plate, wells, images and their first arrays.  Raises UsageError with one line."""
    known = joined(options, found.experiment, (found.plate, found.key))
    try:
        said = attributes(found.path).get("plate")
        if not isinstance(said, dict):
            raise ValueError("its group has no plate")
        plate = _Plate(said)
        fields = Declarations(found.path)
        images = [image for well in plate.wells(fields) for image in _images(found.path, *well, fields)]
        channels = _declare(fields, images)
        rows, columns = plate.size or plate_format(fields.wells, options.plate_format)
        known = known or ({} if options.metadata else _own_table(found.path))
    except OSError as error:
        raise UsageError(f"plate {found.path}: {error.filename} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"plate {found.path}: is malformed or hostile: {error}") from error
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        rows=rows,
        columns=columns,
        channels=tuple(Channel(index=index, name=name) for index, name in enumerate(channels)),
        fields=fields.fields(range(len(channels))),
        root=found.path,
        layout=NAME,
        metadata=known,
        strays=fields.strays,
    )


# -- wells ------------------------------------------------------------------------------------------------------------


class _Plate:
    """Rows, columns and wells of the plate's metadata.  Raises ValueError."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._rows, self._columns = (
            [str(object_of(entry, name).get("name", "")) for entry in list_of(said.get(name), name)]
            for name in ("rows", "columns")
        )
        if len(self._rows) > MAX_ROWS or len(self._columns) > MAX_COLUMNS:
            raise ValueError(f"no plate has {len(self._rows)} x {len(self._columns)} wells")
        self._wells = list_of(said.get("wells"), "wells")
        acquisitions = said.get("acquisitions") or []
        self.acquisitions = len(list_of(acquisitions, "acquisitions"))

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns, where every one is listed as the specification wants it; many writers list what they imaged."""
        rows = [_lettered(name) for name in self._rows]
        columns = [int(name) if name.isascii() and name.isdigit() and len(name) < 4 else 0 for name in self._columns]
        every = rows == list(range(1, len(rows) + 1)) and columns == list(range(1, len(columns) + 1))
        return (len(rows), len(columns)) if every and rows and columns else None

    def wells(self, fields: Declarations) -> Iterator[tuple[Well, str]]:
        """Position and path of each; what is wrong with one makes it a stray."""
        seen: set[Well] = set()
        for entry in self._wells:
            path = entry.get("path") if isinstance(entry, dict) else None
            try:
                well = self._well(object_of(entry, "well"))
                if well in seen:
                    raise ValueError(f"well {well.name} is listed twice")
            except ValueError as error:
                fields.stray(shown(str(path)), str(error))
                continue
            seen.add(well)
            yield well, str(path)

    def _well(self, entry: Mapping[str, Any]) -> Well:
        row, _, column = str(entry.get("path", "")).partition("/")
        if row not in self._rows or column not in self._columns or not (is_inside(row) and is_inside(column)):
            raise ValueError("its path is not that of a row and a column of the plate")
        at = self._rows.index(row), self._columns.index(column)
        told = entry.get("rowIndex", at[0]), entry.get("columnIndex", at[1])
        if told != at:
            raise ValueError("its path and its indices are those of two wells")
        try:
            well = Well.parse(row + column)
        except ValueError:
            well = Well(row=at[0] + 1, column=at[1] + 1)
        if well.row > MAX_ROWS or well.column > MAX_COLUMNS:
            raise ValueError(f"no plate has a well {well.name}")
        return well


def _lettered(name: str) -> int:
    """1 for A, 27 for AA; 0 for what is no row's letters."""
    try:
        return Well.parse(f"{name}1").row if name.isalpha() else 0
    except ValueError:
        return 0


def _images(root: Path, well: Well, path: str, fields: Declarations) -> list[Image]:
    """The images that a well lists, each looked into."""
    try:
        listed = list_of(object_of(attributes(root / path).get("well"), "well").get("images"), "images")
    except OSError as error:
        fields.stray(path, f"its metadata cannot be read ({error.strerror})")
        return []
    except ValueError as error:
        fields.stray(path, str(error))
        return []
    found: dict[str, Image] = {}
    for place, entry in enumerate(listed, 1):
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not is_inside(name) or "/" in name or name in found:
            fields.stray(f"{path}/{shown(str(name))}", "is no path of an image, or one of two")
            continue
        acquisition = entry.get("acquisition")
        image = Image(well=well, path=name, place=place, acquisition=acquisition if type(acquisition) is int else None)
        found[name] = look_into(root, f"{path}/{name}", image)
    return list(found.values())


# -- fields -----------------------------------------------------------------------------------------------------------


def _declare(fields: Declarations, images: Sequence[Image]) -> tuple[str, ...]:
    """Declare a field for each timepoint and z plane of each image; returns the channels' names.  Raises ValueError."""
    sound = [image for image in images if image.problem is None]
    if not sound:
        reasons = [image.problem[1] for image in images if image.problem] or [": ".join(fields.strays[0])] * bool(
            fields.strays
        )
        raise ValueError(f"it has no image that can be read{f' (first: {reasons[0]})' if reasons else ''}")
    order = sorted({image.acquisition for image in images if image.acquisition is not None})
    first = min((image.acquisition for image in sound if image.acquisition is not None), default=None)
    labels = next(image.labels for image in sound if first is None or image.acquisition == first)
    if sum(image.length("t") * image.length("z") for image in sound) > 16 * MAX_PLANES:
        raise ValueError("its arrays claim more planes than a plate has")
    later = _later(sound, order, labels)
    sites: Counter[tuple[Well, int]] = Counter()
    for image in images:
        acquisition = order.index(image.acquisition) if image.acquisition is not None else 0
        sites[image.well, acquisition] += 1
        site = _site(image, sites[image.well, acquisition], several=len(order) > 1)
        after = later[acquisition] if later else 0
        if image.problem is not None:
            fields.fault(Place(image.well, site, after + bool(later)), image.problem[1], image.problem[0])
        elif image.labels != labels and image.acquisition != first:
            fields.stray(image.array, f"has the channels {_listed(image.labels)}, the plate's are {_listed(labels)}")
        else:
            _declare_image(fields, image, site, labels, after, timed=bool(later))
    return labels


def _later(images: Sequence[Image], order: Sequence[int], labels: tuple[str, ...]) -> list[int]:
    """By acquisition, how many timepoints come before it; [] where there is one of one timepoint."""
    longest = [
        max((i.length("t") for i in images if i.acquisition == number and i.labels == labels), default=0)
        for number in order
    ]
    if sum(longest) <= 1 and all("t" not in image.axes or image.length("t") == 1 for image in images):
        return []
    return [sum(longest[:at]) for at in range(len(longest))] or [0]


def _site(image: Image, place: int, *, several: bool) -> int:
    """several: acquisitions; a site then is the image's place in its own."""
    number = image.path
    if image.own is not None:
        return image.own.site
    if not several and number.isascii() and number.isdigit() and len(number) < 6 and int(number) <= MAX_COUNT:
        return int(number)
    return min(place, MAX_COUNT)


def _declare_image(
    fields: Declarations, image: Image, site: int, labels: tuple[str, ...], after: int, *, timed: bool
) -> None:
    times: Sequence[int] = range(after + 1, after + 1 + image.length("t")) if timed else (0,)
    planes: Sequence[int] = range(1, 1 + image.length("z")) if image.length("z") > 1 else (0,)
    if image.own is not None:
        times, planes = image.own.timepoints, _numbered(image.own.z) or planes
    for at_time, timepoint in enumerate(times):
        for at_plane, z in enumerate(planes):
            place = Place(image.well, site, timepoint, z)
            if image.labels != labels:
                what = f"it has the channels {_listed(image.labels)}, the plate's are {_listed(labels)}"
                fields.fault(place, f"image {image.array}: {what}", BAD_SHAPE)
                continue
            for channel in range(len(labels)):
                at = {"t": at_time, "c": channel, "z": at_plane}
                index = tuple(at[axis] for axis in image.axes if axis in at)
                fields.add(place, channel, image.array, image.where_um, index)


def _numbered(names: Sequence[str]) -> list[int]:
    """Names of z planes that are numbers; [] where one is none, or two are one."""
    numbers = [int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 6]
    sound = len(set(numbers)) == len(names) and max(numbers, default=0) <= MAX_COUNT
    return numbers if sound else []


def _listed(names: Sequence[str]) -> str:
    return shown(", ".join(names))


# -- the table of export-hcs ------------------------------------------------------------------------------------------


def _own_table(folder: Path) -> dict[str, dict[str, str]]:
    """Metadata of wells that export-hcs wrote beside the images.  Raises OSError, ValueError."""
    path = folder.joinpath(*WELLS_TABLE)
    if not path.is_file():
        return {}
    if path.stat().st_size > _MAX_TABLE_BYTES:
        raise ValueError(f"{path.name} has more than {_MAX_TABLE_BYTES // 2**20} MiB")
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8")), strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{'/'.join(WELLS_TABLE)} is no CSV in UTF-8 ({str(error)[:80]})") from error
    known: dict[str, dict[str, str]] = {}
    for row in rows:
        well = Well.parse(row.get("well") or "").name
        known[well] = {
            name: text
            for name, text in row.items()
            if isinstance(name, str) and isinstance(text, str) and text and name not in ("well", "row", "column")
        }
    return known
