"""16-bit pixels as 8 bits: one linear look-up table for each channel of a plate, found once and stored with the plate.

A grey level v becomes clip(round((v - low) * 255 / (high - low)), 0, 255), with low and high percentiles of a keyed sample of
the plate's fields.  The table lies in the array's attributes, so that it travels with the pixels; once there it stays, also
when images change later: the same plate is never stored on two scales.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.philox import philox
from phenomhpc.plates import Plate, UnreadableImage, decode_plane, plane_bytes
from phenomhpc.plates.illumination import divide
from phenomhpc.plates.project import Projection
from phenomhpc.plates.types import Stack
from phenomhpc.store.layout import StorePaths

ATTRIBUTE = "lookup"
LEVELS = 2**16
SAMPLED_FIELDS, STRIDE = 16, 4
SEED, PURPOSE = 0, 101


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """low, high: grey levels of each channel, in stored order, that become 0 and 255; percentiles: how they were found."""

    low: tuple[int, ...]
    high: tuple[int, ...]
    percentiles: tuple[float, float]

    def tables(self) -> NDArray[np.uint8]:
        """u8 (C, 65536)."""
        level = np.arange(LEVELS, dtype=np.float64)
        rows = [
            np.clip(np.floor((level - low) * (255 / (high - low)) + 0.5), 0, 255)
            for low, high in zip(self.low, self.high, strict=True)
        ]
        return np.stack(rows).astype(np.uint8)

    def attribute(self) -> dict[str, Any]:
        """As it stands in the array's attributes."""
        return {"low": list(self.low), "high": list(self.high), "percentiles": list(self.percentiles)}


def read_lookup(paths: StorePaths, plate: str) -> Lookup | None:
    """The table of a plate that is in the store; None where it has none, or is not there."""
    try:
        said = json.loads((paths.images(plate) / "zarr.json").read_bytes())["attributes"].get(ATTRIBUTE)
    except (FileNotFoundError, ValueError, KeyError):
        return None
    if said is None:
        return None
    low, high = tuple(said["low"]), tuple(said["high"])
    return Lookup(low=low, high=high, percentiles=(said["percentiles"][0], said["percentiles"][1]))


def find_lookup(
    plate: Plate, percentiles: tuple[float, float], flats: Sequence[NDArray[np.float32] | None] = ()
) -> Lookup:
    """From every fourth pixel of every fourth row of up to 16 fields, chosen by their number alone; a pure function of the
    planes.  Planes that cannot be read are passed over; a channel without any gets the whole range.

    flats: what the channels are divided by before.
    """
    counts = np.zeros((len(plate.channels), LEVELS), np.int64)
    for number in sampled_fields(plate):
        for channel, stack in enumerate(plate.fields[number].planes):
            pixels = stack_pixels(stack, plate.projection)
            flat = flats[channel] if flats else None
            if pixels is not None and pixels.dtype == np.uint16:
                if flat is not None and flat.shape == pixels.shape:
                    divide(pixels, flat)
                counts[channel] += np.bincount(pixels[::STRIDE, ::STRIDE].ravel(), minlength=LEVELS)
    cumulative = np.cumsum(counts, axis=1)
    low, high = (
        (cumulative < np.ceil(cumulative[:, -1:] * (percentile / 100))).sum(axis=1) for percentile in percentiles
    )
    empty = cumulative[:, -1] == 0
    low, high = np.where(empty, 0, low), np.where(empty, LEVELS - 1, np.maximum(high, low + 1))
    return Lookup(low=tuple(map(int, low)), high=tuple(map(int, high)), percentiles=percentiles)


def sampled_fields(plate: Plate) -> list[int]:
    """Up to 16 fields of a plate, chosen by their number alone."""
    order = np.argsort(philox(SEED, PURPOSE, np.arange(len(plate.fields)))[:, 0], kind="stable")
    return [int(number) for number in order[:SAMPLED_FIELDS]]


def stack_pixels(stack: Stack, how: str) -> NDArray[Any] | None:
    """The plane (H, W) of one channel of a field, projected where it is a stack; None where it cannot be read."""
    projection = Projection(how)
    for plane in stack:
        if plane is None:
            return None
        try:
            projection.add(decode_plane(plane, plane_bytes(plane)))
        except (UnreadableImage, OSError):
            return None
    return projection.result() if stack else None
