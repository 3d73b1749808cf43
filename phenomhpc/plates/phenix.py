"""Opera Phenix and Operetta: a measurement's Index.idx.xml (namespace HarmonyV5) lists every image.

Layout of the file: Plates/Plate has the plate's size, Images/Image one entry per plane with row, column, field, plane
(z), timepoint, channel, position and pixel size in metres.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

from phenomhpc.errors import UsageError
from phenomhpc.plates.metadata import Wells, wells_of_plate
from phenomhpc.plates.types import Channel, Field, Plane, Plate, PlateFolder, ReadOptions, Well, plate_key

NAME = "phenix"
INDEX_NAMES = ("Index.idx.xml", "Index.xml")
MICROMETRES_PER_METRE = 1e6
LOOKED_FOR = "Opera Phenix (Index.idx.xml)"
# The largest plate made has 48 x 72 wells; sites, timepoints and planes are 16 bits in a store.
MAX_ROWS, MAX_COLUMNS, MAX_COUNT = 48, 72, 65535
_OF_PLATE = frozenset({"PlateRows", "PlateColumns", "MeasurementID"})
# An image has two dozen entries; keeping these bounds the memory of a large index.
_OF_IMAGE = frozenset(
    {"URL", "Row", "Col", "FieldID", "PlaneID", "TimepointID", "ChannelID", "ChannelName", "PositionX", "PositionY"}
    | {"ImageResolutionX", "MainExcitationWavelength", "MainEmissionWavelength"}
)


def index_file(folder: Path) -> Path | None:
    """The index of a measurement: in the folder itself or in its Images/."""
    for place in (folder, folder / "Images", folder / "images"):
        for name in INDEX_NAMES:
            if (place / name).is_file():
                return place / name
    return None


def sniff(folder: Path) -> bool:
    """Whether the folder is a measurement."""
    return index_file(folder) is not None


def describe(folder: Path) -> PlateFolder:
    """Key and names from the plate's ID.  Cheap: the index is not parsed, only its head is read."""
    index = index_file(folder)
    if index is None:
        raise UsageError(f"plate {folder}: its {INDEX_NAMES[0]} is gone")
    plate = _plate_name(index)
    return PlateFolder(path=folder, layout=NAME, key=plate_key(plate), experiment=plate, plate=plate)


def _plate_name(index: Path) -> str:
    """PlateID from the head of the index, which comes before thousands of images."""
    with index.open("rb") as file:
        head = file.read(65536).decode("utf-8", "replace")
    for tag in ("PlateID", "Name"):
        start, end = head.find(f"<{tag}>"), head.find(f"</{tag}>")
        if 0 <= start < end and head[start + len(tag) + 2 : end].strip():
            return head[start + len(tag) + 2 : end].strip()
    return index.parent.parent.name if index.parent.name.lower() == "images" else index.parent.name


def _local(tag: str) -> str:
    return tag.rsplit("}", 1)[-1]


def _texts(element: Any, names: frozenset[str]) -> dict[str, str]:
    return {name: (child.text or "").strip() for child in element if (name := _local(child.tag)) in names}


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """Parse the index.  Raises UsageError naming the file for anything malformed or hostile.

    The index does not say what was done to a well: a metadata table is joined by the plate's ID alone.
    """
    index = index_file(found.path)
    if index is None:
        raise UsageError(f"plate {found.path}: its {INDEX_NAMES[0]} is gone")
    known = wells_of_plate(options.metadata, None, (found.plate, found.key)) if options.metadata else {}
    about, images = _parse(found, index)
    try:
        return _plate(found, index, about, images, known)
    except (KeyError, ValueError) as error:
        what = f"an image or the plate lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"plate {found.path}: {index.name} is malformed or hostile: {what}") from error


def _parse(found: PlateFolder, index: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """What the index says of the plate, and of every image; no entity is expanded, nothing external fetched."""
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    about: dict[str, str] = {}
    images: list[dict[str, str]] = []
    try:
        with index.open("rb") as file:
            for _, element in iterparse(file, events=("end",), forbid_dtd=True):
                tag = _local(element.tag)
                if tag == "Plate" and not about:
                    about = _texts(element, _OF_PLATE)
                elif tag == "Image" and len(element):
                    images.append(_texts(element, _OF_IMAGE))
                    element.clear()
    except (ParseError, DefusedXmlException, LookupError, ValueError) as error:
        what = str(error) or type(error).__name__
        raise UsageError(f"plate {found.path}: {index.name} is malformed or hostile: {what}") from error
    except OSError as error:
        raise UsageError(f"plate {found.path}: {index.name} cannot be read ({error.strerror})") from error
    return about, images


def _plate(found: PlateFolder, index: Path, about: dict[str, str], images: list[dict[str, str]], known: Wells) -> Plate:
    if not images:
        raise ValueError("it lists no image")
    channels = _channels(images)
    rows, columns = int(about["PlateRows"]), int(about["PlateColumns"])
    if not (1 <= rows <= MAX_ROWS and 1 <= columns <= MAX_COLUMNS):
        raise ValueError(f"no plate has {rows} x {columns} wells")
    position = {key: place for place, key in enumerate(channels)}
    planes: dict[tuple[Well, int, int, int], dict[int, dict[str, str]]] = defaultdict(dict)
    for image in images:
        well = Well(row=int(image["Row"]), column=int(image["Col"]))
        if well.row > rows or well.column > columns:
            raise ValueError(f"well {well.name} lies outside the plate of {rows} x {columns}")
        where = (well, _count(image, "FieldID", None), _count(image, "TimepointID", 0), _count(image, "PlaneID", 1))
        slot = position[image["ChannelID"]]
        if slot in planes[where]:
            raise ValueError(f"{well.name} field {where[1]} channel {image['ChannelID']} is listed twice")
        planes[where][slot] = image
    fields = []
    for number, (where, found_planes) in enumerate(sorted(planes.items(), key=lambda entry: entry[0])):
        fields.append(_field(number, where, found_planes, len(channels), index.parent))
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        measurement=about.get("MeasurementID"),
        rows=rows,
        columns=columns,
        channels=tuple(channels.values()),
        fields=tuple(fields),
        root=index.parent,
        layout=NAME,
        metadata=known,
    )


def _count(image: dict[str, str], name: str, default: int | None) -> int:
    """A field's, timepoint's or plane's number, as small as the store's columns hold."""
    number = int(image[name] if default is None else image.get(name) or default)
    if not 0 <= number <= MAX_COUNT:
        raise ValueError(f"{name} {number} is out of range")
    return number


def _channels(images: list[dict[str, str]]) -> dict[str, Channel]:
    """Channels by their ID, in the order of the IDs as numbers; two of one name are told apart by it."""
    found: dict[str, dict[str, str]] = {}
    for image in images:
        found.setdefault(image["ChannelID"], image)
    names = Counter(image.get("ChannelName") for image in found.values())
    channels: dict[str, Channel] = {}
    for position, key in enumerate(sorted(found, key=lambda text: (len(text), text))):
        image = found[key]
        name = image.get("ChannelName") or f"channel {key}"
        channels[key] = Channel(
            index=position,
            name=name if names[image.get("ChannelName")] == 1 else f"{name} (channel {key})",
            excitation_nm=_number(image.get("MainExcitationWavelength")),
            emission_nm=_number(image.get("MainEmissionWavelength")),
        )
    return channels


def _field(
    number: int, where: tuple[Well, int, int, int], planes: dict[int, dict[str, str]], num_channels: int, root: Path
) -> Field:
    well, site, timepoint, plane = where
    any_image = next(iter(planes.values()))
    found = [Plane(_inside(root, planes[slot]["URL"])) if slot in planes else None for slot in range(num_channels)]
    return Field(
        index=number,
        well=well,
        site=site,
        timepoint=timepoint,
        z=str(plane),
        planes=tuple((plane,) for plane in found),
        position_x_um=_micrometres(any_image.get("PositionX")),
        position_y_um=_micrometres(any_image.get("PositionY")),
        pixel_size_um=_micrometres(any_image.get("ImageResolutionX")),
    )


def _inside(root: Path, url: str) -> Path:
    """A file of the measurement; one that leaves its folder is refused."""
    path = PurePosixPath(url)
    if not url or path.is_absolute() or ".." in path.parts or "\\" in url or ":" in url:
        raise ValueError(f"image {url!r} leaves the measurement's folder")
    return root / path


def _number(text: str | None) -> float | None:
    """None also for the INF and NaN that some indices hold."""
    value = float(text) if text else None
    return value if value is not None and math.isfinite(value) else None


def _micrometres(text: str | None) -> float | None:
    value = _number(text)
    return None if value is None else value * MICROMETRES_PER_METRE
