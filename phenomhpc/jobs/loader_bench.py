"""How fast crops come off a store: ours beside the limit that decoding sets, and beside what others read of the same store.

Crops are those that a training run of this seed would read.  Rates are crops per second of CPU time, medians of interleaved
passes over crops that are in memory already (warm), so that they compare programs and not disks; only ratios of one call
count.  What the disk is asked for is counted in a pass of its own, after the kernel has been told to forget the shards (cold).
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops import Loader, Sampler
from phenomhpc.errors import WorkError
from phenomhpc.store import ShardReader, Snapshot
from phenomhpc.store.shardindex import open_shard_index
from phenomhpc.store.shards import decode_blosc, read_geometry

LIMIT, READER = "decode limit", "reader"
PATCH_PX = 16
# tensorstore's cache of shard indices, too small for decoded chunks to help.
INDEX_CACHE_BYTES = 2_000_000


@dataclass(frozen=True, kw_only=True)
class Crops:
    """Crops to be read by everyone, in this order: field_no i64, y, x i32, [n] each."""

    field_no: NDArray[np.int64]
    y: NDArray[np.int32]
    x: NDArray[np.int32]
    edge: int

    def __len__(self) -> int:
        return len(self.field_no)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.field_no.tolist(), self.y.tolist(), self.x.tolist(), strict=True)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """crops_per_s: of CPU time, all threads together.  of_limit: share of what decoding alone would reach."""

    name: str
    crops_per_s: float
    mb_per_s: float
    of_limit: float


@dataclass(frozen=True, kw_only=True)
class Disk:
    """What a cold pass asked of the file system, per crop; amplification: bytes from the disk over the crop's own bytes as they
    are compressed in the store.  disk_bytes: None where the kernel does not say."""

    reads: float
    opens: float
    asked_bytes: float
    disk_bytes: float | None
    amplification: float | None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of one store.  ratio: how many times smaller it is than its pixels."""

    rates: tuple[Rate, ...]
    disk: Disk
    ratio: float
    start_s: float


def measure(
    snapshot: Snapshot, *, crop_px: int = 256, crops: int = 96, passes: int = 5, seed: int = 0, batch: int = 32
) -> Measured:
    """Measure a snapshot's store.  crops: read in each pass, rounded up to whole batches.

    Memory: their encoded chunks.  Raises UsageError for fields smaller than a crop, WorkError when pixels differ between two.
    """
    count = -(-crops // batch) * batch
    sampler = Sampler(snapshot.table, seed=seed, crop_px=crop_px)
    visits = sampler.visits(np.arange(count))
    wanted = Crops(field_no=visits.field_no, y=visits.y[:, 0], x=visits.x[:, 0], edge=crop_px)
    out = np.empty((batch, len(snapshot.channels), crop_px, crop_px), snapshot.dtype)
    began = time.perf_counter()
    with ShardReader(snapshot.store, snapshot) as reader, _loader(reader, sampler, snapshot, batch) as loader:
        next(loader)
        start_s = time.perf_counter() - began
        runs = {LIMIT: decode_limit(snapshot, wanted), READER: ours(reader, wanted, out)}
        runs["loader"] = lambda: _drain(loader, count // batch)
        if importlib.util.find_spec("torch") is not None:
            runs["loader, float on a CPU"] = standardised(loader, snapshot, count // batch)
        runs |= _others(snapshot, wanted, out)
        rates = _rates(runs, count, passes)
        _refuse_other_pixels(runs, out, wanted)
    # What is mapped is not forgotten: the reader above must be gone.
    disk, ratio = _cold(snapshot, wanted, out)
    crop_mb = out[0].nbytes / 1e6
    return Measured(
        rates=tuple(
            Rate(name=name, crops_per_s=rate, mb_per_s=rate * crop_mb, of_limit=rate / rates[LIMIT])
            for name, rate in rates.items()
        ),
        disk=disk,
        ratio=ratio,
        start_s=start_s,
    )


def _rates(runs: dict[str, Callable[[], None]], count: int, passes: int) -> dict[str, float]:
    """Crops per second of CPU time, after one pass that warms up."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(passes + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if number:
                found[name].append(count / (time.process_time() - began))
    return {name: statistics.median(values) for name, values in found.items()}


def _loader(reader: ShardReader, sampler: Sampler, snapshot: Snapshot, batch: int) -> Loader:
    return Loader(
        reader,
        sampler,
        num_channels=len(snapshot.channels),
        dtype=snapshot.dtype,
        num_patches=(sampler.crop_px // PATCH_PX) ** 2,
        global_batch=batch,
        micro_batch=batch,
    )


def _drain(loader: Loader, steps: int) -> None:
    for _ in range(steps):
        next(loader)


def standardised(loader: Loader, snapshot: Snapshot, steps: int) -> Callable[[], None]:
    """Batches as a model on a CPU takes them; on a GPU this part is the GPU's."""
    import torch

    from phenomhpc.models.standardise import Standardiser

    standardise = Standardiser(torch.from_numpy(snapshot.scale.copy()))

    def run() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # others would wait at a barrier, and their waiting count
        for _ in range(steps):
            for micro in next(loader).micro:
                standardise(torch.from_numpy(micro.pixels))
        torch.set_num_threads(threads)

    return run


def ours(reader: ShardReader, crops: Crops, out: NDArray[Any]) -> Callable[[], None]:
    """Our reader, into the batch `out` over and over."""

    def run() -> None:
        for slot, (field_no, y, x) in enumerate(crops):
            reader.read(field_no, y, x, out[slot % len(out)])

    return run


def decode_limit(snapshot: Snapshot, crops: Crops) -> Callable[[], None]:
    """Decodes, from memory, the chunks that the crops touch, into one buffer; nothing else.  Raw chunks are copied."""
    spec = snapshot.store.spec
    blocks = [block for crop in crops for block in _blocks(snapshot, crop, crops.edge)]
    flat = np.empty(len(spec.channels) * spec.chunk_px**2 * spec.itemsize, np.uint8)

    def run() -> None:
        for block in blocks:
            if spec.codec is None:
                flat[:] = np.frombuffer(block, np.uint8)
            else:
                decode_blosc(block, flat)

    return run


def _blocks(snapshot: Snapshot, crop: tuple[int, int, int], edge: int) -> Iterator[bytes]:
    """The encoded chunks that a crop touches."""
    field_no, y, x = crop
    row, paths = snapshot.table[field_no], snapshot.store.paths
    plate = snapshot.plates[int(row["plate"])]
    geometry, index = read_geometry(paths, plate), open_shard_index(paths.shard_index(plate))
    shard, slot = divmod(int(row["field"]), geometry.fields_per_shard)
    size = geometry.chunk_px
    with paths.shard(plate, shard).open("rb") as file:
        for chunk_row in range(y // size, (y + edge - 1) // size + 1):
            for column in range(x // size, (x + edge - 1) // size + 1):
                offset, length = index[shard, slot, chunk_row * geometry.chunk_columns + column].tolist()
                yield os.pread(file.fileno(), length, offset)


def _others(snapshot: Snapshot, crops: Crops, out: NDArray[Any]) -> dict[str, Callable[[], None]]:
    """zarr-python, and tensorstore where it is installed, without a cache (its default) and with one of indices."""
    found = {"zarr-python": _reading(_open_zarr(snapshot), crops, out, lambda part: part)}
    if importlib.util.find_spec("tensorstore") is not None:
        for name, cache_bytes in (("tensorstore", 0), ("tensorstore, 2 MB cache", INDEX_CACHE_BYTES)):
            opened = _open_tensorstore(snapshot, cache_bytes)
            found[name] = _reading(opened, crops, out, lambda part: part.read().result())
    return found


Opened = Callable[[int], tuple[Any, int]]


def _open_zarr(snapshot: Snapshot) -> Opened:
    import zarr

    return _by_plate(snapshot, lambda path: zarr.open_array(path, mode="r"))


def _open_tensorstore(snapshot: Snapshot, cache_bytes: int) -> Opened:
    import tensorstore

    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})

    def opened(path: str) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
        return tensorstore.open(spec, context=context, open=True, read=True, recheck_cached_data="open").result()

    return _by_plate(snapshot, opened)


def _by_plate(snapshot: Snapshot, opening: Callable[[str], Any]) -> Opened:
    """From a row of the snapshot's table to its plate's array, opened once, and its place in it."""
    arrays: dict[int, Any] = {}

    def find(field_no: int) -> tuple[Any, int]:
        row = snapshot.table[field_no]
        number = int(row["plate"])
        if number not in arrays:
            arrays[number] = opening(str(snapshot.store.paths.images(snapshot.plates[number])))
        return arrays[number], int(row["field"])

    return find


def _reading(find: Opened, crops: Crops, out: NDArray[Any], get: Callable[[Any], Any]) -> Callable[[], None]:
    edge = crops.edge

    def run() -> None:
        for slot, (field_no, y, x) in enumerate(crops):
            array, field = find(field_no)
            out[slot % len(out)] = get(array[field, :, y : y + edge, x : x + edge])

    return run


def _refuse_other_pixels(runs: dict[str, Callable[[], None]], out: NDArray[Any], crops: Crops) -> None:
    """Everyone who fills `out` must have filled it alike."""
    runs[READER]()
    expected = out.copy()
    for name in (name for name in runs if name.startswith(("zarr", "tensorstore"))):
        out[...] = 0
        runs[name]()
        if not np.array_equal(out, expected):
            raise WorkError(f"bench loader: {name} reads other pixels than we do; see store verify")


def _cold(snapshot: Snapshot, crops: Crops, out: NDArray[Any]) -> tuple[Disk, float]:
    """One pass with nothing in memory; and how many times smaller the store is than its pixels, of the touched shards."""
    paths = snapshot.store.paths
    touched: dict[Path, int] = {}
    for number in np.unique(snapshot.table["plate"]).tolist():
        plate = snapshot.plates[number]
        geometry = read_geometry(paths, plate)
        raw = geometry.num_channels * geometry.height * geometry.width * snapshot.store.spec.itemsize
        for shard in range(geometry.num_shards):
            touched[paths.shard(plate, shard)] = len(geometry.fields_of(shard)) * raw
        touched[paths.shard_index(plate)] = 0
    for path in touched:
        _forget(path)
    stored = sum(path.stat().st_size for path, raw in touched.items() if raw and path.is_file())
    ratio = sum(touched.values()) / max(stored, 1)
    before = _disk_bytes()
    with ShardReader(snapshot.store, snapshot) as reader:
        ours(reader, crops, out)()
        traffic = reader.traffic
    after, count = _disk_bytes(), len(crops)
    disk = None if before is None or after is None else (after - before) / count
    return (
        Disk(
            reads=traffic.reads / count,
            opens=traffic.opens / count,
            asked_bytes=traffic.bytes / count,
            disk_bytes=disk,
            amplification=None if disk is None else disk / (out[0].nbytes / ratio),
        ),
        ratio,
    )


def _forget(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _disk_bytes() -> int | None:
    """Bytes that this process had fetched from disks; None where the kernel does not say."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)
