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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops import Loader, Sampler
from phenomhpc.errors import WorkError
from phenomhpc.jobs.loader_rivals import DATALOADER, reading, rivals, with_dataloader
from phenomhpc.store import ShardReader, Snapshot
from phenomhpc.store.shardindex import open_shard_index
from phenomhpc.store.shards import decode_blosc, read_geometry

LIMIT, READER = "decode limit", "reader"
# What the loader is compared with: crops that it has not read before, as the loader's are.
READER_NEW = "reader, new crops"
# The first of them: far from any that the loader reads.
_NEW_FROM = 10**8
PATCH_PX = 16
# The DataLoader's workers start once: over so many passes that it hardly counts.
DATALOADER_PASSES = 4


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
    are compressed in the store.  disk_bytes: None where the kernel does not say.  blocks: of the file system, `block_bytes`
    each, in which what was asked lies."""

    reads: float
    opens: float
    asked_bytes: float
    blocks: float
    block_bytes: int
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
    snapshot: Snapshot,
    *,
    crop_px: int = 256,
    crops: int = 96,
    passes: int = 5,
    seed: int = 0,
    batch: int = 96,
    block_bytes: int | None = None,
) -> Measured:
    """Measure a snapshot's store.  crops: read in each pass, rounded up to whole batches; block_bytes: of the file system,
    default what it says itself (st_blksize).

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
        runs = {LIMIT: decode_limit(snapshot, wanted), READER: reading(reader, [*wanted], out)}
        runs[READER_NEW] = _new_crops(reader, sampler, count, out, passes)
        runs["loader"] = lambda: _drain(loader, count // batch)
        if importlib.util.find_spec("torch") is not None:
            runs["loader, float on a CPU"] = standardised(loader, snapshot, count // batch)
        others = rivals(snapshot)
        runs |= {name: reading(other, [*wanted], out) for name, other in others.items()}
        rates = _rates(runs, count, passes)
        _refuse_other_pixels(runs, out, others)
    if importlib.util.find_spec("torch") is not None:
        rates[DATALOADER] = with_dataloader(snapshot, [*wanted] * DATALOADER_PASSES, crop_px, batch)
    # What is mapped is not forgotten: the reader above must be gone.
    disk, ratio = _cold(snapshot, wanted, out, block_bytes)
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


def _new_crops(reader: ShardReader, sampler: Sampler, count: int, out: NDArray[Any], passes: int) -> Callable[[], None]:
    """Each time other crops, whose places are known beforehand: their pages and encoded bytes are in no cache of the processor."""
    each = []
    for number in range(passes + 1):
        visits = sampler.visits(_NEW_FROM + np.arange(number * count, (number + 1) * count))
        places = Crops(field_no=visits.field_no, y=visits.y[:, 0], x=visits.x[:, 0], edge=sampler.crop_px)
        each.append(reading(reader, [*places], out))
    turns = iter(each)
    return lambda: next(turns)()


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
    path, entries = _entries(snapshot, crop, edge)
    with path.open("rb") as file:
        for offset, length in entries:
            yield os.pread(file.fileno(), length, offset)


def _entries(snapshot: Snapshot, crop: tuple[int, int, int], edge: int) -> tuple[Path, list[list[int]]]:
    """The shard of a crop, and (offset, size) in it of the chunks that the crop touches."""
    field_no, y, x = crop
    row, paths = snapshot.table[field_no], snapshot.store.paths
    plate = snapshot.plates[int(row["plate"])]
    geometry, index = read_geometry(paths, plate), open_shard_index(paths.shard_index(plate))
    shard, slot = divmod(int(row["field"]), geometry.fields_per_shard)
    size = geometry.chunk_px
    numbers = [
        chunk_row * geometry.chunk_columns + column
        for chunk_row in range(y // size, (y + edge - 1) // size + 1)
        for column in range(x // size, (x + edge - 1) // size + 1)
    ]
    return paths.shard(plate, shard), index[shard, slot][numbers].tolist()


def _blocks_touched(snapshot: Snapshot, crop: tuple[int, int, int], edge: int, block: int) -> int:
    """Blocks of a file system in which a crop's chunks lie."""
    _, entries = _entries(snapshot, crop, edge)
    return len({number for at, size in entries if size for number in range(at // block, (at + size - 1) // block + 1)})


def _refuse_other_pixels(runs: dict[str, Callable[[], None]], out: NDArray[Any], others: Iterable[str]) -> None:
    """Everyone who fills `out` must have filled it alike."""
    runs[READER]()
    expected = out.copy()
    for name in others:
        out[...] = 0
        runs[name]()
        if not np.array_equal(out, expected):
            raise WorkError(f"bench loader: {name} reads other pixels than we do; see store verify")


def _cold(snapshot: Snapshot, crops: Crops, out: NDArray[Any], block_bytes: int | None) -> tuple[Disk, float]:
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
        reading(reader, [*crops], out)()
        traffic = reader.traffic
    after, count = _disk_bytes(), len(crops)
    disk = None if before is None or after is None else (after - before) / count
    block = block_bytes or paths.plates.stat().st_blksize
    return (
        Disk(
            reads=traffic.reads / count,
            opens=traffic.opens / count,
            asked_bytes=traffic.bytes / count,
            blocks=sum(_blocks_touched(snapshot, crop, crops.edge, block) for crop in crops) / count,
            block_bytes=block,
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
