"""Opera Phenix and Operetta: a measurement's Index.idx.xml (namespace HarmonyV5) lists every image.

Layout of the file: Plates/Plate has the plate's size, Images/Image one entry per plane with row, column, field, plane
(z), timepoint, channel, position and pixel size in metres.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from phenomhpc.errors import UsageError
from phenomhpc.plates.types import Channel, Field, Plate, PlateFolder, Well, plate_key

NAME = "phenix"
INDEX_NAMES = ("Index.idx.xml", "Index.xml")
MICROMETRES_PER_METRE = 1e6
LOOKED_FOR = "Opera Phenix (Index.idx.xml)"


def index_file(folder: Path) -> Path | None:
    """The index of a measurement: in the folder itself or in its Images/."""
    for place in (folder, folder / "Images", folder / "images"):
        for name in INDEX_NAMES:
            if (place / name).is_file():
                return place / name
    return None


def find(folder: Path) -> Iterator[PlateFolder]:
    """The plate in `folder`, or those one level below it.  Cheap: the index is not parsed, only its head is read."""
    places = [folder] if index_file(folder) else sorted(entry for entry in folder.iterdir() if entry.is_dir())
    for place in places:
        index = index_file(place)
        if index is not None:
            plate = _plate_name(index)
            yield PlateFolder(path=place, layout=NAME, key=plate_key(plate), experiment=plate, plate=plate)


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


def _texts(element: Any) -> dict[str, str]:
    return {_local(child.tag): (child.text or "").strip() for child in element}


def read(found: PlateFolder) -> Plate:
    """Parse the index.  Raises UsageError naming the file for anything malformed or hostile."""
    from xml.etree.ElementTree import ParseError

    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import iterparse

    index = index_file(found.path)
    if index is None:
        raise UsageError(f"plate {found.path}: its Index.idx.xml is gone")
    about: dict[str, str] = {}
    images: list[dict[str, str]] = []
    try:
        for _, element in iterparse(str(index), events=("end",), forbid_dtd=True):
            tag = _local(element.tag)
            if tag == "Plate" and not about:
                about = _texts(element)
            elif tag == "Image" and len(element):
                images.append(_texts(element))
                element.clear()
        return _plate(found, index, about, images)
    except (ParseError, DefusedXmlException, KeyError, ValueError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UsageError(f"plate {found.path}: {index.name} is malformed or hostile: {what}") from error


def _plate(found: PlateFolder, index: Path, about: dict[str, str], images: list[dict[str, str]]) -> Plate:
    if not images:
        raise ValueError("it lists no image")
    channels = _channels(images)
    rows, columns = int(about["PlateRows"]), int(about["PlateColumns"])
    position = {key: place for place, key in enumerate(channels)}
    planes: dict[tuple[Well, int, int, int], dict[int, dict[str, str]]] = defaultdict(dict)
    for image in images:
        well = Well(row=int(image["Row"]), column=int(image["Col"]))
        if well.row > rows or well.column > columns:
            raise ValueError(f"well {well.name} lies outside the plate of {rows} x {columns}")
        where = (well, int(image["FieldID"]), int(image.get("TimepointID") or 0), int(image.get("PlaneID") or 1))
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
    )


def _channels(images: list[dict[str, str]]) -> dict[str, Channel]:
    """Channels by their ID, in the order of the IDs as numbers."""
    found: dict[str, dict[str, str]] = {}
    for image in images:
        found.setdefault(image["ChannelID"], image)
    channels: dict[str, Channel] = {}
    for position, key in enumerate(sorted(found, key=lambda text: (len(text), text))):
        image = found[key]
        channels[key] = Channel(
            index=position,
            name=image.get("ChannelName") or f"channel {key}",
            excitation_nm=_number(image.get("MainExcitationWavelength")),
            emission_nm=_number(image.get("MainEmissionWavelength")),
        )
    return channels


def _field(
    number: int, where: tuple[Well, int, int, int], planes: dict[int, dict[str, str]], num_channels: int, root: Path
) -> Field:
    well, site, timepoint, plane = where
    any_image = next(iter(planes.values()))
    paths = [_inside(root, planes[slot]["URL"]) if slot in planes else None for slot in range(num_channels)]
    return Field(
        index=number,
        well=well,
        site=site,
        timepoint=timepoint,
        z=str(plane),
        planes=tuple(paths),
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
    return float(text) if text else None


def _micrometres(text: str | None) -> float | None:
    value = _number(text)
    return None if value is None else value * MICROMETRES_PER_METRE
