"""The order of fields: a keyed permutation, at once at any position."""

from __future__ import annotations

import itertools
import time
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from phenomhpc.crops.permutation import permute


def order(seed: int, num: int, epoch: int) -> list[int]:
    positions = np.arange(num, dtype=np.uint64)
    return permute(seed, num, np.full(num, epoch, np.uint64), positions).tolist()


@pytest.mark.parametrize("num", [*range(1, 70), 127, 128, 129, 1000, 4096, 4097, 17_280])
def test_every_field_comes_once_per_epoch(num: int) -> None:
    assert sorted(order(3, num, 5)) == list(range(num))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(order(seed, 50, epoch)) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100


def test_a_position_does_not_depend_on_what_it_is_asked_with() -> None:
    together = permute(
        1, 1000, np.repeat(np.arange(3, dtype=np.uint64), 1000), np.tile(np.arange(1000, dtype=np.uint64), 3)
    )
    assert together.tolist() == order(1, 1000, 0) + order(1, 1000, 1) + order(1, 1000, 2)
    alone = permute(1, 1000, np.array([2], np.uint64), np.array([77], np.uint64))
    assert alone[0] == together[2077]


@pytest.mark.parametrize("num", [2, 3, 4, 5])
def test_few_fields_come_in_every_order_alike(num: int) -> None:
    epochs = 4000
    positions = np.tile(np.arange(num, dtype=np.uint64), epochs)
    images = permute(11, num, np.repeat(np.arange(epochs, dtype=np.uint64), num), positions).reshape(epochs, num)
    seen = Counter(map(tuple, images.tolist()))
    counts = [seen[one] for one in itertools.permutations(range(num))]
    assert sum(counts) == epochs
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("num", [100, 1000, 4096])
def test_neighbours_in_the_order_are_no_neighbours_in_the_store(num: int) -> None:
    sequence = np.array([order(7, num, epoch) for epoch in range(40)])
    lag = np.array([np.corrcoef(one[:-1], one[1:])[0, 1] for one in sequence])
    # The correlation of a random order's neighbours has mean -1/num and standard deviation about 1/sqrt(num).
    assert abs(lag.mean() + 1 / num) < 4 / np.sqrt(num * len(sequence))
    # Where field 0 comes is spread over the epoch.
    assert stats.kstest(np.argmax(sequence == 0, axis=1) / num, "uniform").pvalue > 1e-4


def test_a_hundred_million_fields_are_sought_at_once_and_do_not_collide() -> None:
    num, spots = 10**8 + 7, np.arange(0, 10**8, 9_973, dtype=np.uint64)
    began = time.process_time()
    first = permute(0, num, np.array([10**10 // num], np.uint64), np.array([10**10 % num], np.uint64))
    seconds = time.process_time() - began
    images = permute(0, num, np.zeros(len(spots), np.uint64), spots)
    assert 0 <= first[0] < num and seconds < 0.1
    assert len(set(images.tolist())) == len(spots) and images.min() >= 0 and images.max() < num
    assert stats.kstest(images / num, "uniform").pvalue > 1e-4
