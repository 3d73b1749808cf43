"""Batches on their way to a GPU: `make bench-gpu` (here: `python -m tests.bench.bench_feed --device cpu`).

A store of synthetic fields, worker processes that read random crops of 256 x 256 x 6, the feed that a training has, and the
standardisation on the device; nothing else is computed.  Crops per second of wall clock, and the share of it that was waited for
crops.  Before it, one core that only reads such crops into one batch: a worker of a full loader should reach 85 % of that.  Aim:
5,000 crops/s from 16 cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phenomhpc.crops import Loader, Sampler
from phenomhpc.crops.corpus import Corpus
from phenomhpc.models.standardise import Standardiser
from phenomhpc.progress import silent
from phenomhpc.store.seal import seal
from phenomhpc.train.feed import feed_for
from tests.bench.bench_loader import CHANNELS, CROP, PLATE, SIDE, painted
from tests.unit.crop_store import add_plate, new_store

AIM, WARM_STEPS = 5000.0, 3


@dataclass(frozen=True, kw_only=True)
class Fed:
    """crops_per_s: of wall clock; waited: share of it that passed until the loader gave a step."""

    workers: int
    crops_per_s: float
    waited: float


def corpus_of(folder: Path, gigabytes: float) -> Corpus:
    fields = max(2, round(gigabytes * 1e9 / (CHANNELS * SIDE * SIDE)))
    store = new_store(folder, channels=CHANNELS, dtype="uint8", chunk_px=128, fields_per_shard=fields)
    add_plate(store, PLATE, painted("uint8", fields))
    return Corpus(snapshots=(seal(store, silent()),))


def reader_alone(corpus: Corpus, *, batch: int, seconds: float) -> float:
    """Crops per second of one core that reads, and does nothing else with them; never the same crop twice."""
    sampler = Sampler(corpus.tables, seed=0, crop_px=CROP)
    out = np.empty((batch, CHANNELS, CROP, CROP), corpus.dtype)
    with corpus.reader("keep") as reader:
        spent, read = 0.0, 0
        while spent < seconds:
            visits = sampler.visits(np.arange(read, read + batch))
            began = time.process_time()
            for into, field_no, y, x in zip(out, visits.field_no, visits.y[:, 0], visits.x[:, 0], strict=True):
                reader.read(int(field_no), int(y), int(x), into)
            spent += time.process_time() - began
            read += batch
    return read / spent


def feed(corpus: Corpus, device: torch.device, *, workers: int, batch: int, micro: int, seconds: float) -> Fed:
    """Take steps for so many seconds, behind some that warm up."""
    sampler = Sampler(corpus.tables, seed=0, crop_px=CROP)
    standardise = Standardiser(torch.from_numpy(corpus.scale.copy()).to(device))
    lane = feed_for(device, print)
    with (
        Loader(
            corpus.crops_of("keep"),
            sampler,
            num_channels=CHANNELS,
            dtype=corpus.dtype,
            num_patches=(CROP // 8) ** 2,
            global_batch=batch,
            micro_batch=micro,
            workers=workers,
            prefetch_steps=4,
            hold_steps=lane.hold_steps,
            digest=False,
        ) as loader,
        lane,
    ):

        def step() -> float:
            lane.free_buffers()
            given = next(loader)
            for arrived in lane.micro(given.micro):
                standardise(arrived.pixels)
            return given.data_wait_s

        for _ in range(WARM_STEPS):
            step()
        _settle(device)
        began, waits = time.perf_counter(), []
        while time.perf_counter() - began < seconds:
            waits.append(step())
        _settle(device)
        passed = time.perf_counter() - began
    return Fed(workers=workers, crops_per_s=batch * len(waits) / passed, waited=float(np.sum(waits)) / passed)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(arguments: list[str] | None = None) -> int:
    """Print a row for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--gb", type=float, default=2.0, help="pixels of the store")
    parser.add_argument("--batch", type=int, default=1024, help="crops per step")
    parser.add_argument("--micro", type=int, default=256, help="crops per micro-batch")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of workers")
    parser.add_argument("--workers", type=int, action="append", help="default: 1, 2, 4 ... up to the cores")
    given = parser.parse_args(arguments)
    device, cores = torch.device(given.device), len(os.sched_getaffinity(0))
    numbers = given.workers or sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, {cores} cores, uint8 lz4-bitshuffle, batches of {given.batch}\n")
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus_of(Path(folder), given.gb)
        alone = reader_alone(corpus, batch=given.micro, seconds=given.seconds)
        print(f"a core that only reads: {alone:,.0f} crops/s\n")
        print("| workers | crops/s | of the aim | crops/s per worker | of a core that only reads | waited for crops |")
        print("|---|---|---|---|---|---|")
        for workers in numbers:
            fed = feed(corpus, device, workers=workers, batch=given.batch, micro=given.micro, seconds=given.seconds)
            each = fed.crops_per_s / max(workers, 1)
            print(
                f"| {workers} | {fed.crops_per_s:,.0f} | {fed.crops_per_s / AIM:.0%} | {each:,.0f} | "
                f"{each / alone:.0%} | {fed.waited:.0%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
