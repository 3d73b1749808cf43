"""The loader: the same crops whatever the ranks, workers and restarts; its buffers, its errors, its end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from phenomhpc.crops import Loader, Sampler, StepBatch, flip_target
from phenomhpc.crops.corpus import Corpus, CropsOf
from phenomhpc.crops.ledger import Ledger
from phenomhpc.errors import UsageError, WorkError
from phenomhpc.progress import silent
from phenomhpc.store import ShardReader, Snapshot
from phenomhpc.store.seal import seal
from phenomhpc.store.shardfiles import Traffic
from tests.unit.crop_store import add_plate, new_store, pixels_of

CROP, CHANNELS, PATCHES, BATCH = 16, 2, 4, 12


@pytest.fixture(scope="module")
def content() -> dict[str, NDArray[Any]]:
    return {"P1": pixels_of(1, 5, CHANNELS, 40, 33), "P2": pixels_of(2, 4, CHANNELS, 20, 50)}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, content: dict[str, NDArray[Any]]) -> Snapshot:
    store = new_store(tmp_path_factory.mktemp("store"))
    for plate, pixels in content.items():
        add_plate(store, plate, pixels)
    return seal(store, silent())


@pytest.fixture
def reader(snapshot: Snapshot) -> Iterator[ShardReader]:
    with ShardReader(snapshot.store, snapshot) as opened:
        yield opened


def loader_of(
    reader: Any, snapshot: Snapshot, *, per_visit: int = 1, flips: bool = True, skip: Ledger = (), **settings: Any
) -> Loader:
    sampler = Sampler(snapshot.table, seed=3, crop_px=CROP, crops_per_visit=per_visit, flips=flips).skipping(skip)
    given: dict[str, Any] = {"global_batch": BATCH, "micro_batch": 5, "num_patches": PATCHES} | settings
    return Loader(reader, sampler, num_channels=CHANNELS, dtype=snapshot.dtype, **given)


def crops_of_store(snapshot: Snapshot) -> CropsOf:
    return Corpus(snapshots=(snapshot,)).crops_of("keep")


def crops_of(step: StepBatch) -> dict[int, bytes]:
    """Sample index -> pixels and noise, of the rows that count."""
    return {
        int(micro.index[row]): micro.pixels[row].tobytes() + micro.mask_noise[row].tobytes()
        for micro in step.micro
        for row in np.flatnonzero(micro.weight)
    }


def steps(loader: Loader, count: int) -> list[tuple[str, dict[int, bytes]]]:
    with loader:
        return [(step.index_digest, crops_of(step)) for step, _ in zip(loader, range(count), strict=False)]


@pytest.mark.parametrize("world", [1, 3])
def test_what_is_left_out_is_jumped_over_on_any_number_of_ranks(
    reader: ShardReader, snapshot: Snapshot, world: int
) -> None:
    """Samples 24 to 35 are step 2's; without them step 2 is what step 3 was."""
    plain = steps(loader_of(reader, snapshot, per_visit=3), 5)
    left = [
        steps(loader_of(reader, snapshot, per_visit=3, skip=((24, 36),), rank=rank, world=world), 4)
        for rank in range(world)
    ]
    expected = [plain[0], plain[1], plain[3], plain[4]]
    assert [digest for digest, _ in left[0]] == [digest for digest, _ in expected]
    for step, (_, crops) in enumerate(expected):
        assert {index: crop for rank in left for index, crop in rank[step][1].items()} == crops
    with loader_of(reader, snapshot, per_visit=3, skip=((24, 36),), start_step=1) as loader:
        assert [step.first_index for step, _ in zip(loader, range(3), strict=False)] == [12, 36, 48]


@pytest.mark.parametrize("per_visit", [1, 3])
@pytest.mark.parametrize("world", [2, 4, 5])
def test_ranks_together_see_what_one_rank_sees(
    reader: ShardReader, snapshot: Snapshot, world: int, per_visit: int
) -> None:
    alone = steps(loader_of(reader, snapshot, per_visit=per_visit), 4)
    ranks = [
        steps(loader_of(reader, snapshot, per_visit=per_visit, rank=rank, world=world), 4) for rank in range(world)
    ]
    quiet = steps(loader_of(reader, snapshot, per_visit=per_visit, rank=1, world=world, digest=False), 4)
    assert quiet == [("", crops) for _, crops in ranks[1]]  # without digests the same crops
    for step, (digest, crops) in enumerate(alone):
        assert {rank[step][0] for rank in ranks} == {digest}
        assert len(crops) == BATCH == sum(len(rank[step][1]) for rank in ranks)
        assert {index: pixels for rank in ranks for index, pixels in rank[step][1].items()} == crops
    assert len({digest for digest, _ in alone}) == 4


def test_pixels_are_the_stores_under_the_flip(
    reader: ShardReader, snapshot: Snapshot, content: dict[str, NDArray[Any]]
) -> None:
    visits = Sampler(snapshot.table, seed=3, crop_px=CROP).visits(np.arange(2 * BATCH))
    with loader_of(reader, snapshot, micro_batch=BATCH) as loader:
        for _ in range(2):
            step = next(loader)
            for index, pixels in zip(step.micro[0].index, step.micro[0].pixels, strict=True):
                row = snapshot.table[visits.field_no[index]]
                y, x, flip = visits.y[index, 0], visits.x[index, 0], visits.flip[index, 0]
                crop = content[snapshot.plates[row["plate"]]][row["field"], :, y : y + CROP, x : x + CROP]
                crop = crop.transpose(0, 2, 1) if flip & 4 else crop
                crop = np.flip(crop, 1) if flip & 1 else crop
                assert np.array_equal(pixels, np.flip(crop, 2) if flip & 2 else crop)


@pytest.mark.parametrize("workers", [0, 2])
def test_deferred_flips_are_handed_out_beside_the_pixels(reader: ShardReader, snapshot: Snapshot, workers: int) -> None:
    seen, source = set(), crops_of_store(snapshot)
    with (
        loader_of(reader, snapshot, rank=1, world=5) as plain,
        loader_of(source, snapshot, rank=1, world=5, workers=workers, defer_flips=True) as deferred,
    ):
        for _ in range(6):
            done, left = next(plain).micro[0], next(deferred).micro[0]
            assert left.index.tolist() == done.index.tolist() and not done.flip.any()
            assert not left.flip[left.weight == 0].any()
            for row, flip in enumerate(left.flip.tolist()):
                turned = np.empty_like(left.pixels[row])
                flip_target(turned, flip)[...] = left.pixels[row]
                assert np.array_equal(turned, done.pixels[row])
                seen.add(flip)
    assert len(seen) > 4


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 0), (1, 1), (3, 2), (2, 5)])
def test_workers_and_reading_ahead_change_nothing(
    reader: ShardReader, snapshot: Snapshot, workers: int, prefetch: int
) -> None:
    plain = steps(loader_of(reader, snapshot), 9)
    assert steps(loader_of(crops_of_store(snapshot), snapshot, workers=workers, prefetch_steps=prefetch), 9) == plain


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_goes_on_where_it_was(snapshot: Snapshot, workers: int) -> None:
    source = crops_of_store(snapshot)
    whole = steps(loader_of(source, snapshot, workers=workers), 7)
    assert steps(loader_of(source, snapshot, workers=workers, start_step=3), 4) == whole[3:]


def test_a_step_far_out_comes_at_once(reader: ShardReader, snapshot: Snapshot) -> None:
    with loader_of(reader, snapshot, start_step=10**10) as loader:
        began = time.process_time()
        step = next(loader)
        assert time.process_time() - began < 1
    assert step.first_index == 10**10 * BATCH and min(crops_of(step)) == step.first_index


@pytest.mark.parametrize(
    ("world", "micro", "shapes"), [(1, 5, (3, 5)), (1, 99, (1, 12)), (5, 2, (2, 2)), (7, 99, (1, 2))]
)
def test_every_rank_has_the_same_number_of_micro_steps_of_one_shape(
    reader: ShardReader, snapshot: Snapshot, world: int, micro: int, shapes: tuple[int, int]
) -> None:
    weights = 0.0
    for rank in range(world):
        with loader_of(reader, snapshot, rank=rank, world=world, micro_batch=micro) as loader:
            step = next(loader)
        assert (len(step.micro), len(step.micro[0].index)) == shapes
        for batch in step.micro:
            assert batch.pixels.shape == (shapes[1], CHANNELS, CROP, CROP) and batch.pixels.dtype == np.uint8
            assert batch.weight.dtype == np.float32 and batch.drop_key.dtype == np.int64
            assert (batch.index[batch.weight == 0] == -1).all() and not batch.pixels[batch.weight == 0].any()
            weights += batch.weight.sum()
    assert weights == BATCH


@pytest.mark.parametrize("workers", [0, 2])
def test_padding_stays_empty_though_a_ranks_share_changes(snapshot: Snapshot, workers: int) -> None:
    shares = []
    with loader_of(crops_of_store(snapshot), snapshot, rank=2, world=5, workers=workers) as loader:
        for _ in range(20):
            (micro,) = next(loader).micro
            assert (
                not micro.pixels[micro.weight == 0].any() and micro.pixels[micro.weight == 1].any(axis=(1, 2, 3)).all()
            )
            shares.append(int(micro.weight.sum()))
    assert set(shares) == {2, 3}


def test_a_batch_that_is_no_whole_number_of_visits_is_refused(reader: ShardReader, snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match=r"global_batch=12 is no multiple of data.crops_per_visit=5"):
        loader_of(reader, snapshot, per_visit=5)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("hold", [1, 2])
def test_buffers_are_reused_and_hold_for_as_many_steps(
    reader: ShardReader, snapshot: Snapshot, workers: int, hold: int
) -> None:
    plain = steps(loader_of(reader, snapshot), 12)
    addresses = set()
    held: list[StepBatch] = []
    source = crops_of_store(snapshot)
    with loader_of(source, snapshot, workers=workers, prefetch_steps=2, hold_steps=hold) as loader:
        for number in range(12):
            held = [*held, next(loader)][-hold:]
            time.sleep(0.01)  # workers may write now, into other buffers
            assert [crops_of(step) for step in held] == [crops for _, crops in plain[: number + 1][-hold:]]
            addresses.update(micro.pixels.ctypes.data for micro in held[-1].micro)
    assert len(addresses) <= 3 * (2 + hold if workers else hold)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_says_what_it_has_cost(snapshot: Snapshot, workers: int) -> None:
    with loader_of(crops_of_store(snapshot), snapshot, workers=workers, rank=1, world=5) as loader:
        costs = [next(loader) for _ in range(5)]
    for step in costs:
        assert step.traffic.crops == len(crops_of(step))
        # A crop of 16 in chunks of 16 touches one or two rows of them.
        assert step.traffic.crops <= step.traffic.reads <= 2 * step.traffic.crops < step.traffic.bytes
        assert step.traffic.from_cache == 0
    assert 1 <= sum(step.traffic.opens for step in costs) <= 5 * max(1, workers)  # shards: 3 and 2


class Failing:
    """A reader that fails at its nth crop."""

    def __init__(self, reader: ShardReader, nth: int) -> None:
        self.reader, self.left = reader, nth

    def read(self, field_no: int, y: int, x: int, out: NDArray[Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise WorkError("store s: plate p, shard 3: torn")
        self.reader.read(field_no, y, x, out)

    @property
    def traffic(self) -> Traffic:
        return self.reader.traffic


def test_what_reading_raises_comes_out_at_its_step_and_closes(reader: ShardReader, snapshot: Snapshot) -> None:
    plain = steps(loader_of(reader, snapshot), 2)
    loader = loader_of(Failing(reader, 2 * BATCH + 4), snapshot)
    for expected in plain:
        step = next(loader)
        assert (step.index_digest, crops_of(step)) == expected
    with pytest.raises(WorkError, match="shard 3: torn"):
        next(loader)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_reader_of_this_process_is_none_for_workers(reader: ShardReader, snapshot: Snapshot) -> None:
    with pytest.raises(TypeError, match="give a CropsOf"):
        loader_of(reader, snapshot, workers=1)


def test_waiting_for_data_is_measured_and_reading_ahead_hides_it(snapshot: Snapshot) -> None:
    source, large = crops_of_store(snapshot), {"global_batch": 1200, "micro_batch": 1200}
    with loader_of(source, snapshot, **large) as loader:
        next(loader)
        plain = next(loader).data_wait_s
    with loader_of(source, snapshot, workers=1, prefetch_steps=2, **large) as loader:
        next(loader)
        time.sleep(20 * plain)
        ahead = next(loader).data_wait_s
    assert ahead < plain / 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_says_what_it_asked_of_the_disk(snapshot: Snapshot, workers: int) -> None:
    def traffic(workers: int) -> list[Traffic]:
        with loader_of(crops_of_store(snapshot), snapshot, workers=workers, prefetch_steps=1) as loader:
            return [next(loader).traffic for _ in range(5)]

    asked, here = traffic(workers), traffic(0)
    assert [step.crops for step in asked] == [BATCH] * 5
    # What is read of a file is the same whoever reads it; each process opens it once.
    assert [(step.reads, step.bytes) for step in asked] == [(step.reads, step.bytes) for step in here]
    assert 5 <= sum(step.opens for step in asked) <= 5 * max(workers, 1)
    assert all(step.reads >= BATCH and step.bytes > 0 and not step.from_cache for step in asked)
