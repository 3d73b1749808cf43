"""The RxRx layout: EXPERIMENT/PlateN/AA02_s1_w3.png (RxRx1) or ..._s1_3.jp2 (RxRx3), metadata in a CSV beside.

The layout has no list of images, so these declare a plate: its channels and sites are those that any of its wells has, its
wells those that have an image or a row in the metadata.  Every declared (well, site) is a field; a file that is not there
leaves its plane None, and a well that the metadata list and that has no image is a field of planes None: it keeps its slot
and is set aside by name, instead of moving all wells behind it when its images arrive later.
RxRx3-core comes as Parquet files of JPEG 2000 images; each key in them is a path of this layout without its ending.
A channel that no well has is not seen; the plate then differs from its store's channels and is refused there.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.collect import MAX_COLUMNS, MAX_ROWS, Declarations, Place, shown
from phenomhpc.plates.metadata import joined
from phenomhpc.plates.types import Channel, Plate, PlateFolder, ReadOptions, Well, plate_format, plate_key

NAME = "rxrx"
LOOKED_FOR = "RxRx (EXPERIMENT/PlateN/AA02_s1_w3.png)"

_IMAGE = re.compile(r"([A-Z]{1,2}\d{1,3})_s(\d{1,4})_w?(\d{1,2})\.(?:png|jp2|tif|tiff)", re.IGNORECASE | re.ASCII)
# Cell Painting's six channels in RxRx order, for plates with six.
_SIX = ("DNA", "ER", "AGP", "RNA", "Mito", "Golgi")
# As the public archives unpack: rxrx1/metadata.csv, rxrx1/images/HUVEC-01/Plate1.
_IMAGES_FOLDER = "images"
_METADATA_NAMES = ("metadata.csv", "metadata_rxrx3.csv", "metadata_rxrx3_core.csv")
# A folder is told by its first images; a few strangers (thumbnails, notes) do not hide them.
_SNIFF_ENTRIES = 200


def sniff(folder: Path) -> bool:
    """Whether the folder's first entries include an image of this layout."""
    with os.scandir(folder) as entries:
        return any(_IMAGE.fullmatch(entry.name) for entry in itertools.islice(entries, _SNIFF_ENTRIES))


def describe(folder: Path) -> PlateFolder:
    """Key and names from the last two parts of the path."""
    experiment = folder.parent.name
    return PlateFolder(
        path=folder,
        layout=NAME,
        key=plate_key(experiment, folder.name),
        experiment=experiment,
        plate=_number(folder.name),
    )


def _number(name: str) -> str:
    number = name.removeprefix("Plate")
    return str(int(number)) if number.isascii() and number.isdigit() else name


def metadata_beside(folder: Path) -> Path | None:
    """The metadata CSV of a plate: in its experiment's folder, in the one above, or beside that where it is called images."""
    places = [folder.parent, folder.parent.parent]
    if places[-1].name == _IMAGES_FOLDER:
        places.append(places[-1].parent)
    for place in places:
        for name in _METADATA_NAMES:
            if (place / name).is_file():
                return place / name
    return None


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """List the plate.  Two files of one plane spoil their field only; a name that no well has is a stray.

    Raises UsageError with one line when nothing can be made of the folder.
    """
    images = Declarations(found.path)
    for name in sorted(os.listdir(found.path)):  # noqa: PTH208  a million names: no Path objects
        if match := _IMAGE.fullmatch(name):
            try:
                place, channel = _place(match, options)
            except ValueError as error:
                images.stray(shown(name), str(error))
                continue
            images.add(place, channel, name)
    numbers = sorted(number for number in images.channels() if isinstance(number, int))
    if not numbers:
        first = f" (first: {images.strays[0][0]}: {images.strays[0][1]})" if images.strays else ""
        raise UsageError(f"plate {found.path}: no image such as AA02_s1_w3.png is left in it{first}")
    known = joined(options, found.experiment, (found.plate, found.path.name), metadata_beside(found.path))
    # A site that a well lacks is declared by the other wells: its slot stays, empty and named.
    for well in sorted({*images.wells, *(Well.parse(name) for name in known)}):
        for site in images.sites:
            images.declare(Place(well, site))
    try:
        rows, columns = plate_format(images.wells, options.plate_format)
    except ValueError as error:
        raise UsageError(f"plate {found.path}: {error}") from error
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        rows=rows,
        columns=columns,
        channels=tuple(Channel(index=place, name=_name(number, numbers)) for place, number in enumerate(numbers)),
        fields=images.fields(numbers),
        root=found.path,
        layout=NAME,
        metadata=known,
        strays=images.strays,
    )


def _place(match: re.Match[str], options: ReadOptions) -> tuple[Place, int]:
    """Raises ValueError for a well that is none, or not one of the plate whose size is said."""
    well = Well.parse(match[1])
    plate_format([well], options.plate_format)
    if well.row > MAX_ROWS or well.column > MAX_COLUMNS:
        raise ValueError(f"no plate has a well {well.name}")
    return Place(well, int(match[2])), int(match[3])


def _name(number: int, numbers: list[int]) -> str:
    return _SIX[number - 1] if numbers == [1, 2, 3, 4, 5, 6] else f"w{number}"
