"""The RxRx layout: EXPERIMENT/PlateN/AA02_s1_w3.png (RxRx1) or ..._s1_3.jp2 (RxRx3), metadata in a CSV beside.

The layout has no list of images, so these declare a plate: its channels and sites are those that any of its wells has, its
wells those that have an image or a row in the metadata.  Every declared (well, site) is a field; a file that is not there
leaves its plane None, and a well that the metadata list and that has no image is a field of planes None: it keeps its slot
and is set aside by name, instead of moving all wells behind it when its images arrive later.
A channel that no well has is not seen; the plate then differs from its store's channels and is refused there.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import defaultdict
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.metadata import Wells, joined
from phenomhpc.plates.types import Channel, Field, Plane, Plate, PlateFolder, ReadOptions, Well, plate_format, plate_key

NAME = "rxrx"
LOOKED_FOR = "RxRx (EXPERIMENT/PlateN/AA02_s1_w3.png)"

_IMAGE = re.compile(r"([A-Z]{1,2}\d{1,3})_s(\d{1,4})_w?(\d{1,2})\.(?:png|jp2|tif|tiff)", re.IGNORECASE | re.ASCII)
# Cell Painting's six channels in RxRx order, for plates with six.
_SIX = ("DNA", "ER", "AGP", "RNA", "Mito", "Golgi")
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
    """The metadata CSV of a plate: in its experiment's folder, or in the one above."""
    for place in (folder.parent, folder.parent.parent):
        for name in _METADATA_NAMES:
            if (place / name).is_file():
                return place / name
    return None


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """List the plate.  Raises UsageError naming a name or a duplicate that cannot be placed."""
    planes: dict[tuple[Well, int], dict[int, Plane]] = defaultdict(dict)
    for name in sorted(os.listdir(found.path)):  # noqa: PTH208  a million names: no Path objects
        match = _IMAGE.fullmatch(name)
        if match:
            well, site, channel = _place(found, name, match)
            if channel in planes[well, site]:
                twin = planes[well, site][channel].path.name
                raise UsageError(f"plate {found.path}: {twin} and {name} are the same plane; remove one of them")
            planes[well, site][channel] = Plane(found.path / name)
    if not planes:
        raise UsageError(f"plate {found.path}: no image such as AA02_s1_w3.png is left in it")
    known = joined(options, found.experiment, (found.plate, found.path.name), metadata_beside(found.path))
    return _plate(found, planes, known)


def _place(found: PlateFolder, name: str, match: re.Match[str]) -> tuple[Well, int, int]:
    try:
        return Well.parse(match[1]), int(match[2]), int(match[3])
    except ValueError as error:
        raise UsageError(f"plate {found.path}: {name}: {error}") from error


def _plate(found: PlateFolder, planes: dict[tuple[Well, int], dict[int, Plane]], known: Wells) -> Plate:
    numbers = sorted({channel for found_planes in planes.values() for channel in found_planes})
    sites = sorted({site for _, site in planes})
    wells = sorted({well for well, _ in planes} | {Well.parse(name) for name in known})
    # A site that a well lacks is declared by the other wells: its slot stays, empty and named.
    declared = [(well, site) for well in wells for site in sites]
    rows, columns = plate_format(wells)
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        rows=rows,
        columns=columns,
        channels=tuple(Channel(index=place, name=_name(number, numbers)) for place, number in enumerate(numbers)),
        fields=tuple(
            Field(
                index=index,
                well=well,
                site=site,
                planes=tuple((planes.get((well, site), {}).get(number),) for number in numbers),
            )
            for index, (well, site) in enumerate(declared)
        ),
        root=found.path,
        layout=NAME,
        metadata=known,
    )


def _name(number: int, numbers: list[int]) -> str:
    return _SIX[number - 1] if numbers == [1, 2, 3, 4, 5, 6] else f"w{number}"
