"""What MetaXpress writes into each TIFF (MetaSeries XML in the image description) and into a plate's HTD file."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.collect import MAX_COLUMNS, MAX_COUNT, MAX_ROWS, shown
from phenomhpc.plates.types import Well

_LABEL = re.compile(r"\s*([A-Za-z]{1,2}\d{1,3})(?:\s*:\s*Site\s*(\d+))?\s*")
# No instrument writes more; what is longer is not parsed.
_MAX_DESCRIPTION, _MAX_HTD = 2**20, 2**22


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """Of one image: where the stage stood, micrometres, and what the channel is called."""

    well: Well | None = None
    site: int | None = None
    channel: str | None = None
    emission_nm: float | None = None
    pixel_size_um: float | None = None
    position_x_um: float | None = None
    position_y_um: float | None = None


def image_facts(path: Path) -> ImageFacts:
    """From the MetaSeries of a TIFF; none of them where it has none or cannot be read (conversion then tells why)."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            text = tiff.pages.first.description
    except Exception:  # a damaged header raises dozens of kinds
        return ImageFacts()
    return parse_metaseries(text)


def parse_metaseries(text: str) -> ImageFacts:
    """Facts from the XML text; what is missing or senseless there is None."""
    from defusedxml.common import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    if "<MetaData>" not in text[:200] or len(text) > _MAX_DESCRIPTION:
        return ImageFacts()
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError):
        return ImageFacts()
    said = {prop.get("id"): prop.get("value") for prop in root.iter("prop")}
    well, site = _label(said.get("stage-label"))
    size = _number(said.get("spatial-calibration-x")) if said.get("spatial-calibration-units") in ("um", "µm") else None
    return ImageFacts(
        well=well,
        site=site,
        channel=said.get("_IllumSetting_") or None,
        emission_nm=_number(said.get("wavelength")) or None,
        pixel_size_um=size,
        position_x_um=_number(said.get("stage-position-x")),
        position_y_um=_number(said.get("stage-position-y")),
    )


def _label(text: str | None) -> tuple[Well | None, int | None]:
    match = _LABEL.fullmatch(text or "")
    if match is None:
        return None, None
    try:
        return Well.parse(match[1]), int(match[2]) if match[2] else None
    except ValueError:
        return None, None


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What an HTD declares.  sites: the numbers that image names may have, in order; waves: channel number -> name."""

    rows: int
    columns: int
    wells: tuple[Well, ...]
    grid_sites: tuple[int, ...]
    waves: dict[int, str] = field(default_factory=dict)
    timepoints: int = 1
    z_steps: int = 0

    def sites(self, seen: set[int]) -> tuple[int, ...]:
        """The site numbers of the images: of the selected positions of the grid, row by row, or counted from 1.

        Both ways are met; the names tell which.  Where they fit both, the grid's.
        """
        counted = tuple(range(1, len(self.grid_sites) + 1))
        return counted if not seen <= set(self.grid_sites) and seen <= set(counted) else self.grid_sites


def read_htd(path: Path) -> Declared:
    """Parse an HTD.  Raises UsageError with one line for what cannot be read or makes no sense."""
    try:
        if path.stat().st_size > _MAX_HTD:
            raise ValueError(f"has more than {_MAX_HTD} bytes")
        values = dict(_lines(path.read_bytes()))
        return _declared(values)
    except OSError as error:
        raise UsageError(f"plate {path.parent}: {path.name} cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"plate {path.parent}: {path.name} is malformed: {error}") from error


def _lines(data: bytes) -> Iterator[tuple[str, list[str]]]:
    text = data.decode("utf-16") if data[:2] in (b"\xff\xfe", b"\xfe\xff") else data.decode("utf-8-sig", "replace")
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if row:
            yield row[0].strip(), [cell.strip() for cell in row[1:]]


def _declared(values: dict[str, list[str]]) -> Declared:
    columns = _count(values, "XWells", least=1, most=MAX_COLUMNS)
    rows = _count(values, "YWells", least=1, most=MAX_ROWS)
    wells = tuple(
        Well(row=row, column=column)
        for row in range(1, rows + 1)
        for column, selected in enumerate(_flags(values, f"WellsSelection{row}", columns), 1)
        if selected
    )
    if not wells:
        raise ValueError("it selects no well")
    return Declared(
        rows=rows,
        columns=columns,
        wells=wells,
        grid_sites=_grid_sites(values),
        waves=_waves(values),
        timepoints=_count(values, "TimePoints", 1, least=1),
        z_steps=_count(values, "ZSteps", 1, least=1) if _flag(values, "ZSeries") else 0,
    )


def _grid_sites(values: dict[str, list[str]]) -> tuple[int, ...]:
    if not _flag(values, "Sites"):
        return (1,)
    across = _count(values, "XSites", 1, least=1, most=200)
    down = _count(values, "YSites", 1, least=1, most=200)
    flags = [flag for row in range(1, down + 1) for flag in _flags(values, f"SiteSelection{row}", across)]
    return tuple(number for number, selected in enumerate(flags, 1) if selected) or (1,)


def _waves(values: dict[str, list[str]]) -> dict[int, str]:
    number = _count(values, "NWavelengths", 1, least=1, most=99) if _flag(values, "Waves") else 1
    names = {wave: (values.get(f"WaveName{wave}") or [""])[0] for wave in range(1, number + 1)}
    return {wave: name or f"w{wave}" for wave, name in names.items()}


def _flag(values: dict[str, list[str]], name: str) -> bool:
    return (values.get(name) or [""])[0].upper() == "TRUE"


def _flags(values: dict[str, list[str]], name: str, number: int) -> list[bool]:
    """As many flags as there are positions; a line that is not there selects none of them."""
    found = [cell.upper() == "TRUE" for cell in values.get(name, [])][:number]
    return found + [False] * (number - len(found))


def _count(
    values: dict[str, list[str]], name: str, default: int | None = None, *, least: int = 0, most: int = MAX_COUNT
) -> int:
    text = (values.get(name) or [""])[0]
    if text == "" and default is not None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 7 and least <= int(text) <= most):
        raise ValueError(f"{name} is {shown(text)}")
    return int(text)
