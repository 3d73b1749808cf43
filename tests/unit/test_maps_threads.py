"""Blocks computed by threads: in order, few at once, BLAS of one thread until the end, and no longer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from phenomhpc.maps import align, cosine_map, fit_alignment
from phenomhpc.maps import threads as maps_threads
from phenomhpc.maps.relate import BLOCK_ROWS, cosines_of_rows, unit_rows
from phenomhpc.maps.threads import in_threads


def blas_threads() -> set[int]:
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"}


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(maps_threads.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    with threadpool_limits(limits=3, user_api="blas"):
        yield


def test_results_come_in_order_from_several_threads_with_one_blas_thread_each(four_cores: None) -> None:
    seen = set()

    def late(number: int) -> tuple[int, set[int]]:
        time.sleep(0.02 if number % 4 == 0 else 0.0)
        seen.add(threading.get_ident())
        return number, blas_threads()

    assert blas_threads() == {3}
    assert list(in_threads(late, range(20))) == [(number, {1}) for number in range(20)]
    assert len(seen) > 1 and threading.get_ident() not in seen
    assert blas_threads() == {3}


def test_no_more_is_begun_than_can_be_held(four_cores: None) -> None:
    begun = []
    results = in_threads(begun.append, iter(range(1000)))
    next(results)
    time.sleep(0.1)
    assert len(begun) <= 5
    results.close()
    assert len(begun) <= 5 and blas_threads() == {3}


def test_what_a_block_raises_is_raised_in_its_turn(four_cores: None) -> None:
    def inverse(number: int) -> float:
        return 1 / (2 - number)

    results = in_threads(inverse, range(5))
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert blas_threads() == {3}


def test_iterators_that_end_in_any_order_leave_blas_as_it_was(four_cores: None) -> None:
    first, second = in_threads(abs, range(9)), in_threads(abs, range(9))
    next(first), next(second)
    first.close()
    assert blas_threads() == {1}
    second.close()
    assert blas_threads() == {3}
    features = np.random.default_rng(0).normal(size=(400, 5))
    batch, control = np.array([f"plate{row % 40:02d}" for row in range(400)]), np.arange(400) < 200
    blocks = fit_alignment("tvn", features, batch, control).blocks(features, batch, control)
    next(blocks)
    del blocks
    assert blas_threads() == {3}


def test_as_many_threads_as_one_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    features = generator.normal(size=(3 * BLOCK_ROWS, 20))
    batch = np.array([f"plate{row % 7}" for row in range(len(features))])
    control = generator.random(len(features)) < 0.3
    found = []
    for cores in ({0}, {0, 1, 2, 3, 4}):
        monkeypatch.setattr(maps_threads.os, "sched_getaffinity", lambda _, cores=cores: cores)
        found.append((align("tvn", features, batch, control), cosine_map(features)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dim", [3, 24])
def test_cosines_of_some_rows_are_those_of_the_map_to_the_last_bit(dim: int) -> None:
    generator = np.random.default_rng(5)
    matrix = generator.normal(size=(2 * BLOCK_ROWS + 90, dim)).round(1) + 0.25
    whole = cosine_map(matrix)
    np.fill_diagonal(whole, np.nan)
    for rows in (
        np.array([0]),
        np.array([len(matrix) - 1]),
        np.arange(BLOCK_ROWS - 3, BLOCK_ROWS + 2),
        np.sort(generator.choice(len(matrix), 60, replace=False)),
        np.arange(len(matrix)),
    ):
        np.testing.assert_array_equal(cosines_of_rows(unit_rows(matrix), rows), whole[rows])
