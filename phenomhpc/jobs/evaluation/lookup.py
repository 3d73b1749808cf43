"""The neighbours of every perturbation, block by block, so that the whole map never has to be in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.maps import mapped_pairs
from phenomhpc.maps.relate import unit_rows
from phenomhpc.report import Neighbours, Section

BLOCK_ROWS = 512
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class Known:
    """Known pairs of a map's rows: codes i64 sorted, first * g + second with first < second, of each annotation."""

    names: tuple[str, ...]
    codes: tuple[NDArray[np.int64], ...]
    num_labels: int

    def bits(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        """Bit a is set where annotation a knows the pair: i64 of the shape of the arguments."""
        low, high = np.minimum(first, second), np.maximum(first, second)
        wanted = low * self.num_labels + high
        bits = np.zeros(wanted.shape, dtype=np.int64)
        for place, codes in enumerate(self.codes):
            bits |= np.isin(wanted, codes).astype(np.int64) << place
        return bits


def known_pairs(labels: list[str], relations: Mapping[str, Pairs]) -> Known:
    """The pairs with both ends among the labels."""
    rows = {name: mapped_pairs(labels, pairs).astype(np.int64) for name, pairs in relations.items()}
    codes = tuple(np.sort(pairs[:, 0] * len(labels) + pairs[:, 1]) for pairs in rows.values())
    return Known(names=tuple(rows), codes=codes, num_labels=len(labels))


def neighbours(
    labels: list[str], profiles: NDArray[np.float64], known: Known, noun: str, count: int
) -> Neighbours | None:
    """The `count` most alike and most opposite of every label; None for a map of one."""
    num = len(labels)
    count = min(count, num - 1)
    if count < 1:
        return None
    unit = unit_rows(profiles, labels)
    sides: tuple[list[NDArray[np.int64]], list[NDArray[np.int64]]] = ([], [])
    cosines: tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]] = ([], [])
    for start in range(0, num, BLOCK_ROWS):
        block = unit[start : start + BLOCK_ROWS] @ unit.T
        for side, sign in enumerate((1.0, -1.0)):
            signed = sign * block
            signed[np.arange(len(block)), start + np.arange(len(block))] = -np.inf  # nobody's own neighbour
            best = np.argpartition(-signed, count - 1, axis=1)[:, :count]
            order = np.argsort(-np.take_along_axis(signed, best, axis=1), axis=1, kind="stable")
            best = np.take_along_axis(best, order, axis=1).astype(np.int64)
            sides[side].append(best)
            cosines[side].append(np.take_along_axis(block, best, axis=1))
    near, far = (np.concatenate(parts) for parts in sides)
    near_cosine, far_cosine = (np.concatenate(parts) for parts in cosines)
    of = np.arange(num, dtype=np.int64)[:, None]
    near_known, far_known = known.bits(of + 0 * near, near), known.bits(of + 0 * far, far)
    most = int(
        np.argmax((near_known > 0).sum(axis=1))
    )  # the one that shows the most: a page should not open on nothing
    return Neighbours(
        labels=tuple(labels),
        noun=noun,
        near=near,
        far=far,
        near_cosine=near_cosine,
        far_cosine=far_cosine,
        near_known=near_known,
        far_known=far_known,
        annotations=known.names,
        first=labels[most],
    )


def neighbours_section(found: Neighbours) -> Section:
    """A search in the page."""
    return Section(
        title=f"Look up a {found.noun}",
        text=(
            f"Type the name of a {found.noun} to see which others change cells in the same way, and which in the "
            "opposite way. Bars are "
            f"cosine similarities of profiles; a tag says that the pair is known, and from which annotation "
            f"({', '.join(found.annotations)}).",
        ),
        search=found,
    )
