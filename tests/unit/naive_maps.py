"""The benchmarks of the notes written out as they are defined, slowly: from one cosine matrix, with loops."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Rows of an annotation file, header left out."""
    with file.open(newline="") as lines:
        return [(row[0], row[1]) for row in csv.reader(lines)][1:]


def pairs_in_map(labels: list[str], pairs: Iterable[tuple[str, str]]) -> list[tuple[int, int]]:
    """Names sorted, self pairs and duplicates dropped, both ends in the map; as row numbers."""
    row = {name: number for number, name in enumerate(labels)}
    seen: set[tuple[str, str]] = set()
    for pair in pairs:
        first, second = sorted(pair)
        if first != second and first in row and second in row:
            seen.add((first, second))
    return [(row[first], row[second]) for first, second in sorted(seen)]


def null_of(cosines: Array) -> Array:
    """All unordered pairs, sorted, row by row."""
    return np.sort(np.concatenate([cosines[row, row + 1 :] for row in range(len(cosines))]))


def hits(null: Array, queries: Array, lo: float, hi: float) -> NDArray[np.bool_]:
    """Ranks by searchsorted, both tails, one query at a time."""
    found = []
    for query in queries:
        left = np.searchsorted(null, query, "left") / len(null)
        right = np.searchsorted(null, query, "right") / len(null)
        found.append(bool(right <= lo or left >= hi))
    return np.array(found)


def recall(cosines: Array, pairs: list[tuple[int, int]], lo: float, hi: float, null: Array | None = None) -> float:
    """Relationship recall of pairs of rows."""
    queries = np.array([cosines[i, j] for i, j in pairs])
    return float(np.mean(hits(null_of(cosines) if null is None else null, queries, lo, hi)))


def mean_off_diagonal(rows: Array) -> float:
    """Mean cosine of all ordered pairs of different rows."""
    total, num = 0.0, 0
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            if i != j:
                total += float(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
                num += 1
    return total / num


def energy_distance(xs: Array, ys: Array) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'|, by loops over rows."""

    def mean(first: Array, second: Array) -> float:
        return float(np.mean([np.linalg.norm(x - y) for x in first for y in second]))

    return 2.0 * mean(xs, ys) - mean(xs, xs) - mean(ys, ys)


def average_precision(scores: list[tuple[float, bool]]) -> float:
    """Of (score, is right): best first, a right one before a wrong one of its score; mean precision at the right ones."""
    ranked = [right for _, right in sorted(scores, key=lambda entry: (-entry[0], not entry[1]))]
    precisions, found = [], 0
    for place, right in enumerate(ranked, start=1):
        if right:
            found += 1
            precisions.append(found / place)
    return sum(precisions) / len(precisions)


def benjamini_hochberg(p_values: list[float]) -> list[float]:
    """q of every p: the least p_(j) n / j over the ranks j at or above its own."""
    ordered = sorted(p_values)
    num = len(p_values)
    return [
        min(min(1.0, other * num / rank) for rank, other in enumerate(ordered, start=1) if other >= p) for p in p_values
    ]
