"""The order of the crops, for any store, batch and number of ranks."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from phenomhpc.crops import Loader, Sampler
from phenomhpc.crops.permutation import permute
from phenomhpc.store.shardfiles import Traffic
from phenomhpc.store.snapshot import TABLE_DTYPE

CROP = 4


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_an_epoch_is_a_permutation(num: int, seed: int, epoch: int) -> None:
    images = permute(seed, num, np.full(num, epoch, np.uint64), np.arange(num, dtype=np.uint64))
    assert np.array_equal(np.sort(images), np.arange(num))


class Recorder:
    """A reader whose pixels say which crop they are."""

    traffic = Traffic()

    def read(self, field_no: int, y: int, x: int, out: np.ndarray) -> None:  # type: ignore[type-arg]
        out[...] = np.uint16(field_no * 100 + y * 10 + x)


@settings(max_examples=40, deadline=None)
@given(
    fields=st.integers(1, 20),
    per_visit=st.integers(1, 3),
    visits_per_step=st.integers(1, 9),
    micro_batch=st.integers(1, 7),
    world=st.integers(1, 5),
    start=st.integers(0, 10**9),
)
def test_ranks_deal_out_the_global_batch_exactly(
    fields: int, per_visit: int, visits_per_step: int, micro_batch: int, world: int, start: int
) -> None:
    table = np.zeros(fields, TABLE_DTYPE)
    table["height"], table["width"] = 8, 7
    sampler = Sampler(table, seed=1, crop_px=CROP, crops_per_visit=per_visit)
    batch = visits_per_step * per_visit
    first = start * batch
    expected = sampler.visits(np.arange(start * visits_per_step, (start + 1) * visits_per_step))
    value = expected.field_no[:, None] * 100 + expected.y * 10 + expected.x
    by_index = dict(zip(expected.index.ravel().tolist(), value.ravel().tolist(), strict=True))
    seen: dict[int, int] = {}
    shapes, digests = set(), set()
    for rank in range(world):
        with Loader(
            Recorder(),
            sampler,
            num_channels=2,
            dtype="uint16",
            num_patches=6,
            global_batch=batch,
            micro_batch=micro_batch,
            rank=rank,
            world=world,
            start_step=start,
        ) as loader:
            step = next(loader)
        assert (step.step, step.first_index) == (start, first)
        digests.add(step.index_digest)
        shapes.add((len(step.micro), *(array.shape for array in vars(step.micro[0]).values())))
        for micro in step.micro:
            real = micro.weight == 1
            assert set(micro.weight.tolist()) <= {0.0, 1.0} and np.array_equal(real, micro.index >= 0)
            assert not micro.pixels[~real].any() and np.isfinite(micro.mask_noise).all()
            assert np.array_equal(micro.drop_key[real], micro.index[real])
            assert np.array_equal(micro.mask_noise[real], sampler.mask_noise(micro.index[real], 6))
            for index, pixels in zip(micro.index[real].tolist(), micro.pixels[real], strict=True):
                assert index not in seen and len(set(pixels.ravel().tolist())) == 1
                assert (index // per_visit) % world == rank
                seen[index] = int(pixels[0, 0, 0])
    assert seen == by_index and sorted(seen) == list(range(first, first + batch))
    assert len(shapes) == 1 and len(digests) == 1
