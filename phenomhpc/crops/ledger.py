"""Data that is left out: half-open ranges of sample indices, jumped over; the order of what remains is unchanged.

Numbers of steps and visits then count what remains: step s takes the remaining visits [s*B/K, (s+1)*B/K).  A range that
lies behind everything dealt so far changes nothing of it, whatever the world.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Ledger = tuple[tuple[int, int], ...]


def merged(ranges: Iterable[tuple[int, int]]) -> Ledger:
    """The same samples as ascending ranges that neither touch nor overlap; empty ones go."""
    out: list[tuple[int, int]] = []
    for first, last in sorted((first, last) for first, last in ranges if first < last):
        if out and first <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return tuple(out)


def visits_left(position: NDArray[np.int64], ledger: Ledger, crops_per_visit: int = 1) -> NDArray[np.int64]:
    """The visits at places `position` (i64[n], 0 or more) of those that the ledger leaves.

    A visit of which any sample is left out is left out as a whole.
    """
    position = np.asarray(position, np.int64)
    out = merged((first // crops_per_visit, -(-last // crops_per_visit)) for first, last in merged(ledger))
    if not out:
        return position
    starts, ends = np.array(out, np.int64).T
    skipped = np.cumsum(ends - starts)  # visits left out up to the end of each range
    places = starts - np.concatenate([[0], skipped[:-1]])  # the place that the first visit behind each range has
    num_before = np.searchsorted(places, position, "right")
    jumped: NDArray[np.int64] = np.concatenate([[0], skipped])[num_before]
    return position + jumped
