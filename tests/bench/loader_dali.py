"""What DALI reads and makes of the benchmark's crops, on the CPU: its numpy reader over raw .npy, and our loader through it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from phenomhpc.crops import Loader, Sampler
from phenomhpc.crops.dali import DaliLoader
from phenomhpc.jobs.loader_bench import standardised
from phenomhpc.store import ShardReader, Snapshot

# The plain path comes once more, so that it is measured in turns with the others.
DALI_ROWS = ("DALI's numpy reader, raw .npy", "loader through DALI, float on a CPU", "the same without DALI")
BATCH = 32


def with_dali(
    snapshot: Snapshot, pixels: NDArray[Any], folder: Path, *, crop_px: int, count: int, passes: int
) -> dict[str, float]:
    """Crops per second of CPU time, medians of interleaved passes, one thread of DALI's or torch's.

    pixels: (F, C, H, W), the fields of the snapshot's one plate; they are written to `folder`, one file each.
    count: a multiple of 32.
    """
    folder.mkdir()
    for number, field in enumerate(pixels):
        np.save(folder / f"{number}.npy", field)
    sampler = Sampler(snapshot.table, seed=0, crop_px=crop_px)
    steps = count // BATCH
    raw = numpy_crops(snapshot, sampler, folder, count)
    with (
        ShardReader(snapshot.store, snapshot) as reader,
        _loader(reader, snapshot, sampler, defer_flips=True) as deferred,
        _loader(reader, snapshot, sampler, defer_flips=False) as plain,
        DaliLoader(deferred, snapshot.scale, torch.device("cpu")) as ready,
    ):
        runs = (_taking(raw, steps), _taking(ready, steps), standardised(plain, snapshot, steps))
        found: dict[str, list[float]] = {name: [] for name in DALI_ROWS}
        for number in range(passes + 1):
            for name, run in zip(DALI_ROWS, runs, strict=True):
                began = time.process_time()
                run()
                if number:
                    found[name].append(count / (time.process_time() - began))
    return {name: statistics.median(rates) for name, rates in found.items()}


def _loader(reader: ShardReader, snapshot: Snapshot, sampler: Sampler, *, defer_flips: bool) -> Loader:
    return Loader(
        reader,
        sampler,
        num_channels=len(snapshot.channels),
        dtype=snapshot.dtype,
        num_patches=(sampler.crop_px // 16) ** 2,
        global_batch=BATCH,
        micro_batch=BATCH,
        defer_flips=defer_flips,
    )


def _taking(source: Iterator[Any], steps: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            next(source)

    return run


def numpy_crops(snapshot: Snapshot, sampler: Sampler, folder: Path, count: int) -> Iterator[NDArray[Any]]:
    """Batches u8|u16 [32, C, h, w] of the sampler's first `count` crops, over and over, unflipped."""
    from nvidia.dali import fn, pipeline_def

    visits = sampler.visits(np.arange(count))
    corner = np.stack([np.zeros(count), visits.y[:, 0], visits.x[:, 0]], axis=1).astype(np.int32)
    files = [str(folder / f"{snapshot.table[number]['field']}.npy") for number in visits.field_no]
    shape = [len(snapshot.channels), sampler.crop_px, sampler.crop_px]

    def graph() -> Any:
        start = fn.external_source(name="corner")
        return fn.readers.numpy(files=files, roi_start=start, roi_shape=shape, cache_header_information=True)

    pipeline = pipeline_def(graph)(batch_size=BATCH, num_threads=1, device_id=None, prefetch_queue_depth=1)
    batch = 0
    while True:
        pipeline.feed_input("corner", corner[batch * BATCH : (batch + 1) * BATCH])
        (crops,) = pipeline.run()
        yield crops.as_array()
        batch = (batch + 1) % (count // BATCH)
