"""Yokogawa CellVoyager: MeasurementData.mlf lists every image, MeasurementDetail.mrf says the plate, *.mes the channels.

Shading (SC_) and dark-current (DC_) references are left out.  A record of type ERR is a declared plane that was not taken.
Channels are those that were imaged: of the four that an .mrf lists often two.  A channel that several actions image (a
stack and its projection, say) is one channel for each of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from phenomhpc.errors import UsageError
from phenomhpc.plates.collect import MAX_COLUMNS, MAX_ROWS, Declarations, Place, count, plate_size, shown, well_of
from phenomhpc.plates.metadata import joined
from phenomhpc.plates.types import Channel, Field, Plate, PlateFolder, ReadOptions, plate_format, plate_key

NAME = "cellvoyager"
INDEX, DETAIL = "MeasurementData.mlf", "MeasurementDetail.mrf"
LOOKED_FOR = f"CellVoyager ({INDEX})"
_REFERENCES = ("SC_", "DC_")

# Ch, timeline, action
Source = tuple[int, int, int]
Attributes = Mapping[str, str]


def sniff(folder: Path) -> bool:
    """Whether the folder is a measurement."""
    return (folder / INDEX).is_file()


def describe(folder: Path) -> PlateFolder:
    """Key and names from the last two parts of the path."""
    experiment = folder.parent.name
    return PlateFolder(
        path=folder, layout=NAME, key=plate_key(experiment, folder.name), experiment=experiment, plate=folder.name
    )


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """Parse the lists, as streams.  Raises UsageError with one line when nothing can be made of them."""
    known = joined(options, found.experiment, (found.plate,))
    details = _Details.read(found.path)
    fields = Declarations(found.path, names_z=True)
    imaged: set[tuple[Source, int]] = set()
    for attributes, text in _elements(found.path, found.path / INDEX, "MeasurementRecord"):
        _record(fields, attributes, text, details, imaged)
    sources = sorted({source for source, _ in imaged})
    if not sources:
        first = f" (first: {fields.strays[0][0]}: {fields.strays[0][1]})" if fields.strays else ""
        raise UsageError(f"plate {found.path}: {INDEX} lists no image that has a place on the plate{first}")
    try:
        rows, columns = details.size or plate_format(fields.wells, options.plate_format)
    except ValueError as error:
        raise UsageError(f"plate {found.path}: {error}") from error
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        rows=rows,
        columns=columns,
        channels=_channels(sources, details),
        fields=tuple(_only_imaged(field, sources, imaged) for field in fields.fields(sources)),
        root=found.path,
        layout=NAME,
        metadata=known,
        strays=fields.strays,
    )


def _record(
    fields: Declarations, said: Attributes, name: str, details: _Details, imaged: set[tuple[Source, int]]
) -> None:
    if name.startswith(_REFERENCES):
        return
    rows, columns = details.size or (MAX_ROWS, MAX_COLUMNS)
    try:
        place = Place(
            well_of(said.get("Row"), said.get("Column"), rows, columns),
            count(said.get("FieldIndex"), "FieldIndex", 1),
            count(said.get("TimePoint"), "TimePoint", 1),
            count(said.get("ZIndex"), "ZIndex", 1),
        )
    except ValueError as error:
        fields.stray(shown(name), str(error))
        return
    try:
        source = (
            count(said.get("Ch"), "Ch"), count(said.get("TimelineIndex"), "TimelineIndex", 1),
            count(said.get("ActionIndex"), "ActionIndex", 1),
        )  # fmt: skip
    except ValueError as error:
        fields.fault(place, f"{shown(name)}: {error}")
        return
    if said.get("Type", "IMG") != "IMG":
        fields.add(place, source, None)
        fields.fault(place, f"channel {source[0]}: the microscope says {shown(name)}")
        return
    imaged.add((source, place.z))
    where = (_number(said.get("X")), _number(said.get("Y")), details.pixel_um.get(source[0]))
    fields.add(place, source, name or None, where)


def _only_imaged(field: Field, sources: list[Source], imaged: set[tuple[Source, int]]) -> Field:
    """A channel that no well has at this z plane was not asked for there."""
    planes = tuple(
        stack if (source, int(field.z)) in imaged else () for source, stack in zip(sources, field.planes, strict=True)
    )
    return replace(field, planes=planes)


def _channels(sources: list[Source], details: _Details) -> tuple[Channel, ...]:
    names = {source: details.names.get(source[0]) or f"channel {source[0]}" for source in sources}
    times = Counter(names.values())
    channels = []
    for position, source in enumerate(sources):
        name, (number, timeline, action) = names[source], source
        alone = sum(other[0] == number for other in sources) == 1
        told = f"channel {number}" if alone else f"channel {number}, timeline {timeline}, action {action}"
        channels.append(
            Channel(
                index=position,
                name=name if times[name] == 1 else f"{name} ({told})",
                excitation_nm=details.excitation_nm.get(number),
                emission_nm=details.emission_nm.get(number),
            )
        )
    return tuple(channels)


@dataclass(frozen=True, kw_only=True)
class _Details:
    """What .mrf and .mes say: size of the plate; of each channel its name, wavelengths and the size of a pixel."""

    size: tuple[int, int] | None
    names: dict[int, str]
    excitation_nm: dict[int, float]
    emission_nm: dict[int, float]
    pixel_um: dict[int, float]

    @classmethod
    def read(cls, folder: Path) -> _Details:
        """Raises UsageError for a file that is there and malformed."""
        size: tuple[int, int] | None = None
        names: dict[int, str] = {}
        excitation: dict[int, float] = {}
        emission: dict[int, float] = {}
        pixel: dict[int, float] = {}
        try:
            for tag, said in _attributes(folder, DETAIL):
                if tag == "MeasurementDetail" and said.get("RowCount"):
                    size = plate_size(said.get("RowCount"), said.get("ColumnCount"))
                if tag == "MeasurementChannel" and (um := _number(said.get("HorizontalPixelDimension"))):
                    pixel[count(said.get("Ch"), "Ch")] = um
            for settings in sorted(folder.glob("*.mes"))[:1]:
                sources: dict[str, float] = {}
                for tag, said in _attributes(folder, settings.name):
                    if tag == "MeasurementSetting" and size is None and said.get("Rows"):
                        size = plate_size(said.get("Rows"), said.get("Columns"))
                    if tag == "LightSource" and (nm := _number(said.get("WaveLength"))):
                        sources[said.get("Name", "")] = nm
                    if tag == "Channel":
                        number = count(said.get("Ch"), "Ch")
                        filtered = said.get("Acquisition", "")
                        names[number] = said.get("Fluorophore") or filtered
                        light = _number(said.get("Target")) or sources.get(said.get("LightSourceName", ""))
                        excitation |= {number: light} if light else {}
                        passed = _number(filtered.removeprefix("BP").split("/")[0])
                        emission |= {number: passed} if passed else {}
        except ValueError as error:
            raise UsageError(f"plate {folder}: {DETAIL} or its .mes is malformed: {error}") from error
        return cls(size=size, names=names, excitation_nm=excitation, emission_nm=emission, pixel_um=pixel)


def _attributes(folder: Path, name: str) -> Iterator[tuple[str, Attributes]]:
    """Tag and attributes of every element of a small file; none where there is no file."""
    if (folder / name).is_file():
        yield from ((tag, said) for tag, said, _ in _walk(folder, folder / name))


def _elements(folder: Path, path: Path, wanted: str) -> Iterator[tuple[Attributes, str]]:
    for tag, said, text in _walk(folder, path):
        if tag == wanted:
            yield said, text


def _walk(folder: Path, path: Path) -> Iterator[tuple[str, Attributes, str]]:
    """Tag, attributes (both without namespace) and text of every element, each dropped once it was handed out."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, iterparse

    above: list[Any] = []
    try:
        with path.open("rb") as file:
            for event, element in iterparse(file, events=("start", "end"), forbid_dtd=True):
                if event == "start":
                    above.append(element)
                    continue
                above.pop()
                said = {_local(name): value.strip() for name, value in element.attrib.items()}
                yield _local(element.tag), said, (element.text or "").strip()
                if above:
                    above[-1].remove(element)
    except (ParseError, DefusedXmlException, LookupError) as error:
        what = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"plate {folder}: {path.name} is malformed or hostile: {what}") from error
    except OSError as error:
        raise UsageError(f"plate {folder}: {path.name} cannot be read ({error.strerror})") from error


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None
