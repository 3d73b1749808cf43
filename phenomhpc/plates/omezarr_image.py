"""An image of an OME-Zarr plate, as the metadata of its group and of its first array describe it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from phenomhpc.plates import zarrlayout
from phenomhpc.plates.collect import MAX_COUNT, is_inside, shown
from phenomhpc.plates.types import HOSTILE, UNREADABLE, UnreadableImage, Well

VERSIONS = ("0.4", "0.5")
# What `store export-hcs` writes beside the specification: see store/hcs.py.
OWN = "phenomhpc"
MAX_PLANES = 2**17
_MAX_CHANNELS = 100
_MICROMETRES = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
_AXES = ("t", "c", "z", "y", "x")
_OF_TYPE = {"time": "t", "channel": "c"}
# Every part of tczyx that has y and x.
_ORDERS = {
    "".join(axis for number, axis in enumerate(_AXES) if number > 2 or chosen >> number & 1) for chosen in range(8)
}
Reasoned = tuple[str, str]


def attributes(folder: Path) -> Mapping[str, Any]:
    """The OME-Zarr metadata of a group, and under OWN what export-hcs said beside.  Raises OSError, ValueError."""
    if (folder / zarrlayout.V3).is_file():
        attributes = zarrlayout.read_json(folder / zarrlayout.V3)[1].get("attributes")
        attributes = attributes if isinstance(attributes, dict) else {}
        ome = attributes.get("ome")
        return {**(ome if isinstance(ome, dict) else {}), OWN: attributes.get(OWN)}
    return zarrlayout.read_json(folder / ".zattrs")[1]


def list_of(value: Any, name: str) -> list[Any]:
    """The value, if it is a list.  Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"its {name} are no list")
    return value


def object_of(value: Any, name: str) -> Mapping[str, Any]:
    """The value, if it is an object.  Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"its {name} is no object")
    return value


class Own(NamedTuple):
    """The fields that became an image, as export-hcs wrote them: site, timepoints, names of the z planes."""

    site: int
    timepoints: tuple[int, ...]
    z: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image of a well.  problem: why it cannot be read; the rest below then says nothing.

    array: path of level 0 below the plate.  axes: a part of tczyx in that order.  where_um: x, y and size of a pixel.
    """

    well: Well
    path: str
    place: int
    acquisition: int | None
    problem: Reasoned | None = None
    array: str = ""
    axes: str = ""
    shape: tuple[int, ...] = ()
    labels: tuple[str, ...] = ()
    where_um: tuple[float | None, float | None, float | None] = (None, None, None)
    own: Own | None = None

    def length(self, axis: str) -> int:
        return self.shape[self.axes.index(axis)] if axis in self.axes else 1


def look_into(root: Path, path: str, image: Image) -> Image:
    """The image at `path` below the plate with what its metadata say, or with its problem.  Raises nothing."""
    where = f"image {path}"
    try:
        return replace(image, **_looked_into(root, path))
    except _HostileError as error:
        return replace(image, problem=(HOSTILE, f"{where}: {error}"))
    except OSError as error:
        return replace(image, problem=(UNREADABLE, f"{where}: {error.strerror}"))
    except UnreadableImage as error:
        return replace(image, problem=(UNREADABLE, f"{where}: its array {error}"))
    except (ValueError, TypeError, OverflowError) as error:
        return replace(image, problem=(UNREADABLE, f"{where}: {error}"))


class _HostileError(Exception):
    """Metadata that lead out of the plate."""


def _looked_into(root: Path, path: str) -> dict[str, Any]:
    """What an image's metadata and its first array's say.  Raises ValueError, OSError, UnreadableImage, _HostileError."""
    said = attributes(root / path)
    scales = object_of((list_of(said.get("multiscales"), "multiscales") or [None])[0], "multiscales")
    version = said.get("version") or scales.get("version") or VERSIONS[0]
    if version not in VERSIONS:
        raise ValueError(f"is OME-Zarr {shown(str(version))}; {' and '.join(VERSIONS)} are read")
    axes = [object_of(axis, "axis") for axis in list_of(scales.get("axes"), "axes")]
    letters = "".join(_OF_TYPE.get(str(axis.get("type")), str(axis.get("name")).lower()) for axis in axes)
    if letters not in _ORDERS:
        raise ValueError(f"its axes are {shown(letters)}; a part of tczyx that ends with yx is read")
    dataset = object_of((list_of(scales.get("datasets"), "datasets") or [None])[0], "datasets")
    name = dataset.get("path")
    if not isinstance(name, str) or not is_inside(name):
        raise _HostileError(f"array {shown(str(name))} leaves the plate's folder")
    shape = zarrlayout.read_layout(root / path / name).shape
    if len(shape) != len(letters):
        raise ValueError(f"its array has {len(shape)} axes, {len(letters)} are named")
    sizes = dict(zip(letters, shape, strict=True))
    if sizes.get("c", 1) > _MAX_CHANNELS or sizes.get("t", 1) * sizes.get("z", 1) > MAX_PLANES:
        raise ValueError(f"its array claims a shape of {shape}")
    return {
        "array": f"{path}/{name}",
        "axes": letters,
        "shape": shape,
        "labels": _labels(said, sizes.get("c", 1)),
        "where_um": _where(letters, axes, [dataset, scales]),
        "own": _own(said.get(OWN), sizes.get("t", 1), sizes.get("z", 1)),
    }


def _labels(said: Mapping[str, Any], num_channels: int) -> tuple[str, ...]:
    """omero's labels, else ch1, ch2 ...; two of one name are told apart by their number."""
    omero = said.get("omero")
    listed = omero.get("channels") if isinstance(omero, dict) else None
    listed = listed if isinstance(listed, list) and len(listed) == num_channels else [None] * num_channels
    names = []
    for number, entry in enumerate(listed, 1):
        label = entry.get("label") if isinstance(entry, dict) else None
        names.append(label.strip() if isinstance(label, str) and label.strip() else f"ch{number}")
    times = Counter(names)
    return tuple(name if times[name] == 1 else f"{name} (channel {number})" for number, name in enumerate(names, 1))


def _where(
    letters: str, axes: Sequence[Mapping[str, Any]], said: Sequence[Mapping[str, Any]]
) -> tuple[float | None, float | None, float | None]:
    """x, y and pixel size in micrometres, from the transformations of the dataset and then of the image.

    None without a unit of length: a scale without one is a number of pixels.
    """
    scale, shift, shifted = [1.0] * len(axes), [0.0] * len(axes), False
    for entry in said:
        for step in list_of(entry.get("coordinateTransformations") or [], "coordinateTransformations"):
            kind = object_of(step, "transformation").get("type")
            if kind not in ("scale", "translation"):
                continue
            values = [float(value) for value in list_of(step.get(kind), str(kind))]
            if len(values) != len(axes):
                raise ValueError(f"its {kind} has {len(values)} numbers for {len(axes)} axes")
            if kind == "scale":
                scale = [old * new for old, new in zip(scale, values, strict=True)]
                shift = [old * new for old, new in zip(shift, values, strict=True)]
            else:
                shift, shifted = [old + new for old, new in zip(shift, values, strict=True)], True
    x, y = letters.index("x"), letters.index("y")
    units = [_MICROMETRES.get(str(axes[at].get("unit"))) for at in (x, y)]
    pixel = scale[x] * units[0] if units[0] is not None else None
    if not shifted or units[0] is None or units[1] is None:
        return None, None, pixel
    return shift[x] * units[0], shift[y] * units[1], pixel


def _own(said: Any, num_times: int, num_z: int) -> Own | None:
    """What export-hcs wrote of the fields that became an image; None where it says nothing, or what does not fit."""
    if not isinstance(said, dict):
        return None
    site, times, z = said.get("site"), said.get("timepoints"), said.get("z")
    if not isinstance(times, list) or not isinstance(z, list) or len(times) != num_times or len(z) != num_z:
        return None
    sound = all(type(number) is int and 0 <= number <= MAX_COUNT for number in (site, *times))
    if not sound or not isinstance(site, int) or len(set(times)) != num_times:
        return None
    return Own(site, tuple(times), tuple(map(str, z)))
