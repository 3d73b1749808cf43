"""A synthetic plate as OME-Zarr, written by zarr-python from the specification alone: 0.5 with shards, 0.4 without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from phenomhpc.plates.types import Field, Plate, Well

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from phenomhpc.plates.images import Pixels

# field -> (channel from 0, z from 1) -> plane
Planes = Mapping[Field, Mapping[tuple[int, int], "Pixels"]]
_CHUNK_PX = 32


def write_omezarr(plate: Plate, folder: Path, planes: Planes, stack: int, version: str, pixel_um: float) -> Path:
    """Write EXPERIMENT__PLATE.zarr below `folder`; sites are images, timepoints and z planes axes of them."""
    import zarr

    root = folder / f"{plate.experiment}__{plate.plate}.zarr"
    new = version == "0.5"
    group = zarr.open_group(root, mode="w", zarr_format=3 if new else 2)
    wells: dict[Well, dict[int, list[Field]]] = defaultdict(lambda: defaultdict(list))
    for field in planes:
        wells[field.well][field.site].append(field)
    _describe(group, {"plate": _plate_metadata(plate, list(wells), version)}, version)
    for well, sites in wells.items():
        place = _path(well)
        images = [{"path": str(site)} for site in sorted(sites)]
        _describe(group.require_group(place), {"well": {"images": images, "version": version}}, version)
        for site, fields in sites.items():
            axes, pixels = _stacked(fields, planes, len(plate.channels), stack)
            image = group.require_group(f"{place}/{site}")
            _write_array(image, axes, pixels, new=new)
            _describe(image, _image_metadata(plate, axes, fields[0], version, pixel_um), version)
    return root


def _path(well: Well) -> str:
    return f"{well.name[:-2]}/{well.column}"


def _describe(group: Any, said: Mapping[str, Any], version: str) -> None:
    group.attrs.update({"ome": {"version": version, **said}} if version == "0.5" else said)


def _plate_metadata(plate: Plate, wells: Sequence[Well], version: str) -> dict[str, Any]:
    rows = [Well(row=row, column=1).name[:-2] for row in range(1, plate.rows + 1)]
    return {
        "version": version,
        "name": plate.plate,
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": str(column)} for column in range(1, plate.columns + 1)],
        "wells": [
            {"path": _path(well), "rowIndex": well.row - 1, "columnIndex": well.column - 1} for well in sorted(wells)
        ],
    }


def _stacked(fields: Sequence[Field], planes: Planes, num_channels: int, stack: int) -> tuple[str, NDArray[Any]]:
    """Axes, and pixels in their order; a channel that a field lacks is zero, which zarr-python does not write."""
    ordered = sorted(fields, key=lambda field: field.timepoint)
    like = next(iter(planes[ordered[0]].values()))
    pixels = np.zeros((len(ordered), num_channels, stack, *like.shape), like.dtype)
    for time, field in enumerate(ordered):
        for (channel, z), plane in planes[field].items():
            pixels[time, channel, z - 1] = plane
    axes = "tczyx" if len(ordered) > 1 else "czyx"
    pixels = pixels if len(ordered) > 1 else pixels[0]
    if stack == 1:
        pixels, axes = np.take(pixels, 0, axes.index("z")), axes.replace("z", "")
    return axes, pixels


def _write_array(image: Any, axes: str, pixels: NDArray[Any], *, new: bool) -> None:
    from numcodecs import Blosc
    from zarr.codecs import BloscCodec

    chunks = (*(1 for _ in axes[:-2]), _CHUNK_PX, _CHUNK_PX)
    if new:
        shards = (*pixels.shape[:-2], *(-(-size // _CHUNK_PX) * _CHUNK_PX for size in pixels.shape[-2:]))
        how: dict[str, Any] = {"shards": shards, "compressors": BloscCodec(cname="zstd"), "dimension_names": list(axes)}
    else:
        how = {"compressors": Blosc(), "chunk_key_encoding": {"name": "v2", "separator": "/"}}
    array = image.create_array("0", shape=pixels.shape, dtype=pixels.dtype, chunks=chunks, **how)
    array[...] = pixels


def _image_metadata(plate: Plate, axes: str, field: Field, version: str, pixel_um: float) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    units = {"y": {"unit": "micrometer"}, "x": {"unit": "micrometer"}}
    scale = [pixel_um if axis in "yx" else 1.0 for axis in axes]
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if field.position_x_um is not None and field.position_y_um is not None:
        shift = [{"y": field.position_y_um, "x": field.position_x_um}.get(axis, 0.0) for axis in axes]
        steps.append({"type": "translation", "translation": shift})
    scales = {
        "version": version,
        "axes": [{"name": axis, "type": kinds.get(axis, "space"), **units.get(axis, {})} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": steps}],
    }
    window = {"min": 0, "max": 65535, "start": 0, "end": 65535}
    channels = [{"label": channel.name, "color": "FFFFFF", "window": window} for channel in plate.channels]
    return {"multiscales": [scales], "omero": {"channels": channels}}
