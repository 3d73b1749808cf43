"""Which fields are dealt, and how often: filter, held-out wells, weights and subset; pure functions of the fields tables."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.corpus import Corpus
from phenomhpc.crops.permutation import permute
from phenomhpc.crops.sampler import SUBSET_SEED
from phenomhpc.crops.where import eligible_rows
from phenomhpc.errors import UsageError
from phenomhpc.philox import SUBSET

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """What is kept for validation: plates and wells by name (`*` and `?` as in a shell), and a share of the wells or plates.

    wells: "A01" on every plate, or "PLATE/A01".  share: of the wells, or the plates, by a hash of their name, so that what is
    held out stays so when the store grows.
    """

    plates: tuple[str, ...] = ()
    wells: tuple[str, ...] = ()
    share: float = 0.0
    by: str = "well"

    @property
    def anything(self) -> bool:
        return bool(self.plates or self.wells or self.share)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """rows: fields in the order in which they are numbered for dealing; None for all as they are.  groups: (how many of these
    that follow each other, how often each comes an epoch); () for all once.  subset: how many of them, by a keyed choice."""

    rows: NDArray[np.int64] | None = None
    groups: tuple[tuple[int, float], ...] = ()
    subset: int | None = None


def choose(
    corpus: Corpus,
    *,
    where: str | None = None,
    holdout: Holdout = Holdout(),
    held_out: bool = False,
    subset: float | None = None,
    store_weights: Sequence[float] = (),
    weights: Mapping[str, Mapping[str, float]] | None = None,
) -> Choice:
    """The fields to deal.  held_out: those that are held out instead of the others; neither weighted nor cut then.

    A field's weight is its store's times, of each column named in `weights`, that of its value (1 where none is given).
    Memory: nothing for a whole corpus or a subset of it, else 8 bytes a field that is dealt.
    Raises UsageError for what names nothing, and for weights that are negative or not one for each store.
    """
    if store_weights and len(store_weights) != len(corpus.snapshots):
        raise UsageError(
            f"data.store_weights: {len(store_weights)} weight(s) for {len(corpus.snapshots)} store(s); give one for each"
        )
    rows = _rows(corpus, where, holdout, held_out)
    if held_out:
        return Choice(rows=rows)
    total = int(corpus.starts[-1]) if rows is None else len(rows)
    number = _subset_size(subset, total)
    if not weights and len(set(store_weights)) <= 1:
        return Choice(rows=rows, subset=number)
    rows = np.arange(total, dtype=np.int64) if rows is None else rows
    if number is not None:
        places = permute(SUBSET_SEED, total, np.zeros(number, np.uint64), np.arange(number, dtype=np.uint64), SUBSET)
        rows = np.sort(rows[places])
    return _grouped(rows, _weights(corpus, store_weights, weights or {})[rows])


def _rows(corpus: Corpus, where: str | None, holdout: Holdout, held_out: bool) -> NDArray[np.int64] | None:
    if where is None and not holdout.anything:
        return np.empty(0, np.int64) if held_out else None
    fields = corpus.fields()
    if where is None:
        rows = np.sort(fields["field_no"].drop_nulls().to_numpy().astype(np.int64))
    else:
        rows = eligible_rows(fields, where, corpus.channels)
    if not holdout.anything:
        return np.empty(0, np.int64) if held_out else rows
    held = np.zeros(int(corpus.starts[-1]), bool)
    held[_held_out(fields, holdout)] = True
    kept: NDArray[np.int64] = rows[held[rows] == held_out]
    return kept


def _held_out(fields: pl.DataFrame, holdout: Holdout) -> NDArray[np.int64]:
    """Field numbers of what is held out.  Raises UsageError for a name that fits nothing."""
    import polars as pl

    wells = fields.select("plate", "well").unique(maintain_order=True)
    names = wells.rows()
    held = np.zeros(len(names), bool)
    for pattern in holdout.plates:
        found = np.array([fnmatchcase(plate, pattern) for plate, _ in names], bool)
        _refuse_nothing(found, "plates", pattern, "plates are such as " + names[0][0])
        held |= found
    for pattern in holdout.wells:
        whole = "/" in pattern
        found = np.array([fnmatchcase(f"{plate}/{well}" if whole else well, pattern) for plate, well in names], bool)
        _refuse_nothing(found, "wells", pattern, "wells are such as A01 or {}/{}".format(*names[0]))
        held |= found
    if holdout.share:
        keys = [plate if holdout.by == "plate" else f"{plate}/{well}" for plate, well in names]
        held |= np.array([_hash(key) < holdout.share for key in keys], bool)
    chosen = wells.filter(pl.Series(held))
    return fields.join(chosen, on=["plate", "well"], how="semi")["field_no"].drop_nulls().to_numpy().astype(np.int64)


def _hash(name: str) -> float:
    """In [0, 1), from the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _refuse_nothing(found: NDArray[np.bool_], what: str, pattern: str, hint: str) -> None:
    if not found.any():
        raise UsageError(f"data.holdout.{what}: {pattern} fits none of the stores' {what}; {hint}")


def _subset_size(subset: float | None, total: int) -> int | None:
    if subset is None:
        return None
    if subset > total:
        raise UsageError(f"data.subset={subset:g}: only {total} field(s) are left to choose from")
    return int(subset)


def _weights(
    corpus: Corpus, store_weights: Sequence[float], weights: Mapping[str, Mapping[str, float]]
) -> NDArray[np.float64]:
    """f64 of every field of the corpus."""
    import polars as pl

    found = np.repeat(store_weights or [1.0] * len(corpus.snapshots), np.diff(corpus.starts)).astype(np.float64)
    if not weights:
        return found
    fields = corpus.fields().filter(pl.col("field_no").is_not_null()).sort("field_no")
    for column, by_value in weights.items():
        if column not in fields.columns:
            raise UsageError(
                f"data.weights.{column}: no such column of the fields table; there are {', '.join(fields.columns[:20])}"
            )
        values = fields[column].cast(pl.String)
        known = set(values.drop_nulls().unique().to_list())
        for value in by_value:
            if value not in known:
                some = ", ".join(sorted(known)[:5]) or "none"
                raise UsageError(f"data.weights.{column}: {value} is no value of it; there are {some}")
        found *= values.replace_strict(dict(by_value), default=1.0, return_dtype=pl.Float64).to_numpy()
    return found


def _grouped(rows: NDArray[np.int64], weight: NDArray[np.float64]) -> Choice:
    """Fields of one weight behind each other; those of weight 0 are left out."""
    order = np.argsort(weight, kind="stable")
    order = order[weight[order] > 0]
    values, counts = np.unique(weight[order], return_counts=True)
    return Choice(
        rows=rows[order],
        groups=tuple((int(count), float(value)) for count, value in zip(counts, values, strict=True)),
    )
