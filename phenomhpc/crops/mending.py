"""Crops of fields that cannot be read: tried again, then taken from another field, by number alone, and reported.

One shard of ten thousand that a disk has lost must not end a run of a hundred days, and must not end it silently either.
The field that stands in for another is a function of the damaged one's number: on every rank, and in every restart, the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.sampler import Sampler
from phenomhpc.errors import DamagedError, WorkError
from phenomhpc.philox import REPLACE, philox
from phenomhpc.store.litreader import Reader
from phenomhpc.store.shardfiles import Traffic

# A file server that fails over is back within seconds; what is still unreadable then is damage.
RETRIES_S = (0.2, 2.0)
# So many fields are tried in place of a damaged one: when all of them are damaged too, it is not one shard that is lost.
DRAWS = 16
# Below so many crops a share says nothing.
MIN_CROPS = 1000


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """A field that could not be read, and the one whose crops stand in for its own."""

    field_no: int
    by: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Mending:
    """How a loader meets damage.  max_damaged: share of crops that may be others'; tell: called once for each damaged field."""

    max_damaged: float
    tell: Callable[[Replaced], None]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A field that may stand in for another one, and its size in pixels."""

    field_no: int
    height: int
    width: int


# The fields that may stand in for a damaged one, in the order in which they are tried.
Draws = Callable[[int], Sequence[Candidate]]


def draws_of(sampler: Sampler) -> Draws:
    """Fields that the sampler deals, by the damaged one's number alone: whatever is skipped."""
    sampler = sampler.skipping(())

    def drawn(field_no: int) -> Sequence[Candidate]:
        places = philox(sampler.seed, REPLACE, field_no, np.arange(DRAWS))[..., 0] % np.uint64(sampler.visits_per_epoch)
        found = sampler.visits(places.astype(np.int64)).field_no
        height, width = sampler.sizes(found)
        return [
            Candidate(field_no=number, height=high, width=wide)
            for number, high, wide in zip(found.tolist(), height.tolist(), width.tolist(), strict=True)
            if number != field_no
        ]

    return drawn


def refuse_too_much(num_replaced: int, num_read: int, max_damaged: float, reason: str) -> None:
    """Raise WorkError when more than the share of the crops read is others'.  reason: of the last one."""
    if num_replaced / max(num_read, MIN_CROPS) > max_damaged:
        raise WorkError(
            f"data: {num_replaced} of {num_read} crops read here are of damaged fields, more than "
            f"data.max_damaged={max_damaged:g} allows (last: {reason})"
        )


class MendingReader:
    """Thread-safe, as the reader it stands before."""

    def __init__(
        self, reader: Reader, draws: Draws, *, max_damaged: float, tell: Callable[[Replaced], None] | None = None
    ) -> None:
        """max_damaged: share of the crops read here that may be others'.  tell: called once for each damaged field."""
        self._reader, self._draws, self._max_damaged, self._tell = reader, draws, max_damaged, tell
        self._known: dict[int, tuple[Replaced, Candidate]] = {}
        self._num_read = self.num_replaced = 0
        self._lock = threading.Lock()

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        """As Reader.read().  Raises WorkError when more than the share of crops is damaged."""
        with self._lock:
            self._num_read += 1
            known = self._known.get(field_no)
        if known is None:
            try:
                self._reader.read(field_no, y, x, out)
                return
            except DamagedError as error:
                last = self._again(field_no, y, x, out, error)
            if last is None:
                return
            known = self._replace(field_no, out, last)
        replaced, other = known
        with self._lock:
            self.num_replaced += 1
            refuse_too_much(self.num_replaced, self._num_read, self._max_damaged, replaced.reason)
        self._read_within(other, y, x, out)

    @property
    def traffic(self) -> Traffic:
        """As Reader.traffic; what is tried again counts again."""
        return self._reader.traffic

    def _again(
        self, field_no: int, y: int, x: int, out: NDArray[np.generic], error: DamagedError
    ) -> DamagedError | None:
        """Try to read after a while; None when that went well, else what still stands against it."""
        for seconds in RETRIES_S:
            time.sleep(seconds)
            error.forget()
            try:
                self._reader.read(field_no, y, x, out)
            except DamagedError as again:
                error = again
            else:
                return None
        return error

    def _replace(self, field_no: int, out: NDArray[np.generic], reason: DamagedError) -> tuple[Replaced, Candidate]:
        """The first of the fields drawn for this one that can be read."""
        for other in self._draws(field_no):
            try:
                self._read_within(other, 0, 0, out)
            except DamagedError:
                continue
            found = Replaced(field_no=field_no, by=other.field_no, reason=str(reason)), other
            with self._lock:
                new = self._known.setdefault(field_no, found) is found
            if new and self._tell is not None:
                self._tell(found[0])
            return found
        raise WorkError(
            f"data: field {field_no} and {DRAWS} drawn in its place cannot be read; the last says: {reason}"
        )

    def _read_within(self, field: Candidate, y: int, x: int, out: NDArray[np.generic]) -> None:
        """The crop of another field at this place, moved as far as it must be to lie within it."""
        self._reader.read(field.field_no, min(y, field.height - out.shape[1]), min(x, field.width - out.shape[2]), out)
