"""ImageXpress (MetaXpress): NAME.HTD, TimePoint_n/ and ZStep_n/ with NAME_C07_s1_w2[GUID].tif.

With an HTD the declared wells, sites, wavelengths, timepoints and z steps make the plate, and an image that is not there is
a missing plane.  Without one the images do, as in RxRx: every site, wavelength, timepoint and z step that any well has; the
place of each image is then its stage label, cross-checked with its name.
An image beside the ZStep folders is the instrument's projection: z plane "0".  A wavelength of which there are projections
only (or slices only) is no missing plane at the others: `--z max` or `focus` makes one field of both.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.collect import MAX_COUNT, Declarations, Place, shown
from phenomhpc.plates.metadata import Wells, joined
from phenomhpc.plates.metaseries import Declared, ImageFacts, image_facts, read_htd
from phenomhpc.plates.types import UNREADABLE, Channel, Plate, PlateFolder, ReadOptions, Well, plate_format, plate_key

NAME = "imagexpress"
LOOKED_FOR = "ImageXpress (NAME.HTD, or TimePoint_1/NAME_C07_s1_w1.tif)"

_GUID = r"[0-9A-F]{8}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{4}-[0-9A-F]{12}"
_IMAGE = re.compile(
    rf".+?_(?P<well>(?-i:[A-Z]{{1,2}})\d{{2,3}})(?:_s(?P<site>\d{{1,5}}))?(?:_w(?P<wave>\d{{1,2}}?))?"
    rf"(?P<thumb>_thumb)?(?:{_GUID})?\.tiff?",
    re.IGNORECASE | re.ASCII,
)
_TIME = re.compile(r"TimePoint_?(\d{1,5})", re.IGNORECASE | re.ASCII)
_STEP = re.compile(r"ZStep_?(\d{1,5})", re.IGNORECASE | re.ASCII)
_SNIFF_ENTRIES = 200
# Heads of images are read with this many threads: opening waits for the file system.
_THREADS = 8

# Wave -> name and emission, nm.
Names = dict[int, tuple[str, float | None]]


@dataclass(frozen=True, slots=True)
class _Image:
    name: str
    place: Place
    wave: int


def sniff(folder: Path) -> bool:
    """Whether the folder has an HTD, or images of this layout in it or in its first TimePoint folder."""
    entries = _first(folder)
    if any(name.lower().endswith(".htd") for name in entries):
        return True
    times = sorted(name for name in entries if _TIME.fullmatch(name) and (folder / name).is_dir())
    inner = _first(folder / times[0]) if times else entries
    steps = sorted(name for name in inner if _STEP.fullmatch(name)) if times else []
    if steps:
        inner = inner + _first(folder / times[0] / steps[0])
    return any(_IMAGE.fullmatch(name) for name in inner)


def _first(folder: Path) -> list[str]:
    with os.scandir(folder) as found:
        return [entry.name for entry in islice(found, _SNIFF_ENTRIES)]


def describe(folder: Path) -> PlateFolder:
    """Key and names from the last two parts of the path."""
    return PlateFolder(
        path=folder,
        layout=NAME,
        key=plate_key(folder.parent.name, folder.name),
        experiment=folder.parent.name,
        plate=folder.name,
    )


def read(found: PlateFolder, options: ReadOptions) -> Plate:
    """List the plate and read its HTD; without one, the heads of its images.  Raises UsageError with one line."""
    known = joined(options, found.experiment, (found.plate,))
    fields = Declarations(found.path)
    images = list(_images(found.path, fields))
    htds = sorted(name for name in os.listdir(found.path) if name.lower().endswith(".htd"))  # noqa: PTH208
    if len(htds) > 1:
        raise UsageError(f"plate {found.path}: has {len(htds)} HTD files, {htds[0]} and {htds[1]}; leave one in it")
    try:
        if htds:
            return _declared_plate(found, fields, images, read_htd(found.path / htds[0]), known)
        return _listed_plate(found, fields, images, known, options)
    except ValueError as error:
        raise UsageError(f"plate {found.path}: {error}") from error


def _images(root: Path, fields: Declarations) -> Iterator[_Image]:
    """All images below the plate, in order of their names; others are passed over, those of no place are strays."""
    for folder, timepoint, z in _folders(root):
        prefix = "" if folder == root else f"{folder.relative_to(root)}/"
        for name in sorted(os.listdir(folder)):  # noqa: PTH208  a million names: no Path objects
            match = _IMAGE.fullmatch(name)
            if not match or match["thumb"]:
                continue
            try:
                well = Well.parse(match["well"])
                site = int(match["site"] or 1)
                if site > MAX_COUNT:
                    raise ValueError(f"site {site} is out of range")
            except ValueError as error:
                fields.stray(prefix + name, str(error))
                continue
            yield _Image(prefix + name, Place(well, site, timepoint, z), int(match["wave"] or 1))


def _folders(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Folders that may hold images, with their timepoint and z step (0: none)."""
    times = _numbered(root, _TIME) or [(root, 0)]
    for folder, timepoint in times:
        yield folder, timepoint, 0
        for step, z in _numbered(folder, _STEP):
            yield step, timepoint, z


def _numbered(folder: Path, pattern: re.Pattern[str]) -> list[tuple[Path, int]]:
    with os.scandir(folder) as entries:
        found = [
            (int(match[1]), entry.name)
            for entry in entries
            if (match := pattern.fullmatch(entry.name)) and entry.is_dir()
        ]
    return [(folder / name, number) for number, name in sorted(found)]


# -- with an HTD ------------------------------------------------------------------------------------------------------


def _declared_plate(
    found: PlateFolder, fields: Declarations, images: list[_Image], said: Declared, known: Wells
) -> Plate:
    wells, sites = set(said.wells), said.sites({image.place.site for image in images})
    declared = _levels(images, said)
    for image in images:
        place = image.place
        if place.well not in wells or place.site not in sites or image.wave not in said.waves:
            fields.stray(image.name, "the HTD does not declare it")
        else:
            fields.add(place, image.wave, image.name)
    for well in said.wells:
        for site in sites:
            for timepoint, z in declared:
                fields.declare(Place(well, site, timepoint, z))
    facts = image_facts(found.path / images[0].name) if images else ImageFacts()
    names: Names = {wave: (name, None) for wave, name in said.waves.items()}
    return _plate(found, fields, images, names, (said.rows, said.columns), known, facts.pixel_size_um)


def _levels(images: Iterable[_Image], said: Declared) -> list[tuple[int, int]]:
    """The (timepoint, z) that fields have: as declared, numbered as the folders are."""
    seen = sorted({(image.place.timepoint, image.place.z) for image in images})
    times = sorted({timepoint for timepoint, _ in seen})
    if len(times) < said.timepoints:
        first = min(times, default=1) or 1
        times = sorted({*times, *range(first, first + said.timepoints)} - {0})[: said.timepoints]
    steps = {z for _, z in seen}
    if said.z_steps > 1 and steps != {0}:
        steps |= set(range(1, said.z_steps + 1))
    return [(timepoint, z) for timepoint in times for z in sorted(steps or {0})]


# -- without one ------------------------------------------------------------------------------------------------------


def _listed_plate(
    found: PlateFolder, fields: Declarations, images: list[_Image], known: Wells, options: ReadOptions
) -> Plate:
    if not images:
        raise UsageError(f"plate {found.path}: no image such as NAME_C07_s1_w1.tif is left in it")
    with ThreadPoolExecutor(_THREADS) as pool:
        heads = list(pool.map(lambda image: image_facts(found.path / image.name), images))
    names: Names = {}
    for image, facts in zip(images, heads, strict=True):
        _place(fields, image, facts)
        if facts.channel and image.wave not in names:
            names[image.wave] = (facts.channel, facts.emission_nm)
    for wave in {image.wave for image in images}:
        names.setdefault(wave, (f"w{wave}", None))
    places = {image.place for image in images}
    wells = sorted({place.well for place in places} | {Well.parse(name) for name in known})
    for well in wells:
        for site, timepoint, z in {(place.site, place.timepoint, place.z) for place in places}:
            fields.declare(Place(well, site, timepoint, z))
    return _plate(found, fields, images, names, plate_format(wells, options.plate_format), known, None)


def _place(fields: Declarations, image: _Image, facts: ImageFacts) -> None:
    """Put an image where its stage label says; one whose name says another place spoils both."""
    place = image.place
    said = replace(place, well=facts.well or place.well, site=facts.site or place.site)
    where = (facts.position_x_um, facts.position_y_um, facts.pixel_size_um)
    fields.add(said, image.wave, image.name, where)
    if said != place:
        label, name = (f"{one.well.name} site {one.site}" for one in (said, place))
        words = f"{shown(image.name)}: its stage label says {label}, its name {name}"
        for one in (said, place):
            fields.fault(one, words, UNREADABLE)


# -- both -------------------------------------------------------------------------------------------------------------


def _plate(
    found: PlateFolder,
    fields: Declarations,
    images: list[_Image],
    names: Names,
    size: tuple[int, int],
    known: Wells,
    pixel_size_um: float | None,
) -> Plate:
    waves = sorted(names)
    imaged = {(image.wave, image.place.z) for image in images}
    several = len({image.place.z for image in images}) > 1
    titles = Counter(name for name, _ in names.values())
    rows = []
    for one in fields.fields(waves):
        z = int(one.z or 0)
        # A wavelength that no well has at this z plane was not asked for there.
        planes = tuple(
            stack if not several or (wave, z) in imaged else () for wave, stack in zip(waves, one.planes, strict=True)
        )
        rows.append(
            replace(
                one, planes=planes, z=str(z) if several else one.z, pixel_size_um=one.pixel_size_um or pixel_size_um
            )
        )
    return Plate(
        key=found.key,
        experiment=found.experiment,
        plate=found.plate,
        rows=size[0],
        columns=size[1],
        channels=tuple(
            Channel(
                index=position,
                name=names[wave][0] if titles[names[wave][0]] == 1 else f"{names[wave][0]} (w{wave})",
                emission_nm=names[wave][1],
            )
            for position, wave in enumerate(waves)
        ),
        fields=tuple(rows),
        root=found.path,
        layout=NAME,
        metadata=known,
        strays=fields.strays,
    )
