"""Which crop comes next: a pure function of the snapshot, the sampler's settings, the seed and the visit number.

The unit dealt is a visit: a field and its K crops.  Visit v belongs to epoch v // n; its field is a keyed permutation of
the epoch's positions, so that every field comes once per epoch.  Sample index = v * K + k.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.permutation import permute
from phenomhpc.errors import UsageError
from phenomhpc.philox import FLIP, MASK, OFFSET, philox, uniform, uniform32

DIGEST_DIGITS = 16
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


class Sampler:
    """Deals visits of the fields of a snapshot.  O(1) memory beside the snapshot's own (mapped) table."""

    def __init__(
        self,
        table: NDArray[np.void],
        *,
        seed: int,
        crop_px: int,
        crops_per_visit: int = 1,
        flips: bool = True,
        eligible: NDArray[np.int64] | None = None,
    ) -> None:
        """`table` is Snapshot.table; `eligible` its rows to deal (default: all).

        Raises UsageError when there is no field, or one is smaller than a crop.
        """
        self._table, self._eligible = table, eligible
        self.seed, self.crop_px, self.crops_per_visit, self.flips = seed, crop_px, crops_per_visit, flips
        self.num_fields = len(table) if eligible is None else len(eligible)
        if not self.num_fields:
            raise UsageError("data: no field to draw crops from; is data.where too strict?")
        rows = table if eligible is None else table[eligible]
        height, width = int(rows["height"].min()), int(rows["width"].min())
        if min(height, width) < crop_px:
            raise UsageError(
                f"model.crop_px={crop_px}: the smallest field has {height}x{width} pixels; choose a smaller crop"
            )

    def visits(self, visit: NDArray[np.int64]) -> Visits:
        """The crops of visits `visit` (i64[n], each 0 or more)."""
        number = visit.astype(np.uint64)
        epoch, position = np.divmod(number, np.uint64(self.num_fields))
        field_no = permute(self.seed, self.num_fields, epoch, position)
        if self._eligible is not None:
            field_no = self._eligible[field_no]
        index = visit[:, None] * self.crops_per_visit + np.arange(self.crops_per_visit)
        rows = self._table[field_no]
        offset = uniform(philox(self.seed, OFFSET, index)[..., :2])
        y = offset[..., 0] * (rows["height"].astype(np.int64) - self.crop_px + 1)[:, None]
        x = offset[..., 1] * (rows["width"].astype(np.int64) - self.crop_px + 1)[:, None]
        flip = np.zeros(index.shape, np.uint8)
        if self.flips:
            flip = (philox(self.seed, FLIP, index)[..., 0] & np.uint64(7)).astype(np.uint8)
        return Visits(field_no=field_no, index=index, y=y.astype(np.int32), x=x.astype(np.int32), flip=flip)

    def mask_noise(self, index: NDArray[np.int64], num_patches: int) -> NDArray[np.float32]:
        """Uniform noise f32[B, num_patches] in [0, 1) by sample index; whose smallest are kept is the model's matter."""
        draws = np.arange(-(-num_patches // 4))
        words = philox(self.seed, MASK, index[:, None], draws[None, :])
        return uniform32(words).reshape(len(index), 4 * len(draws))[:, :num_patches]


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
