"""Which crop comes next: a pure function of the snapshot, the sampler's settings, the seed and the visit number.

The unit dealt is a visit: a field and its K crops.  Visit v belongs to epoch v // n; its field is a keyed permutation of
the epoch's positions, so that every field comes once per epoch (with weights: so often as it weighs).  Sample index = v * K + k.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.ledger import Ledger, visits_left
from phenomhpc.crops.permutation import permute
from phenomhpc.errors import UsageError
from phenomhpc.philox import FLIP, MASK, OFFSET, SUBSET, WITHIN, philox, uniform, uniform32

DIGEST_DIGITS = 16
# The subset is the same whatever the seed of the order, so that runs of several seeds see the same fields.
SUBSET_SEED = 0
# Bits of a crop's flip: mirrored along y, along x, axes swapped; together the eight symmetries of a square.
FLIP_Y, FLIP_X, TRANSPOSE = 1, 2, 4


@dataclass(frozen=True, kw_only=True)
class Visits:
    """Crops of n visits: field_no i64[n]; index i64, y i32, x i32, flip u8, each [n, K]."""

    field_no: NDArray[np.int64]
    index: NDArray[np.int64]
    y: NDArray[np.int32]
    x: NDArray[np.int32]
    flip: NDArray[np.uint8]


class Tables:
    """Tables of snapshots, one behind the other, none copied.

    smallest: of each table what is known of its least height and width (None: it is looked for when asked).
    """

    def __init__(
        self, tables: Sequence[NDArray[np.void]], smallest: Sequence[tuple[int, int] | None] | None = None
    ) -> None:
        self._tables = tuple(tables)
        self._smallest = (None,) * len(tables) if smallest is None else tuple(smallest)
        self._starts = np.concatenate([[0], np.cumsum([len(table) for table in tables])])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def sizes(self, field_no: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Height and width of fields, pixels, i64[n] each."""
        if len(self._tables) == 1:
            rows = self._tables[0][field_no]
            return rows["height"].astype(np.int64), rows["width"].astype(np.int64)
        height, width = np.empty(len(field_no), np.int64), np.empty(len(field_no), np.int64)
        which = np.searchsorted(self._starts, field_no, "right") - 1
        for number in np.unique(which):
            mine = which == number
            rows = self._tables[number][field_no[mine] - self._starts[number]]
            height[mine], width[mine] = rows["height"], rows["width"]
        return height, width

    def smallest(self, field_no: NDArray[np.int64] | None) -> tuple[int, int]:
        """Least height and least width of these fields; of all where None."""
        if field_no is not None:
            height, width = self.sizes(field_no)
            return int(height.min()), int(width.min())
        sizes = [
            known or (int(table["height"].min()), int(table["width"].min()))
            for table, known in zip(self._tables, self._smallest, strict=True)
            if len(table)
        ]
        return min(height for height, _ in sizes), min(width for _, width in sizes)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Entries of one weight.  start, size: which; times: how many of them an epoch deals, from position `first` of it on."""

    start: int
    size: int
    first: int
    times: int


class Sampler:
    """Deals visits of fields.  O(1) memory beside the snapshots' own (mapped) tables and what is given as `eligible`.

    Entries 0..n-1 are the eligible fields, or the first `subset` of them under a keyed permutation of their own: a smaller
    subset lies within a larger one.  Without weights each comes once an epoch.  A group of weight w is dealt round(w n) times
    an epoch of the whole: its own sequence of keyed permutations goes on from epoch to epoch, so that none of its fields
    is ever more than one visit ahead of another.
    """

    def __init__(
        self,
        table: NDArray[np.void] | Tables,
        *,
        seed: int,
        crop_px: int,
        crops_per_visit: int = 1,
        flips: bool = True,
        eligible: NDArray[np.int64] | None = None,
        groups: Sequence[tuple[int, float]] = (),
        subset: int | None = None,
    ) -> None:
        """`table` is Snapshot.table, or those of several; `eligible` its rows to deal (default: all).

        groups: (how many entries that follow each other, their weight), for all entries; not together with `subset`.
        Raises UsageError when there is no field, or one is smaller than a crop.
        """
        self._tables = table if isinstance(table, Tables) else Tables([table])
        self._eligible, self._subset = eligible, subset
        self.seed, self.crop_px, self.crops_per_visit, self.flips = seed, crop_px, crops_per_visit, flips
        self._num_entries = len(self._tables) if eligible is None else len(eligible)
        self.num_fields = self._num_entries if subset is None else subset
        if not self.num_fields:
            raise UsageError("data: no field to draw crops from; is data.where too strict?")
        height, width = self._tables.smallest(eligible)
        if min(height, width) < crop_px:
            raise UsageError(
                f"model.crop_px={crop_px}: the smallest field has {height}x{width} pixels; choose a smaller crop"
            )
        self._ledger: Ledger = ()
        self._groups = _groups(groups)
        self.visits_per_epoch = sum(group.times for group in self._groups) if self._groups else self.num_fields

    def skipping(self, ledger: Ledger) -> Sampler:
        """The same order without the samples that the ledger leaves out; visits are numbered by what remains."""
        other = copy.copy(self)
        other._ledger = ledger
        return other

    def first_index(self, visit: int) -> int:
        """The first sample index of a visit."""
        return int(visits_left(np.array([visit]), self._ledger, self.crops_per_visit)[0]) * self.crops_per_visit

    def visits(self, visit: NDArray[np.int64]) -> Visits:
        """The crops of visits `visit` (i64[n], each 0 or more)."""
        visit = visits_left(visit, self._ledger, self.crops_per_visit)
        field_no = self._fields(visit.astype(np.uint64))
        index = visit[:, None] * self.crops_per_visit + np.arange(self.crops_per_visit)
        height, width = self._tables.sizes(field_no)
        offset = uniform(philox(self.seed, OFFSET, index)[..., :2])
        y = offset[..., 0] * (height - self.crop_px + 1)[:, None]
        x = offset[..., 1] * (width - self.crop_px + 1)[:, None]
        flip = np.zeros(index.shape, np.uint8)
        if self.flips:
            flip = (philox(self.seed, FLIP, index)[..., 0] & np.uint64(7)).astype(np.uint8)
        return Visits(field_no=field_no, index=index, y=y.astype(np.int32), x=x.astype(np.int32), flip=flip)

    def sizes(self, field_no: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Height and width of fields, pixels, i64[n] each."""
        return self._tables.sizes(field_no)

    def _fields(self, number: NDArray[np.uint64]) -> NDArray[np.int64]:
        epoch, position = np.divmod(number, np.uint64(self.visits_per_epoch))
        entry = permute(self.seed, self.visits_per_epoch, epoch, position)
        if self._groups:
            entry = self._weighted(epoch, entry)
        if self._subset is not None:
            zero = np.zeros(len(entry), np.uint64)
            entry = permute(SUBSET_SEED, self._num_entries, zero, entry.astype(np.uint64), SUBSET)
        return entry if self._eligible is None else self._eligible[entry]

    def _weighted(self, epoch: NDArray[np.uint64], place: NDArray[np.int64]) -> NDArray[np.int64]:
        """Entries of the places 0..visits_per_epoch-1 of an epoch."""
        entry = np.empty(len(place), np.int64)
        which = np.searchsorted([group.first for group in self._groups], place, "right") - 1
        for number in np.unique(which):
            group, mine = self._groups[number], which == number
            dealt = epoch[mine] * np.uint64(group.times) + (place[mine] - group.first).astype(np.uint64)
            turn, position = np.divmod(dealt, np.uint64(group.size))
            # Groups do not share a permutation: the epoch of one is no epoch of another.
            key = turn * np.uint64(len(self._groups)) + np.uint64(number)
            entry[mine] = group.start + permute(self.seed, group.size, key, position, WITHIN)
        return entry

    def mask_noise(self, index: NDArray[np.int64], num_patches: int) -> NDArray[np.float32]:
        """Uniform noise f32[B, num_patches] in [0, 1) by sample index; whose smallest are kept is the model's matter."""
        draws = np.arange(-(-num_patches // 4))
        words = philox(self.seed, MASK, index[:, None], draws[None, :])
        return uniform32(words).reshape(len(index), 4 * len(draws))[:, :num_patches]


def _groups(groups: Sequence[tuple[int, float]]) -> tuple[_Group, ...]:
    found: list[_Group] = []
    start = first = 0
    for size, weight in groups:
        times = max(1, round(size * weight))
        found.append(_Group(start=start, size=size, first=first, times=times))
        start, first = start + size, first + times
    return tuple(found)


def index_digest(visits: Visits) -> str:
    """16 hexadecimal digits over a step's sample indices and crops; the same on every rank and world size."""
    digest = hashlib.sha256()
    for array in (visits.index, visits.field_no, visits.y, visits.x, visits.flip):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:DIGEST_DIGITS]


def flip_target(out: NDArray[np.generic], flip: int) -> NDArray[np.generic]:
    """The view of `out` (C, h, h) to fill with a crop, so that `out` then holds the crop flipped; no pixel is moved twice.

    Flipped is: axes swapped for TRANSPOSE, then mirrored along y for FLIP_Y, then along x for FLIP_X.
    """
    if flip & FLIP_X:
        out = out[..., ::-1]
    if flip & FLIP_Y:
        out = out[..., ::-1, :]
    if flip & TRANSPOSE:
        out = out.swapaxes(-1, -2)
    return out
