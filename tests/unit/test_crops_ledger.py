"""What is left out is jumped over, and nothing else changes."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from phenomhpc.crops.ledger import merged, visits_left

RANGES = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80)), max_size=6)


@given(RANGES)
def test_merged_ranges_are_the_same_samples_ascending_and_apart(ranges: list[tuple[int, int]]) -> None:
    out = merged(ranges)
    assert {i for a, b in out for i in range(a, b)} == {i for a, b in ranges for i in range(a, b)}
    assert all(a < b for a, b in out)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(out))


@given(RANGES, st.integers(1, 4))
def test_the_visits_left_are_all_others_in_their_order(ranges: list[tuple[int, int]], crops_per_visit: int) -> None:
    gone = {i // crops_per_visit for a, b in ranges for i in range(a, b)}
    expected = list(itertools.islice((v for v in itertools.count() if v not in gone), 120))
    assert visits_left(np.arange(120), tuple(ranges), crops_per_visit).tolist() == expected


@given(RANGES, st.integers(0, 60), st.integers(0, 30))
def test_a_range_behind_what_was_dealt_changes_nothing_of_it(
    ranges: list[tuple[int, int]], dealt: int, length: int
) -> None:
    before = visits_left(np.arange(dealt + 1), tuple(ranges))
    further = (*ranges, (int(before[-1]), int(before[-1]) + length))
    assert np.array_equal(visits_left(np.arange(dealt), further), before[:-1])
