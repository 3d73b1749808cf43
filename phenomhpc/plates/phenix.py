"""Opera Phenix and Operetta: the index of a measurement (Harmony V4 to V7) lists every image.

A measurement's folder holds Index.idx.xml or Index.xml, itself or in its Images/; images are named relative to it.  What is
wrong with an entry is its field's problem; only an index that cannot be read as XML, or says nothing of the plate, refuses
the plate.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.collect import MAX_COLUMNS, MAX_ROWS, Declarations, Place, count, plate_size, shown, well_of
from phenomhpc.plates.harmony import Texts, profile_json, walk_index
from phenomhpc.plates.metadata import joined
from phenomhpc.plates.types import Channel, Plate, PlateFolder, ReadOptions, plate_format, plate_key

NAME = "phenix"
INDEX_NAMES = ("Index.idx.xml", "Index.xml", "Index.ref.xml")
MICROMETRES_PER_METRE = 1e6
LOOKED_FOR = "Opera Phenix (Index.idx.xml)"
# Harmony 7 exports flat fields beside the images, its archive too.
_PROFILE_FOLDERS = ("FFC_Profile", "flatfieldcorrection")
# More channels has no instrument; of a hostile index they would multiply with its fields.
_MAX_CHANNEL = 99
_LATER_MEASUREMENT = re.compile(r".*-Measurement[ _](0*(?:[2-9]|[1-9]\d{1,4}))", re.ASCII)


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
    """Key and names from the plate's ID.  Cheap: the index is not parsed, only its head is read.

    Harmony names a folder PLATE__DATE-Measurement N; from the second on the number is in the key, so that all of a plate
    lie in one store.  It comes from the folder alone: a measurement that is added later changes no other's key.
    """
    index = index_file(folder)
    if index is None:
        raise UsageError(f"plate {folder}: its {INDEX_NAMES[0]} is gone")
    plate = _plate_name(index)
    later = _LATER_MEASUREMENT.fullmatch(_measurement_folder(index).name)
    key = plate_key(plate, f"Measurement{int(later[1])}") if later else plate_key(plate)
    return PlateFolder(path=folder, layout=NAME, key=key, experiment=plate, plate=plate)


def _measurement_folder(index: Path) -> Path:
    return index.parent.parent if index.parent.name.lower() == "images" else index.parent


def _plate_name(index: Path) -> str:
    """PlateID from the head of the index, which comes before thousands of images."""
    with index.open("rb") as file:
        head = file.read(65536).decode("utf-8", "replace")
    for tag in ("PlateID", "Name"):
        start, end = head.find(f"<{tag}>"), head.find(f"</{tag}>")
        if 0 <= start < end and head[start + len(tag) + 2 : end].strip():
            return head[start + len(tag) + 2 : end].strip()
    return _measurement_folder(index).name


class _Index:
    """What an index says, image by image.  The plate comes first in it, so that places can be checked as they come."""

    def __init__(self, index: Path) -> None:
        self.fields = Declarations(index.parent, names_z=True)
        self.about: Texts = {}
        self.channels: dict[str, Texts] = {}
        self._listed: set[str] = set()
        self._size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the plate; the largest there is where the index does not say.  Raises ValueError."""
        if self._size is None:
            rows, columns = self.about.get("PlateRows"), self.about.get("PlateColumns")
            self._size = plate_size(rows, columns) if rows or columns else (MAX_ROWS, MAX_COLUMNS)
        return self._size

    @property
    def says_size(self) -> bool:
        return bool(self.about.get("PlateRows"))

    def plate(self, texts: Texts) -> None:
        self.about = self.about or texts

    def entry(self, channel: str, texts: Texts) -> None:
        """Facts of a channel; the Maps of an index each have some."""
        self._listed.add(channel)
        known = self.channels.setdefault(channel, {})
        known.update({name: text for name, text in texts.items() if text and name not in known})

    def image(self, texts: Texts) -> None:
        size = self.size
        url = texts.get("URL", "")
        try:
            place = Place(
                well_of(texts.get("Row"), texts.get("Col"), *size),
                count(texts.get("FieldID"), "FieldID"),
                count(texts.get("TimepointID"), "TimepointID", 0),
                count(texts.get("PlaneID"), "PlaneID", 1),
            )
        except ValueError as error:
            self.fields.stray(shown(url or texts.get("id", "an image")), str(error))
            return
        try:
            number = count(texts.get("ChannelID"), "ChannelID")
            if number > _MAX_CHANNEL:
                raise ValueError(f"ChannelID '{number}' is out of range")
        except ValueError as error:
            self.fields.fault(place, f"image {shown(url)}: {error}")
            return
        channel = str(number)
        facts = self.channels.setdefault(channel, {})
        for name in ("ChannelName", "MainExcitationWavelength", "MainEmissionWavelength", "ImageResolutionX"):
            if texts.get(name):
                facts.setdefault(name, texts[name])
        resolution = texts.get("ImageResolutionX") or facts.get("ImageResolutionX")
        where = (_micrometres(texts.get("PositionX")), _micrometres(texts.get("PositionY")), _micrometres(resolution))
        self.fields.add(place, channel, url or None, where)

    def drop_undeclared(self) -> None:
        """Take out channels that only a damaged ChannelID made, so that no other field lacks them.

        Such a one is not in the index's Maps and has no name, or that of another channel.  Maps may leave out a channel
        (brightfield has no flat field); it then has a name of its own.  Without Maps nothing tells them apart.
        """
        names = {self.channels[channel].get("ChannelName") for channel in self._listed}
        for channel in {str(channel) for channel in self.fields.channels()} - self._listed if self._listed else ():
            name = self.channels[channel].get("ChannelName")
            if name is None or name in names:
                self.fields.drop(channel, f"an image is of channel {channel}, which the index does not declare")


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """Parse the index, as a stream.  Raises UsageError naming the file when nothing can be made of it.

    The index does not say what was done to a well: a metadata table is joined by the plate's ID alone.
    """
    index = index_file(found.path)
    if index is None:
        raise UsageError(f"plate {found.path}: its {INDEX_NAMES[0]} is gone")
    known = joined(options, None, (found.plate, found.key))
    said = _Index(index)
    try:
        walk_index(index, said.plate, said.image, said.entry)
        rows, columns = said.size if said.says_size else plate_format(said.fields.wells, options.plate_format)
    except ValueError as error:
        raise UsageError(f"plate {found.path}: {index.name} is malformed or hostile: {error}") from error
    said.drop_undeclared()
    numbers = _in_order(said.fields)
    if not numbers:
        first = f" (first: {said.fields.strays[0][0]}: {said.fields.strays[0][1]})" if said.fields.strays else ""
        raise UsageError(f"plate {found.path}: {index.name} lists no image that has a place on the plate{first}")
    _add_profiles(found.path, said)
    channels = _channels(numbers, said.channels)
    profiles = tuple(profile_json(said.channels[number].get("FlatfieldProfile")) for number in numbers)
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        measurement=said.about.get("MeasurementID"),
        rows=rows,
        columns=columns,
        channels=channels,
        fields=said.fields.fields(numbers),
        root=index.parent,
        layout=NAME,
        metadata=known,
        illumination=profiles if any(profiles) else (),
        strays=said.fields.strays,
    )


def _in_order(fields: Declarations) -> list[str]:
    """The IDs of the channels that images have, as numbers go."""
    return sorted((str(channel) for channel in fields.channels()), key=lambda text: (len(text), text))


def _add_profiles(folder: Path, said: _Index) -> None:
    """Flat fields that lie in a file of their own, for channels whose index has none."""
    if any("FlatfieldProfile" in texts for texts in said.channels.values()):
        return
    for place in (folder, folder.parent):
        for name in _PROFILE_FOLDERS:
            files = sorted(place.glob(f"{name}/*.xml"))[:1]
            for file in files:
                walk_index(file, lambda texts: None, lambda texts: None, said.entry)
                return


def _channels(numbers: Sequence[str], facts: dict[str, Texts]) -> tuple[Channel, ...]:
    """Channels in the order of their IDs; two of one name are told apart by it."""
    names = Counter(facts[number].get("ChannelName") for number in numbers)
    channels = []
    for position, number in enumerate(numbers):
        said = facts[number]
        name = said.get("ChannelName") or f"channel {number}"
        channels.append(
            Channel(
                index=position,
                name=name if names[said.get("ChannelName")] == 1 else f"{name} (channel {number})",
                excitation_nm=_number(said.get("MainExcitationWavelength")),
                emission_nm=_number(said.get("MainEmissionWavelength")),
            )
        )
    return tuple(channels)


def _number(text: str | None) -> float | None:
    """None also for the INF and NaN that some indices hold, and for what is no number."""
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


def _micrometres(text: str | None) -> float | None:
    value = _number(text)
    return None if value is None else value * MICROMETRES_PER_METRE
