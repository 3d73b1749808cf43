"""Perturbations to relationships: cosines between profiles, known pairs, an order in which a map can be looked at.

Every cosine comes from `blocks_of`, so a pair's value is bit for bit the one that stands in the map and in the null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from phenomhpc.errors import UsageError
from phenomhpc.maps.checks import Features, as_features
from phenomhpc.maps.threads import in_threads

BLOCK_ROWS = 512  # of a map computed at once: 70 MB for a map of 17,000
HELD_COSINES = 1 << 25  # of groups of rows with all rows, held at once: 268 MB

Pair = tuple[str, str]
Result = TypeVar("Result")


def cosine_map(matrix: ArrayLike) -> Features:
    """Cosine of every two rows: f64[g, g], symmetric, diagonal exactly 1.

    matrix: f64[g, d].  Raises UsageError for a row that is all zero, since it has no direction.
    """
    unit = unit_rows(as_features(matrix))
    cosines = np.empty((len(unit), len(unit)))
    for first, block in blocks_of(unit):
        end = first + len(block)
        square = np.triu(block[:, : len(block)], 1)
        cosines[first:end, first:end] = square + square.T
        cosines[first:end, end:] = block[:, len(block) :]
        cosines[end:, first:end] = block[:, len(block) :].T
    np.fill_diagonal(cosines, 1.0)
    return cosines


@dataclass(frozen=True, kw_only=True)
class CosineNull:
    """The cosines of all unordered pairs of a map: what a known pair is compared with.

    values: f64[g (g - 1) / 2], pair (i, j), i < j, at i g - i (i + 1) / 2 + j - i - 1 (row by row of the upper triangle)
    """

    values: NDArray[np.float64]
    num_labels: int

    def of(self, pairs: NDArray[np.intp]) -> NDArray[np.float64]:
        """Cosines of pairs i64[p, 2] of row numbers, i < j: f64[p]."""
        i, j = pairs[:, 0], pairs[:, 1]
        chosen: NDArray[np.float64] = self.values[i * self.num_labels - i * (i + 1) // 2 + j - i - 1]
        return chosen


def cosine_null(matrix: ArrayLike, are_unit: bool = False) -> CosineNull:
    """All unordered pairs of the rows of f64[g, d], g >= 2, without holding the whole map: 8 bytes a pair.

    are_unit: the rows come from `unit_rows`.
    """
    unit = np.asarray(matrix) if are_unit else unit_rows(as_features(matrix))
    num = len(unit)
    if num < 2:
        raise UsageError("map: one perturbation; relationships need at least two")
    values = np.empty(num * (num - 1) // 2)
    end = 0
    for first, block in blocks_of(unit):
        for row in range(len(block)):
            start, end = end, end + num - first - row - 1
            values[start:end] = block[row, row + 1 :]
    return CosineNull(values=values, num_labels=num)


def unique_pairs(pairs: Iterable[Sequence[str]] | NDArray[np.str_], what: str = "pairs") -> list[Pair]:
    """Undirected unique pairs, sorted: the names of a pair in order, self pairs and repeats dropped.

    Raises UsageError for what is no pair of names, saying which of `what` it is.
    """
    return sorted({(a, b) if a < b else (b, a) for a, b in listed_pairs(pairs, what) if a != b})


def listed_pairs(pairs: Iterable[Sequence[str]] | NDArray[np.str_], what: str = "pairs") -> list[Pair]:
    """`pairs` as they come.  Raises UsageError for what is no pair of names, saying which of `what` it is."""
    found = []
    for number, pair in enumerate(pairs.tolist() if isinstance(pairs, np.ndarray) else pairs):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(name, str) and name for name in pair):
            raise UsageError(
                f"{what}: number {number} is {pair!r}; each is two names, such as ('TP53', 'MDM2'): mend or drop it"
            )
        found.append((pair[0], pair[1]))
    return found


def mapped_pairs(
    labels: Sequence[str], pairs: Iterable[Sequence[str]] | NDArray[np.str_], what: str = "pairs"
) -> NDArray[np.intp]:
    """`unique_pairs` with both ends in the map, as row numbers: i64[p, 2], i < j; p may be 0."""
    row = {name: number for number, name in enumerate(labels)}
    found = [(row[a], row[b]) for a, b in unique_pairs(pairs, what) if a in row and b in row]
    return np.sort(np.array(found, dtype=np.intp).reshape(-1, 2), axis=1)


def cosines_of_groups(
    unit: Features, groups: Mapping[str, NDArray[np.intp]]
) -> Iterator[tuple[str, Features, NDArray[np.intp]]]:
    """(name, cosines f64[r, g] of the group's rows with all rows, NaN with themselves, the rows) of every group, in order.

    unit: f64[g, d] of length 1; groups: rows i64[r] of each, ascending.  As many groups at a time as have HELD_COSINES, or one:
    each time costs a pass over the map.
    """
    for some in _together(groups, HELD_COSINES // len(unit)):
        rows = np.unique(np.concatenate([groups[name] for name in some]))
        cosines = cosines_of_rows(unit, rows)
        for name in some:
            yield name, cosines[np.searchsorted(rows, groups[name])], groups[name]
        del cosines  # before the next ones are made


def _together(groups: Mapping[str, NDArray[np.intp]], most: int) -> Iterator[list[str]]:
    """Names of groups that have at most so many different rows together, or of one group."""
    some: list[str] = []
    rows: set[int] = set()
    for name, mine in groups.items():
        if some and len(rows.union(mine.tolist())) > most:
            yield some
            some, rows = [], set()
        some.append(name)
        rows.update(mine.tolist())
    if some:
        yield some


def similarity_order(cosines: ArrayLike) -> NDArray[np.intp]:
    """Order of the rows of a map f64[g, g] in which similar ones are neighbours: the leaves of average linkage on 1 - cosine.

    Memory and time grow with g squared: meant for what fits on a picture.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = 1.0 - np.asarray(cosines, dtype=np.float64)
    if len(distance) < 3:
        return np.arange(len(distance))
    np.fill_diagonal(distance, 0.0)
    order: NDArray[np.intp] = leaves_list(linkage(squareform(distance, checks=False).clip(0), method="average"))
    return order.astype(np.intp)


def connected_groups(labels: Sequence[str], pairs: Iterable[Sequence[str]] | NDArray[np.str_]) -> list[int]:
    """Which labels are connected by known pairs: a group's number per label, 0.. in order of appearance, -1 for none.

    In annotations made of small complexes or pathways these are the pathways; in a dense network one group may hold most.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known = mapped_pairs(labels, pairs)
    ones = np.ones(len(known), dtype=np.int8)
    graph = coo_array((ones, (known[:, 0], known[:, 1])), shape=(len(labels), len(labels)))
    _, component = connected_components(graph.tocsr(), directed=False)
    paired = np.isin(np.arange(len(labels)), known)
    numbers: dict[int, int] = {}
    return [
        numbers.setdefault(int(name), len(numbers)) if mine else -1
        for name, mine in zip(component, paired, strict=True)
    ]


def unit_rows(array: Features, names: Sequence[str] | None = None, numbers: NDArray[np.intp] | None = None) -> Features:
    """Rows f64[n, d] divided by their length.  Raises UsageError for one without length, naming it.

    names: of the n rows; numbers: i64[n], of the rows where they come from, if they are some of many
    """
    norm = np.linalg.norm(array, axis=1)
    if not norm.all():
        row = int(np.argmin(norm))
        number = row if numbers is None else int(numbers[row])
        which = f"row {number}" if names is None else f"{names[row]} (row {number})"
        raise UsageError(f"map: the profile of {which} is all zero, so it has no direction; leave it out")
    result: Features = array / norm[:, None]
    return result


def blocks_of(unit: Features) -> Iterator[tuple[int, Features]]:
    """(first row, cosines of BLOCK_ROWS rows with all rows from the first on)."""
    return of_blocks(unit, lambda first, block: (first, block))


def of_blocks(
    unit: Features, function: Callable[[int, Features], Result], num_rows: int | None = None
) -> Iterator[Result]:
    """function(first row, cosines of BLOCK_ROWS rows with all rows from the first on) of every block, in threads, in order.

    num_rows: the blocks of the first so many rows alone
    """
    return in_threads(
        lambda first: function(first, unit[first : first + BLOCK_ROWS] @ unit[first:].T),
        range(0, len(unit) if num_rows is None else num_rows, BLOCK_ROWS),
    )


def cosines_of_rows(unit: Features, rows: NDArray[np.intp]) -> Features:
    """Cosines of some rows with all rows, NaN with themselves: f64[r, g], bit for bit those of the map.

    unit: f64[g, d] of length 1; rows: i64[r], ascending.  Costs a pass over the map, up to the last of the rows.
    """
    cosines = np.empty((len(rows), len(unit)))

    def fill(first: int, block: Features) -> None:
        end = first + len(block)
        mine, later = (int(place) for place in np.searchsorted(rows, (first, end)))
        cosines[later:, first:end] = block[:, rows[later:] - first].T
        if later > mine:
            square = np.triu(block[:, : len(block)], 1)
            square += square.T
            here = rows[mine:later] - first
            cosines[mine:later, first:end] = square[here]
            cosines[mine:later, end:] = block[here, len(block) :]

    for _ in of_blocks(unit, fill, int(rows[-1]) + 1):
        pass
    cosines[np.arange(len(rows)), rows] = np.nan
    return cosines
