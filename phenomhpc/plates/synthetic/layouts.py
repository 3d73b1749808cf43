"""The same plate as each microscope would have written it: raw input of every layout, with known pixels."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray

from phenomhpc.plates.images import decode_plane, plane_bytes
from phenomhpc.plates.synthetic.omezarr_layout import write_omezarr
from phenomhpc.plates.synthetic.writing import encode, image_name
from phenomhpc.plates.types import Field, Plate, Well

if TYPE_CHECKING:
    from phenomhpc.plates.images import Pixels

PIXEL_UM = 0.6
_V5 = "http://www.perkinelmer.com/PEHH/HarmonyV5"
_V7 = "43B2A954-E3C3-47E1-B392-6635266B0DD3/HarmonyV7"
_BTS = 'xmlns:bts="http://www.yokogawa.co.jp/BTS/BTSSchema/1.0"'


@dataclass(frozen=True, kw_only=True)
class _Image:
    """One plane to be written: 1-based channel and z, pixels."""

    field: Field
    channel: int
    z: int
    pixels: Pixels


def z_plane(plane: Pixels, z: int) -> Pixels:
    """The plane of a made-up stack at step z (from 1): the first is the plane itself, the others moved and darker."""
    moved: Pixels = np.roll(plane, 3 * (z - 1), axis=1) // plane.dtype.type(z)
    return moved


def write_layout(plate: Plate, folder: Path, layout: str, *, stack: int = 1) -> Path:
    """Write a plate (of single planes) below `folder` as another layout has it; returns the folder that is the plate.

    layout: a key of WRITERS.  stack: z planes, where the layout has them.  Raises ValueError for another layout,
    and for a stack or several timepoints where it has none.
    """
    if layout not in WRITERS:
        raise ValueError(f"layout {layout}: none of {', '.join(WRITERS)}")
    if layout in FLAT and (stack > 1 or len({field.timepoint for field in plate.fields}) > 1):
        raise ValueError(f"layout {layout}: it has no z planes and no timepoints")
    return WRITERS[layout](plate, folder, list(_images(plate, stack)), stack)


def _images(plate: Plate, stack: int) -> Iterator[_Image]:
    for field in plate.fields:
        for channel, planes in enumerate(field.planes, 1):
            for plane in planes:
                if plane is not None:
                    pixels = decode_plane(plane, plane_bytes(plane))
                    for z in range(1, stack + 1):
                        yield _Image(field=field, channel=channel, z=z, pixels=z_plane(pixels, z))


def tiff(pixels: Pixels, *, compression: str | None = "lzw", description: str | None = None) -> bytes:
    """A plane as TIFF: uncompressed, "lzw" or "zlib"."""
    import tifffile

    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, compression=compression, metadata=None, description=description)
    return buffer.getvalue()


# -- Harmony ----------------------------------------------------------------------------------------------------------


def _harmony(plate: Plate, folder: Path, images: list[_Image], version: int) -> Path:
    measurement = folder / f"{plate.plate}__2024-05-02T10_00_00-Measurement 1"
    target = measurement / "Images"
    target.mkdir(parents=True)
    entries = []
    for image in images:
        field, well = image.field, image.field.well
        name = f"r{well.row:02d}c{well.column:02d}f{field.site:02d}p{image.z:02d}-ch{image.channel}sk1fk1fl1.tiff"
        (target / name).write_bytes(tiff(image.pixels))
        channel = "" if version == 7 else _channel_facts(plate, image.channel)
        entries.append(
            f'<Image Version="1"><id>{name[:12]}</id><State>Ok</State><URL>{name}</URL>'
            f"<Row>{well.row}</Row><Col>{well.column}</Col>"
            f"<FieldID>{field.site}</FieldID><PlaneID>{image.z}</PlaneID><TimepointID>{field.timepoint}</TimepointID>"
            f'<ChannelID>{image.channel}</ChannelID>{channel}<PositionX Unit="m">{1e-4 * field.site}</PositionX>'
            f'<PositionY Unit="m">0</PositionY></Image>'
        )
    numbers = range(1, len(plate.channels) + 1)
    maps = "".join(f'<Entry ChannelID="{number}">{_channel_facts(plate, number)}</Entry>' for number in numbers)
    text = (
        f'<?xml version="1.0" encoding="utf-8"?>\n<EvaluationInputData Version="{2 if version == 7 else 1}" '
        f'xmlns="{_V7 if version == 7 else _V5}"><Plates><Plate><PlateID>{escape(plate.plate)}</PlateID>'
        f"<MeasurementID>m-1</MeasurementID><PlateRows>{plate.rows}</PlateRows><PlateColumns>{plate.columns}</PlateColumns>"
        f"</Plate></Plates><Maps><Map>{maps if version == 7 else ''}</Map></Maps>\n<Images>"
        + "\n".join(entries)
        + "</Images></EvaluationInputData>"
    )
    (target / ("Index.xml" if version == 7 else "Index.idx.xml")).write_text(text)
    return measurement


def _channel_facts(plate: Plate, number: int) -> str:
    name = escape(plate.channels[number - 1].name)
    return f'<ChannelName>{name}</ChannelName><ImageResolutionX Unit="m">{PIXEL_UM * 1e-6}</ImageResolutionX>'


# -- MetaXpress -------------------------------------------------------------------------------------------------------


def _imagexpress(plate: Plate, folder: Path, images: list[_Image], stack: int, *, htd: bool) -> Path:
    target = folder / plate.experiment / plate.plate
    for number, image in enumerate(images):
        place = target / f"TimePoint_{image.field.timepoint + 1}" / (f"ZStep_{image.z}" if stack > 1 else "")
        place.mkdir(parents=True, exist_ok=True)
        well, site = image.field.well.name, image.field.site
        guid = str(UUID(int=number)).upper()
        label = None if htd else _metaseries(f"{well} : Site {site}", plate.channels[image.channel - 1].name)
        name = f"{plate.experiment}_{well}_s{site}_w{image.channel}{guid}.tif"
        (place / name).write_bytes(tiff(image.pixels, compression=None, description=label))
    if htd:
        (target / f"{plate.experiment}.HTD").write_text(_htd(plate, stack), newline="")
    return target


def _metaseries(label: str, channel: str) -> str:
    said = {
        "spatial-calibration-x": str(PIXEL_UM),
        "spatial-calibration-units": "um",
        "stage-label": label,
        "_IllumSetting_": channel,
    }
    props = "".join(f'<prop id="{name}" type="string" value="{escape(value)}"/>' for name, value in said.items())
    return f"<MetaData><PlaneInfo>{props}</PlaneInfo></MetaData>"


def _htd(plate: Plate, stack: int) -> str:
    wells = {field.well for field in plate.fields}
    sites = max(field.site for field in plate.fields)
    times = len({field.timepoint for field in plate.fields})
    lines = ['"HTSInfoFile", Version 1.0', f'"XWells", {plate.columns}', f'"YWells", {plate.rows}']
    for row in range(1, plate.rows + 1):
        flags = [str(Well(row=row, column=column) in wells).upper() for column in range(1, plate.columns + 1)]
        lines.append(f'"WellsSelection{row}", {", ".join(flags)}')
    lines += ['"Sites", TRUE', f'"XSites", {sites}', '"YSites", 1', f'"SiteSelection1", {", ".join(["TRUE"] * sites)}']
    lines += ['"Waves", TRUE', f'"NWavelengths", {len(plate.channels)}', f'"TimePoints", {times}']
    lines += [f'"WaveName{channel.index + 1}", "{channel.name}"' for channel in plate.channels]
    lines += [f'"ZSeries", {str(stack > 1).upper()}', f'"ZSteps", {stack}', '"EndFile"']
    return "\r\n".join(lines) + "\r\n"


# -- CellVoyager ------------------------------------------------------------------------------------------------------


def _cellvoyager(plate: Plate, folder: Path, images: list[_Image], stack: int) -> Path:
    target = folder / plate.experiment / plate.plate
    target.mkdir(parents=True)
    records = []
    for image in images:
        field, well, number = image.field, image.field.well, image.channel
        place = f"T{field.timepoint + 1:04d}F{field.site:03d}L01A{number:02d}Z{image.z:02d}C{number:02d}"
        name = f"{plate.plate}_{well.name}_{place}.tif"
        (target / name).write_bytes(tiff(image.pixels, compression="zlib"))
        records.append(
            f'<bts:MeasurementRecord bts:Type="IMG" bts:Column="{well.column}" bts:Row="{well.row}" '
            f'bts:TimePoint="{field.timepoint + 1}" bts:FieldIndex="{field.site}" bts:ZIndex="{image.z}" bts:TimelineIndex="1" '
            f'bts:ActionIndex="{number}" bts:X="0.5" bts:Y="-1.5" bts:Ch="{number}">{name}</bts:MeasurementRecord>'
        )
    for name in ("SC_20x_CH01.tif", "DC_sCMOS#1_CAM1.tif"):
        (target / name).write_bytes(b"shading or dark current")
    text = f'<bts:MeasurementData bts:Version="1.0" {_BTS}>\n' + "\n".join(records) + "\n</bts:MeasurementData>"
    (target / "MeasurementData.mlf").write_text(text)
    numbers = range(1, len(plate.channels) + 2)  # one more than was imaged
    detail = "".join(
        f'<bts:MeasurementChannel bts:Ch="{n}" bts:HorizontalPixelDimension="{PIXEL_UM}"/>' for n in numbers
    )
    (target / "MeasurementDetail.mrf").write_text(
        f'<bts:MeasurementDetail bts:ColumnCount="{plate.columns}" bts:RowCount="{plate.rows}" {_BTS}>'
        f"{detail}</bts:MeasurementDetail>"
    )
    channels = "".join(
        f'<bts:Channel bts:Ch="{channel.index + 1}" bts:Target="405" bts:Acquisition="BP445/45" '
        f'bts:Fluorophore="{escape(channel.name)}"/>'
        for channel in plate.channels
    )
    (target / "screen.mes").write_text(f"<bts:MeasurementSetting {_BTS}>{channels}</bts:MeasurementSetting>")
    return target


# -- Cell Painting Gallery --------------------------------------------------------------------------------------------


def _gallery(plate: Plate, folder: Path, images: list[_Image], stack: int) -> Path:
    """Images, illumination functions and table in the Gallery's folders; paths in the table are another machine's."""
    elsewhere, batch = "/home/ubuntu/bucket/projects/cpg", plate.experiment
    pictures = folder / "images" / batch / "images" / plate.plate / "Images"
    functions = folder / "images" / batch / "illum" / plate.plate
    target = folder / "workspace" / "load_data_csv" / batch / plate.plate
    for place in (pictures, functions, target):
        place.mkdir(parents=True)
    rows: dict[tuple[Field, int], dict[str, object]] = {}
    for image in images:
        field, name = image.field, plate.channels[image.channel - 1].name
        file = f"{field.well.name}_f{field.site}_p{image.z}_{image.channel}.tiff"
        (pictures / file).write_bytes(tiff(image.pixels))
        row = rows.setdefault((field, image.z), {
            "Metadata_Plate": plate.plate, "Metadata_Well": field.well.name, "Metadata_Site": field.site,
            "Metadata_PlaneID": image.z, "Metadata_ImageResolutionX": PIXEL_UM * 1e-6,
        })  # fmt: skip
        row[f"FileName_Orig{name}"] = file
        row[f"PathName_Orig{name}"] = f"{elsewhere}/images/{batch}/images/{plate.plate}/Images"
        row[f"FileName_Illum{name}"] = f"{plate.plate}_Illum{name}.npy"
        row[f"PathName_Illum{name}"] = f"{elsewhere}/images/{batch}/illum/{plate.plate}"
    height, width = images[0].pixels.shape
    for channel in plate.channels:
        np.save(functions / f"{plate.plate}_Illum{channel.name}.npy", vignette(height, width))
    header = list(dict.fromkeys(name for row in rows.values() for name in row))
    with (target / "load_data_with_illum.csv").open("w", newline="") as file_object:
        writer = csv.DictWriter(file_object, header)
        writer.writeheader()
        writer.writerows(rows.values())
    return target


def vignette(height: int, width: int) -> NDArray[np.float64]:
    """An illumination function f64 (H, W): 1 in the corners, up to 1.5 in the middle."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    shape: NDArray[np.float64] = 1.5 - 0.25 * (x**2 + y**2)
    return shape


# -- RxRx -------------------------------------------------------------------------------------------------------------


def _rxrx(plate: Plate, folder: Path, images: list[_Image], image_format: str) -> Path:
    """RxRx1's names ("png") or RxRx3's ("jp2"); the layout has neither stacks nor timepoints."""
    target = folder / plate.experiment / f"Plate{plate.plate}"
    target.mkdir(parents=True)
    for image in images:
        name = image_name(image.field.well, image.field.site, image.channel, image_format)
        (target / name).write_bytes(encode(image.pixels, image_format))
    return target


# -- OME-Zarr ---------------------------------------------------------------------------------------------------------


def _omezarr(plate: Plate, folder: Path, images: list[_Image], stack: int, version: str) -> Path:
    planes: dict[Field, dict[tuple[int, int], Pixels]] = {field: {} for field in plate.fields}
    for image in images:
        planes[image.field][image.channel - 1, image.z] = image.pixels
    return write_omezarr(plate, folder, planes, stack, version, PIXEL_UM)


# Layouts that have one plane of a site.
FLAT = ("rxrx-1", "rxrx-3")
Writer = Callable[[Plate, Path, list[_Image], int], Path]
WRITERS: dict[str, Writer] = {
    "phenix": lambda plate, folder, images, stack: _harmony(plate, folder, images, 5),
    "phenix-7": lambda plate, folder, images, stack: _harmony(plate, folder, images, 7),
    "imagexpress": lambda plate, folder, images, stack: _imagexpress(plate, folder, images, stack, htd=True),
    "imagexpress-bare": lambda plate, folder, images, stack: _imagexpress(plate, folder, images, stack, htd=False),
    "cellvoyager": _cellvoyager,
    "gallery": _gallery,
    "omezarr": lambda plate, folder, images, stack: _omezarr(plate, folder, images, stack, "0.5"),
    "omezarr-4": lambda plate, folder, images, stack: _omezarr(plate, folder, images, stack, "0.4"),
    "rxrx-1": lambda plate, folder, images, stack: _rxrx(plate, folder, images, "png"),
    "rxrx-3": lambda plate, folder, images, stack: _rxrx(plate, folder, images, "jp2"),
}
