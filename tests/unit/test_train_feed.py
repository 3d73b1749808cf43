"""Micro-batches on their way to the device: their order, and that no buffer is refilled before it was copied.

The GPU's lane needs a GPU; lanes that are as slow as a GPU may be stand in for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from phenomhpc.crops import Batch, Loader, Sampler
from phenomhpc.crops.corpus import Corpus
from phenomhpc.progress import silent
from phenomhpc.store.seal import seal
from phenomhpc.train.feed import CudaLane, DeviceBatch, DirectLane, Feed, feed_for
from tests.unit.crop_store import add_plate, new_store, pixels_of

CROP, STEPS = 16, 8


def device_batch(pixels: NDArray[Any]) -> DeviceBatch:
    one = torch.ones(1)
    return DeviceBatch(pixels=torch.from_numpy(pixels), weight=one, mask_noise=one, drop_key=one)


class LateCopy:
    """Copied at the last moment that is allowed: when somebody waits for it."""

    def __init__(self, lane: LateLane, number: int, source: NDArray[Any]) -> None:
        self.lane, self.number, self.source = lane, number, source

    def use(self) -> DeviceBatch:
        self.lane.log.append(f"use {self.number}")
        return device_batch(self.source)

    def wait(self) -> None:
        self.lane.log.append(f"wait {self.number}")
        self.lane.copied.append(self.source.tobytes())


class LateLane:
    def __init__(self, hold_steps: int) -> None:
        self.hold_steps = hold_steps
        self.log: list[str] = []
        self.copied: list[bytes] = []
        self.started = 0

    def start(self, batch: Batch) -> LateCopy:
        self.log.append(f"start {self.started}")
        self.started += 1
        return LateCopy(self, self.started - 1, batch.pixels)

    def close(self) -> None:
        self.log.append("close")


def blank(size: int = 2) -> Batch:
    zero = np.zeros(size, np.int64)
    return Batch(
        pixels=np.zeros((size, 1, 4, 4), np.uint8),
        index=zero,
        weight=np.ones(size, np.float32),
        mask_noise=np.zeros((size, 4), np.float32),
        drop_key=zero,
        flip=np.zeros(size, np.uint8),
    )


def test_a_copy_begins_before_the_batch_in_front_of_it_is_used() -> None:
    lane = LateLane(2)
    with Feed(lane) as feed:
        for batches in ([blank(), blank(), blank()], [blank()], [blank(), blank()]):
            feed.free_buffers()
            assert len(list(feed.micro(batches))) == len(batches)
        feed.free_buffers()
    first = ["start 0", "start 1", "use 0", "start 2", "use 1", "use 2"]
    assert lane.log[:6] == first
    # Only the step before the last is waited for.
    assert lane.log[6:] == [
        *("start 3", "use 3"),
        *("wait 0", "wait 1", "wait 2"),
        *("start 4", "start 5", "use 4", "use 5"),
        *("wait 3", "close"),
    ]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    root = tmp_path_factory.mktemp("feed") / "store"
    store = new_store(root)
    add_plate(store, "P", pixels_of(1, 9, 2, 40, 40))
    seal(store, silent())
    return Corpus.open([str(root)])


def loader_of(corpus: Corpus, **settings: Any) -> Loader:
    sampler = Sampler(corpus.tables, seed=3, crop_px=CROP)
    return Loader(
        corpus.crops_of("keep"),
        sampler,
        num_channels=2,
        dtype=corpus.dtype,
        num_patches=4,
        global_batch=12,
        micro_batch=5,
        **settings,
    )


def late(corpus: Corpus, workers: int, held: int) -> tuple[list[bytes], list[bytes]]:
    """Pixels as the slowest lane copies them out of buffers that are held for `held` steps; as they should be."""
    with loader_of(corpus) as loader:
        plain = [micro.pixels.tobytes() for _ in range(STEPS) for micro in next(loader).micro]
    lane = LateLane(2)
    with loader_of(corpus, workers=workers, hold_steps=held) as loader, Feed(lane) as feed:
        for _ in range(STEPS + 2):
            feed.free_buffers()
            list(feed.micro(next(loader).micro))
            if workers:
                # What may be read ahead is read now, into buffers that should be free.
                while loader._steps._filling:  # type: ignore[union-attr]
                    pass
    return lane.copied[: len(plain)], plain


@pytest.mark.parametrize("workers", [0, 2])
def test_no_buffer_is_refilled_before_its_copy_has_ended(corpus: Corpus, workers: int) -> None:
    copied, plain = late(corpus, workers, held=2)
    assert copied == plain


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_holds_too_little_would_be_noticed(corpus: Corpus, workers: int) -> None:
    copied, plain = late(corpus, workers, held=1)
    assert copied != plain


def test_on_a_cpu_nothing_is_copied(corpus: Corpus) -> None:
    feed = feed_for(torch.device("cpu"), print)
    assert isinstance(feed._lane, DirectLane)
    with loader_of(corpus, hold_steps=feed.hold_steps) as loader, feed:
        for _ in range(2):
            feed.free_buffers()
            batch = next(loader)
            given = list(feed.micro(batch.micro))
            assert [each.pixels.data_ptr() for each in given] == [each.pixels.ctypes.data for each in batch.micro]
            for each, micro in zip(given, batch.micro, strict=True):
                assert torch.equal(each.weight, torch.from_numpy(micro.weight))
                assert torch.equal(each.mask_noise, torch.from_numpy(micro.mask_noise))
                assert torch.equal(each.drop_key, torch.from_numpy(micro.drop_key))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpus_lane_gives_the_same_pixels(corpus: Corpus, tmp_path: Path) -> None:
    said: list[str] = []
    device = torch.device("cuda")
    with loader_of(corpus) as loader:
        plain = [micro.pixels.copy() for _ in range(STEPS) for micro in next(loader).micro]
    feed = Feed(CudaLane(device, said.append))
    found = []
    with loader_of(corpus, workers=2, hold_steps=feed.hold_steps) as loader, feed:
        for _ in range(STEPS):
            feed.free_buffers()
            found += [batch.pixels.cpu().numpy() for batch in feed.micro(next(loader).micro)]
    assert not said and all(np.array_equal(one, other) for one, other in zip(found, plain, strict=True))
