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
from phenomhpc.store import ShardReader, Snapshot

NUMPY, THROUGH = DALI_ROWS = ("DALI's numpy reader, raw .npy", "loader through DALI, float on a CPU")
BATCH = 32


def with_dali(
    snapshot: Snapshot, pixels: NDArray[Any], folder: Path, *, crop_px: int, count: int, passes: int
) -> dict[str, float]:
    """Crops per second of CPU time, medians of interleaved passes, one thread of DALI's.

    pixels: (F, C, H, W), the fields of the snapshot's one plate; they are written to `folder`, one file each.
    count: a multiple of 32.
    """
    folder.mkdir()
    for number, field in enumerate(pixels):
        np.save(folder / f"{number}.npy", field)
    sampler = Sampler(snapshot.table, seed=0, crop_px=crop_px)
    steps, found = count // BATCH, {name: list[float]() for name in DALI_ROWS}
    reading = numpy_crops(snapshot, sampler, folder, count)
    with (
        ShardReader(snapshot.store, snapshot) as reader,
        Loader(
            reader,
            sampler,
            num_channels=pixels.shape[1],
            dtype=snapshot.dtype,
            num_patches=(crop_px // 16) ** 2,
            global_batch=BATCH,
            micro_batch=BATCH,
            defer_flips=True,
        ) as loader,
        DaliLoader(loader, snapshot.scale, torch.device("cpu")) as ready,
    ):
        sources: dict[str, Iterator[Any]] = {NUMPY: reading, THROUGH: ready}
        for number in range(passes + 1):
            for name, source in sources.items():
                rate = count / cpu_seconds(lambda source=source: [next(source) for _ in range(steps)])
                if number:
                    found[name].append(rate)
    return {name: statistics.median(rates) for name, rates in found.items()}


def cpu_seconds(run: Callable[[], object]) -> float:
    """Of all threads of this process, DALI's too."""
    began = time.process_time()
    run()
    return time.process_time() - began


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
