"""The fields of one or more stores as one list: those of the first store, then those of the second, and so on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.sampler import Tables
from phenomhpc.errors import UsageError
from phenomhpc.store import Snapshot, open_store
from phenomhpc.store.litreader import OWN, Reader, open_pixels, require_light
from phenomhpc.store.shardfiles import Traffic

if TYPE_CHECKING:
    import polars as pl

SEPARATOR = ","


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Opened snapshots with the same channels and dtype.  A field's number counts through all of them."""

    snapshots: tuple[Snapshot, ...]

    @classmethod
    def open(cls, stores: Sequence[str], digests: str | None = None) -> Corpus:
        """digests: of the stores' snapshots, joined by commas; default the newest.

        Raises UsageError for no store, a store or snapshot that is not there, and stores that do not fit together.
        """
        if not stores:
            raise UsageError("store: none is given; name one or more (--store)")
        wanted = [None] * len(stores) if digests is None else digests.split(SEPARATOR)
        if len(wanted) != len(stores):
            raise UsageError(
                f"snapshot={digests}: {len(wanted)} digest(s) for {len(stores)} store(s); give one for each"
            )
        opened = [Snapshot.open(open_store(name), digest) for name, digest in zip(stores, wanted, strict=True)]
        first = opened[0]
        for name, other in zip(stores, opened, strict=True):
            for what, mine, theirs in (
                ("channels", ", ".join(first.channels), ", ".join(other.channels)),
                ("dtype", first.dtype, other.dtype),
            ):
                if mine != theirs:
                    raise UsageError(
                        f"store {name}: has {what} {theirs}, {stores[0]} has {mine}; convert them alike, or train on one"
                    )
        return cls(snapshots=tuple(opened))

    @property
    def starts(self) -> NDArray[np.int64]:
        """Number of the first field of each store, and of all fields behind the last."""
        return np.concatenate([[0], np.cumsum([snapshot.num_fields for snapshot in self.snapshots])]).astype(np.int64)

    @property
    def digest(self) -> str:
        """The snapshots' digests, joined by commas."""
        return SEPARATOR.join(snapshot.digest for snapshot in self.snapshots)

    @property
    def channels(self) -> tuple[str, ...]:
        return self.snapshots[0].channels

    @property
    def dtype(self) -> str:
        return self.snapshots[0].dtype

    @property
    def scale(self) -> NDArray[np.float32]:
        """f32 (C,): what pixels are divided by before they are standardised; the mean of the stores', each field counted once."""
        weights = [snapshot.num_fields for snapshot in self.snapshots]
        mean: NDArray[np.float32] = np.average([snapshot.scale for snapshot in self.snapshots], 0, weights).astype(
            np.float32
        )
        return mean

    @property
    def tables(self) -> Tables:
        return Tables(
            [snapshot.table for snapshot in self.snapshots], [snapshot.smallest for snapshot in self.snapshots]
        )

    def name(self, field_no: int) -> str:
        """PLATE field N of a field, for people; with its store where there are several."""
        number = int(np.searchsorted(self.starts, field_no, "right")) - 1
        snapshot = self.snapshots[number]
        row = snapshot.table[field_no - int(self.starts[number])]
        store = f"{snapshot.store.paths.root} " if len(self.snapshots) > 1 else ""
        return f"{store}{snapshot.plates[int(row['plate'])]} field {int(row['field'])}"

    def fields(self) -> pl.DataFrame:
        """The stores' fields tables, one behind the other; `field_no` counts through all of them, null where set aside."""
        import polars as pl

        frames = [
            snapshot.fields().with_columns(pl.col("field_no") + int(start))
            for snapshot, start in zip(self.snapshots, self.starts, strict=False)
        ]
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal_relaxed")

    def require_light(self) -> None:
        """Raise UsageError naming the first plate of which its store does not know the light."""
        for snapshot in self.snapshots:
            require_light(snapshot)

    def caches(self, folder: Path) -> list[Path]:
        """Where below a node's folder each store's cache lies: by name, and a digest of the path."""
        roots = [snapshot.store.paths.root for snapshot in self.snapshots]
        return [folder / f"{root.name}-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}" for root in roots]

    def crops_of(self, illumination: str, cache: Path | None = None, through: str = OWN) -> CropsOf:
        """What another process needs to open the reader that `reader` opens."""
        return CropsOf(
            stores=tuple(str(snapshot.store.paths.root) for snapshot in self.snapshots),
            digests=self.digest,
            illumination=illumination,
            cache=None if cache is None else str(cache),
            through=through,
        )

    @contextmanager
    def reader(self, illumination: str, cache: Path | None = None, through: str = OWN) -> Iterator[Reader]:
        """A reader of crops by the corpus' field numbers.  cache: a node's folder of caches, as `caches()` names them.

        through: as of litreader.open_pixels."""
        caches = [None] * len(self.snapshots) if cache is None else self.caches(cache)
        with ExitStack() as stack:
            readers = [
                stack.enter_context(open_pixels(snapshot, illumination, folder, through=through))
                for snapshot, folder in zip(self.snapshots, caches, strict=True)
            ]
            yield readers[0] if len(readers) == 1 else _Readers(readers, self.starts)


@dataclass(frozen=True, kw_only=True)
class CropsOf:
    """Names of what crops are read from: all that one process tells another of it.

    stores: whole paths; digests: of their snapshots, joined by commas; the rest as Corpus.reader() takes it.
    """

    stores: tuple[str, ...]
    digests: str
    illumination: str
    cache: str | None
    through: str

    @contextmanager
    def open(self) -> Iterator[Reader]:
        """A reader of crops by the corpus' field numbers.  Raises UsageError for what is not there any more."""
        corpus = Corpus.open(self.stores, self.digests)
        cache = None if self.cache is None else Path(self.cache)
        with corpus.reader(self.illumination, cache, self.through) as reader:
            yield reader


class _Readers:
    def __init__(self, readers: Sequence[Reader], starts: NDArray[np.int64]) -> None:
        self._readers, self._starts = readers, starts

    def read(self, field_no: int, y: int, x: int, out: NDArray[np.generic]) -> None:
        store = int(np.searchsorted(self._starts, field_no, "right")) - 1
        self._readers[store].read(field_no - int(self._starts[store]), y, x, out)

    @property
    def traffic(self) -> Traffic:
        return sum((reader.traffic for reader in self._readers), Traffic())
