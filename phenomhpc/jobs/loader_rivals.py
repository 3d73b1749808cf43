"""What others read of the same crops of a store: zarr-python alone and under PyTorch's DataLoader, and tensorstore."""

from __future__ import annotations

import importlib.util
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.store import Snapshot
from phenomhpc.store.litreader import Reader
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.store.tensorreader import INDEX_CACHE_BYTES, TensorReader

DATALOADER = "DataLoader over zarr-python"
DATALOADER_WORKERS = 2
Places = list[tuple[int, int, int]]


class ZarrReader:
    """zarr-python, an array per plate, opened once."""

    traffic = Traffic()

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._arrays: dict[int, Any] = {}

    def crop(self, field_no: int, y: int, x: int, edge: int) -> NDArray[Any]:
        row = self._snapshot.table[field_no]
        plate = int(row["plate"])
        if plate not in self._arrays:
            import zarr

            path = self._snapshot.store.paths.images(self._snapshot.plates[plate])
            self._arrays[plate] = zarr.open_array(str(path), mode="r")
        found: NDArray[Any] = self._arrays[plate][int(row["field"]), :, y : y + edge, x : x + edge]
        return found

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        out[...] = self.crop(field_no, y, x, out.shape[1])


def rivals(snapshot: Snapshot) -> dict[str, Reader]:
    """zarr-python, and tensorstore where it is installed, without a cache (its default) and with one of indices."""
    found: dict[str, Reader] = {"zarr-python": ZarrReader(snapshot)}
    if importlib.util.find_spec("tensorstore") is not None:
        found["tensorstore"] = TensorReader(snapshot, cache_bytes=0)
        found["tensorstore, 2 MB cache"] = TensorReader(snapshot, cache_bytes=INDEX_CACHE_BYTES)
    return found


class ZarrCrops:
    """What a PyTorch user writes first: a map-style data set over zarr-python, opened in each worker, one crop an item."""

    def __init__(self, snapshot: Snapshot, places: Places, edge: int) -> None:
        self._snapshot, self._places, self._edge = snapshot, places, edge
        self._reader: ZarrReader | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, item: int) -> Any:
        import torch

        if self._reader is None:
            self._reader = ZarrReader(self._snapshot)
        return torch.from_numpy(np.asarray(self._reader.crop(*self._places[item], self._edge)))


def with_dataloader(snapshot: Snapshot, places: Places, edge: int, batch: int = 32) -> float:
    """Crops per second of CPU time, its two workers' included, their start as well: so many crops that it hardly counts."""
    import torch

    crops: Any = ZarrCrops(snapshot, places, edge)
    loader = torch.utils.data.DataLoader(crops, batch_size=batch, num_workers=DATALOADER_WORKERS)
    began = cpu_seconds()
    for _ in loader:
        pass
    return len(places) / (cpu_seconds() - began)


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def reading(reader: Reader, places: Places, out: NDArray[Any]) -> Callable[[], None]:
    """A reader's crops, into the batch `out` over and over."""

    def run() -> None:
        for slot, (field_no, y, x) in enumerate(places):
            reader.read(field_no, y, x, out[slot % len(out)])

    return run
