"""Which crop comes next: pure, spread evenly, inside the field."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from phenomhpc.crops import Sampler, Visits, flip_target, index_digest, tile
from phenomhpc.errors import UsageError
from phenomhpc.philox import MASK, philox, uniform32
from phenomhpc.store.snapshot import TABLE_DTYPE


def table_of(sizes: list[tuple[int, int]]) -> NDArray[np.void]:
    table = np.zeros(len(sizes), TABLE_DTYPE)
    table["field"] = np.arange(len(sizes))
    table["height"], table["width"] = np.array(sizes).T
    return table


def equal(one: Visits, other: Visits, rows: slice) -> bool:
    names = ("field_no", "index", "y", "x", "flip")
    return all(np.array_equal(getattr(one, name)[rows], getattr(other, name)) for name in names)


def test_a_visit_is_the_same_whatever_it_is_asked_with() -> None:
    sampler = Sampler(table_of([(100, 120)] * 37), seed=1, crop_px=32, crops_per_visit=3)
    many = sampler.visits(np.arange(200))
    assert equal(many, sampler.visits(np.arange(90, 111)), slice(90, 111))
    assert not equal(
        many,
        Sampler(table_of([(100, 120)] * 37), seed=2, crop_px=32, crops_per_visit=3).visits(np.arange(200)),
        slice(None),
    )


def test_every_field_is_visited_once_per_epoch_and_numbered_by_visit_and_crop() -> None:
    sampler = Sampler(table_of([(64, 64)] * 10), seed=0, crop_px=32, crops_per_visit=4)
    visits = sampler.visits(np.arange(30))
    for epoch in range(3):
        assert sorted(visits.field_no[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert np.array_equal(visits.index, np.arange(120).reshape(30, 4))


def test_corners_reach_every_position_alike_and_never_leave_the_field() -> None:
    sizes = [(40, 44), (33, 64), (32, 32)]
    sampler = Sampler(table_of(sizes), seed=5, crop_px=32, crops_per_visit=2)
    visits = sampler.visits(np.arange(6000))
    for field, (height, width) in enumerate(sizes):
        of_field = visits.field_no == field
        for corner, extent in ((visits.y[of_field], height), (visits.x[of_field], width)):
            counts = np.bincount(corner.ravel(), minlength=extent - 31)
            assert len(counts) == extent - 31
            assert len(counts) == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_a_batch_is_not_correlated() -> None:
    visits = Sampler(table_of([(2048, 2048)] * 1000), seed=9, crop_px=256).visits(np.arange(4096))
    columns = [visits.y[:, 0], visits.x[:, 0], visits.flip[:, 0], visits.field_no]
    series = [*columns, *(np.roll(column, 1) for column in columns)]
    correlation = np.corrcoef(np.array(series, float)) - np.eye(len(series))
    # Of 28 coefficients, each of standard deviation 1/64.
    assert np.abs(correlation).max() < 5 / 64
    assert stats.chisquare(np.bincount(visits.flip.ravel(), minlength=8)).pvalue > 1e-4


def test_without_flips_nothing_is_flipped() -> None:
    assert not Sampler(table_of([(64, 64)]), seed=0, crop_px=32, flips=False).visits(np.arange(50)).flip.any()


def test_only_eligible_fields_are_dealt() -> None:
    sampler = Sampler(table_of([(64, 64)] * 9), seed=0, crop_px=32, eligible=np.array([2, 3, 7]))
    assert sampler.num_fields == 3
    assert sorted(sampler.visits(np.arange(3)).field_no) == [2, 3, 7]


def test_mask_noise_is_the_samples_own() -> None:
    sampler = Sampler(table_of([(64, 64)]), seed=4, crop_px=32)
    noise = sampler.mask_noise(np.array([5, 10**10, 6]), 10)
    assert noise.shape == (3, 10) and noise.dtype == np.float32 and 0 <= noise.min() <= noise.max() < 1
    words = np.concatenate([philox(4, MASK, 10**10, draw) for draw in range(3)])
    assert np.array_equal(noise[1], uniform32(words)[:10])
    assert np.array_equal(noise[:1], sampler.mask_noise(np.array([5]), 10))
    assert stats.kstest(sampler.mask_noise(np.arange(500), 16).ravel(), "uniform").pvalue > 1e-4


def test_the_digest_changes_with_any_part_of_any_crop() -> None:
    sampler = Sampler(table_of([(64, 64)] * 5), seed=0, crop_px=32, crops_per_visit=2)
    seen = {index_digest(sampler.visits(np.arange(8)))}
    for name in ("field_no", "index", "y", "x", "flip"):
        visits = sampler.visits(np.arange(8))
        getattr(visits, name).flat[-1] ^= 1
        seen.add(index_digest(visits))
    assert len(seen) == 6 and all(len(digest) == 16 and int(digest, 16) >= 0 for digest in seen)


def test_the_ten_billionth_sample_of_a_large_store_needs_no_memory() -> None:
    table = np.broadcast_to(table_of([(2048, 2048)]), 10**8)  # one row, seen as many
    for settings in ({}, {"subset": 12_000_000}, {"groups": [(10**7, 0.5), (9 * 10**7, 3.0)]}):
        sampler = Sampler(table, seed=0, crop_px=256, **settings)  # type: ignore[arg-type]
        tracemalloc.start()
        visits = sampler.visits(np.arange(10**10, 10**10 + 64))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(set(visits.field_no.tolist())) == 64 and peak < 2**20
        assert visits.field_no.max() > 10**7


@pytest.mark.parametrize(
    ("sizes", "eligible", "message"),
    [
        ([(64, 64)], [], "no field"),
        ([], None, "no field"),
        ([(64, 64), (31, 64)], None, "crop_px=32: the smallest field has 31x64"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    sizes: list[tuple[int, int]], eligible: list[int] | None, message: str
) -> None:
    rows = None if eligible is None else np.array(eligible, np.int64)
    table = table_of(sizes) if sizes else np.zeros(0, TABLE_DTYPE)
    with pytest.raises(UsageError, match=message):
        Sampler(table, seed=0, crop_px=32, eligible=rows)


def test_a_flip_target_filled_with_a_crop_holds_it_flipped() -> None:
    crop = np.arange(2 * 3 * 3).reshape(2, 3, 3)
    seen = set()
    for flip in range(8):
        out = np.zeros_like(crop)
        flip_target(out, flip)[...] = crop
        expected = crop.transpose(0, 2, 1) if flip & 4 else crop
        expected = np.flip(expected, 1) if flip & 1 else expected
        expected = np.flip(expected, 2) if flip & 2 else expected
        assert np.array_equal(out, expected)
        seen.add(out.tobytes())
    turns = {np.rot90(mirrored, turn, axes=(1, 2)).tobytes() for mirrored in (crop, crop[:, ::-1]) for turn in range(4)}
    assert seen == turns


@pytest.mark.parametrize(
    ("height", "width", "crop", "count"),
    [(2048, 2048, 256, 64), (1080, 1080, 256, 16), (256, 512, 256, 2), (255, 512, 256, 0), (2160, 2160, 256, 64)],
)
def test_tiles_do_not_overlap_lie_inside_and_are_centred(height: int, width: int, crop: int, count: int) -> None:
    corners = tile(height, width, crop)
    covered = np.zeros((height, width), np.uint8)
    for y, x in corners:
        assert covered[y : y + crop, x : x + crop].shape == (crop, crop)
        covered[y : y + crop, x : x + crop] += 1
    assert len(corners) == count and covered.max(initial=0) <= 1
    if count:
        rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
        assert abs(rows[0] - (height - 1 - rows[-1])) <= 1 and abs(columns[0] - (width - 1 - columns[-1])) <= 1
