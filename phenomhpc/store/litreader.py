"""Crops whose uneven light is taken off as they are read, for stores that keep it beside the pixels.

A crop so read is what `convert --illumination apply` would have stored, to within one grey level where a value lies on the
edge between two (and two where a look-up table has rounded before).  Dividing costs about as much as decoding: what is read
more than a few times is better converted with it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.plates.illumination import NoProfile, Profile, divide
from phenomhpc.store.light import APPLY, kept_profiles, read_attribute
from phenomhpc.store.lookup import read_lookup
from phenomhpc.store.reader import ShardReader
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.store.snapshot import Snapshot

# Profiles of so many plates stay in memory, of about a megabyte each.
MAX_PLATES = 32


class Reader(Protocol):
    """What gives crops: the store's ShardReader, or one that divides what it gives."""

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """Fill `out` (C, h, w) with the crop at (y, x) of row `field_no` of the snapshot's table."""


@runtime_checkable
class Metered(Reader, Protocol):
    """A reader that counts what it asks of the stores' file systems."""

    @property
    def traffic(self) -> Traffic:
        """So far, of all its threads."""

    @property
    def num_from_cache(self) -> int:
        """Crops that came from a node's cache so far."""


@dataclass(frozen=True, kw_only=True)
class _Light:
    """Of each channel what it is divided by, and how many grey levels a look-up table has taken off."""

    profiles: tuple[Profile | None, ...]
    dark: tuple[float, ...]


def require_light(snapshot: Snapshot) -> None:
    """Raise UsageError naming the first plate of which the store knows nothing, or has other light applied than was kept."""
    for plate in snapshot.plates:
        if read_attribute(snapshot.store.paths, plate) is None:
            raise UsageError(
                f"store {snapshot.store.paths.root}: plate {plate}: nothing is known of its uneven light; illumination=keep, "
                "or convert it with --illumination estimate"
            )


@contextmanager
def open_pixels(snapshot: Snapshot, illumination: str, cache: Path | None = None) -> Iterator[Metered]:
    """A reader of the snapshot's crops: as they are stored (`keep`), or divided by the light kept beside them (`apply`).

    cache: where raw shards of the store may lie.
    """
    with ShardReader(snapshot.store, snapshot, cache=cache) as reader:
        yield LitReader(reader, snapshot) if illumination == APPLY else reader


class LitReader:
    """Thread-safe, as the reader it stands before.  What has light applied already is given as it is."""

    def __init__(self, reader: Metered, snapshot: Snapshot) -> None:
        self._reader, self._snapshot = reader, snapshot
        self._lights: OrderedDict[int, _Light] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """As ShardReader.read(), divided.  Raises WorkError naming the plate whose light cannot be used."""
        self._reader.read(field_no, y, x, out)
        row = self._snapshot.table[field_no]
        plate_no = int(row["plate"])
        try:
            light = self._light(plate_no, int(row["height"]), int(row["width"]))
            for plane, profile, dark in zip(out, light.profiles, light.dark, strict=True):
                if profile is not None:
                    divide(plane, profile.window(y, x, *out.shape[1:]), dark)
        except NoProfile as error:
            root, plate = self._snapshot.store.paths.root, self._snapshot.plates[plate_no]
            raise WorkError(f"store {root}: plate {plate}: its uneven light {error}; illumination=keep") from error

    @property
    def traffic(self) -> Traffic:
        return self._reader.traffic

    @property
    def num_from_cache(self) -> int:
        return self._reader.num_from_cache

    def _light(self, plate_no: int, height: int, width: int) -> _Light:
        with self._lock:
            light = self._lights.get(plate_no)
            if light is None:
                plate = self._snapshot.plates[plate_no]
                light = self._lights[plate_no] = _light_of(self._snapshot, plate, (height, width))
                if len(self._lights) > MAX_PLATES:
                    self._lights.popitem(last=False)
            self._lights.move_to_end(plate_no)
            return light


def _light_of(snapshot: Snapshot, plate: str, size: tuple[int, int]) -> _Light:
    paths, channels = snapshot.store.paths, len(snapshot.channels)
    lookup = read_lookup(paths, plate)
    dark = (0.0,) * channels
    if lookup is not None:
        dark = tuple(low * 255 / (high - low) for low, high in zip(lookup.low, lookup.high, strict=True))
    return _Light(profiles=kept_profiles(paths, plate, size, channels), dark=dark)
