"""How random the order is, in every way in which it is dealt: plain, weighted, a subset, several stores, several crops a visit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from phenomhpc.crops import Sampler
from phenomhpc.crops.sampler import Tables
from phenomhpc.store.snapshot import TABLE_DTYPE

FIELDS, SIDE, CROP = 1200, 300, 45
# All seeds are fixed: a test that passes will pass again.  The bound is for chance alone, over all tests of this file.
LEAST_P = 1e-4


def table_of(fields: int, side: int = SIDE) -> NDArray[np.void]:
    table = np.zeros(fields, TABLE_DTYPE)
    table["field"], table["height"], table["width"] = np.arange(fields), side, side
    return table


def plain(crops_per_visit: int) -> Sampler:
    return Sampler(table_of(FIELDS), seed=11, crop_px=CROP, crops_per_visit=crops_per_visit)


def weighted(crops_per_visit: int) -> Sampler:
    groups = [(400, 0.5), (500, 1.0), (300, 3.0)]
    return Sampler(table_of(FIELDS), seed=12, crop_px=CROP, crops_per_visit=crops_per_visit, groups=groups)


def subset(crops_per_visit: int) -> Sampler:
    return Sampler(table_of(5 * FIELDS), seed=13, crop_px=CROP, crops_per_visit=crops_per_visit, subset=FIELDS)


def eligible(crops_per_visit: int) -> Sampler:
    rows = np.arange(0, 3 * FIELDS, 3)
    return Sampler(table_of(3 * FIELDS), seed=14, crop_px=CROP, crops_per_visit=crops_per_visit, eligible=rows)


def several_stores(crops_per_visit: int) -> Sampler:
    """The fields of the second store are larger."""
    tables = Tables([table_of(700), table_of(500, 2 * SIDE)], [None, (2 * SIDE, 2 * SIDE)])
    return Sampler(tables, seed=15, crop_px=CROP, crops_per_visit=crops_per_visit)


ways = pytest.mark.parametrize("way", [plain, weighted, subset, eligible, several_stores])
visits_of = pytest.mark.parametrize("crops_per_visit", [1, 4])


@ways
@visits_of
def test_offsets_are_uniform_also_within_a_visit(way: Callable[[int], Sampler], crops_per_visit: int) -> None:
    sampler = way(crops_per_visit)
    visits = sampler.visits(np.arange(30 * FIELDS))
    places = np.stack([size - CROP + 1 for size in sampler.sizes(visits.field_no)])[..., None]
    for corner, number in ((visits.y, places[0]), (visits.x, places[1])):
        assert corner.min() >= 0 and (corner < number).all()
        # Sixteen strips of each field, by what share of the places lies in each; for every crop of a visit by itself.
        for crop in range(crops_per_visit):
            for wide in np.unique(number):
                drawn = corner[number[:, 0] == wide, crop]
                expected = np.bincount(np.arange(wide) * 16 // wide) * len(drawn) / wide
                assert stats.chisquare(np.bincount(drawn * 16 // wide, minlength=16), expected).pvalue > LEAST_P
    for crop in range(crops_per_visit):
        assert stats.chisquare(np.bincount(visits.flip[:, crop], minlength=8)).pvalue > LEAST_P


@ways
@visits_of
def test_nothing_is_correlated_along_a_batch_nor_within_a_visit(
    way: Callable[[int], Sampler], crops_per_visit: int
) -> None:
    sampler = way(crops_per_visit)
    visits = sampler.visits(np.arange(500, 500 + 4096))
    # Where a crop lies between the ends of its field: how far that reaches differs between stores.
    height, width = (size - CROP + 1 for size in sampler.sizes(visits.field_no))
    columns = [visits.field_no]
    for crop in range(crops_per_visit):
        columns += [visits.y[:, crop] / height, visits.x[:, crop] / width, visits.flip[:, crop]]
    series = np.array(columns, np.float64)
    for lag in (0, 1, 2, 8, 64):
        both = np.corrcoef(series, np.roll(series, lag, axis=1))[: len(series), len(series) :]
        # Of up to 169 coefficients, each of standard deviation 1/64.
        assert np.abs(both - np.eye(len(series)) * (lag == 0)).max() < 5 / 64, lag


@ways
@visits_of
def test_an_epoch_deals_every_field_as_often_as_it_should(way: Callable[[int], Sampler], crops_per_visit: int) -> None:
    sampler = way(crops_per_visit)
    per_epoch = sampler.visits_per_epoch
    orders = []
    for epoch in range(3):
        visits = sampler.visits(np.arange(epoch * per_epoch, (epoch + 1) * per_epoch))
        assert visits.index.shape == (per_epoch, crops_per_visit)
        times = np.bincount(visits.field_no)
        if way is weighted:
            # 400 of weight 1/2, 500 of 1, 300 of 3: in each epoch 0 or 1, exactly 1, exactly 3.
            assert (times[:400].sum(), set(times[:400]), set(times[400:900]), set(times[900:])) == (
                200,
                {0, 1},
                {1},
                {3},
            )
        else:
            assert len(visits.field_no) == FIELDS and set(times[times > 0]) == {1}
        orders.append(visits.field_no)
    # Another order every time, and as good as unrelated to the last.
    for before, after in pairwise(orders):
        assert abs(stats.spearmanr(before, after).statistic) < 5 / np.sqrt(per_epoch)
    # Neighbours of one epoch are no neighbours of the next.
    follows = [set(pairwise(order.tolist())) for order in orders]
    assert len(follows[0] & follows[1]) < 25


@visits_of
def test_the_stores_are_mixed_evenly_all_along_an_epoch(crops_per_visit: int) -> None:
    visits = several_stores(crops_per_visit).visits(np.arange(FIELDS))
    first = (visits.field_no < 700).reshape(12, 100).sum(axis=1)
    # Hypergeometric: 100 of 1,200, of which 700; a run of one store would be far outside.
    assert (np.abs(first - 700 / 12) < 5 * np.sqrt(100 * (7 / 12) * (5 / 12))).all()
