"""Which wells a linear probe looks at, and where in them: pure functions of the fields tables.

Classes and wells are chosen by hashes of their names, so that they stay the same in every run of a store, and mostly so when
it grows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from phenomhpc.crops.choice import Holdout, choose
from phenomhpc.crops.corpus import Corpus
from phenomhpc.errors import UsageError
from phenomhpc.philox import OFFSET, philox, uniform

LABEL = "perturbation"
# Of one class, at most so many wells on each side, so that controls, which are many, do not crowd out the rest.
MAX_OF_CLASS = 8
# So few wells of a class say nothing.
MIN_TRAIN, MIN_TEST, MIN_CLASSES = 2, 1, 2
PLACE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ProbeWells:
    """n wells: label str[n], is_test bool[n], and their crops: field_no i64, y, x i32, each [n, K]."""

    label: NDArray[np.str_]
    is_test: NDArray[np.bool_]
    field_no: NDArray[np.int64]
    y: NDArray[np.int32]
    x: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.label)


def probe_wells(
    corpus: Corpus, holdout: Holdout, *, where: str | None, wells: int, crops: int, crop_px: int
) -> ProbeWells:
    """At most `wells` wells with `crops` crops each: of every class some that are trained on and some that are held out.

    Raises UsageError without labels, without held-out wells, and with fewer than two classes that have wells on both sides.
    """
    if not holdout.anything:
        raise UsageError("nothing is held out to test on; give data.holdout.plates, wells or share")
    found = {
        True: _labelled(corpus, holdout, where, held_out=True),
        False: _labelled(corpus, holdout, where, held_out=False),
    }
    both = sorted(set(found[True]) & set(found[False]), key=_hash)
    usable = [label for label in both if len(found[False][label]) >= MIN_TRAIN and len(found[True][label]) >= MIN_TEST]
    if len(usable) < MIN_CLASSES:
        raise UsageError(
            f"{len(usable)} perturbation(s) have {MIN_TRAIN} wells to train on and {MIN_TEST} held out, at least {MIN_CLASSES} "
            "are needed; hold out other wells (data.holdout), or leave the probe out"
        )
    chosen: list[tuple[str, bool, NDArray[np.int64]]] = []
    for label in usable:
        own = [
            (label, is_test, fields)
            for is_test in (False, True)
            for _, fields in sorted(found[is_test][label].items(), key=lambda well: _hash(well[0]))[:MAX_OF_CLASS]
        ]
        if chosen and len(chosen) + len(own) > wells:
            break
        chosen += own
    if len({label for label, _, _ in chosen}) < MIN_CLASSES:
        raise UsageError(f"{wells} wells are too few for {MIN_CLASSES} perturbations; give more")
    field_no = np.array([[fields[k % len(fields)] for k in range(crops)] for _, _, fields in chosen], np.int64)
    height, width = corpus.tables.sizes(field_no.ravel())
    draws = np.tile(np.arange(crops), len(chosen))
    draw = uniform(philox(PLACE_SEED, OFFSET, field_no.ravel(), draws)[:, :2])
    y = (draw[:, 0] * (height - crop_px + 1)).astype(np.int32).reshape(field_no.shape)
    x = (draw[:, 1] * (width - crop_px + 1)).astype(np.int32).reshape(field_no.shape)
    return ProbeWells(
        label=np.array([label for label, _, _ in chosen]),
        is_test=np.array([is_test for _, is_test, _ in chosen]),
        field_no=field_no,
        y=y,
        x=x,
    )


def _labelled(
    corpus: Corpus, holdout: Holdout, where: str | None, *, held_out: bool
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """label -> well -> its fields that are dealt.  Raises UsageError where no well has a label."""
    import polars as pl

    rows = choose(corpus, where=where, holdout=holdout, held_out=held_out).rows
    assert rows is not None  # something is held out
    fields = corpus.fields()
    if LABEL not in fields.columns or fields[LABEL].null_count() == len(fields):
        raise UsageError(f"no well has a {LABEL}; store annotate adds labels, or leave the probe out")
    store = pl.Series("store", np.searchsorted(corpus.starts, rows, "right") - 1)
    dealt = pl.DataFrame({"field_no": rows}).with_columns(store)
    known = fields.filter(pl.col("field_no").is_not_null() & pl.col(LABEL).is_not_null())
    table = dealt.join(known.with_columns(pl.col("field_no").cast(pl.Int64)), on="field_no", how="inner")
    found: dict[str, dict[str, NDArray[np.int64]]] = {}
    grouped = table.sort("field_no").group_by("store", "plate", "well", maintain_order=True)
    for (number, plate, well), part in grouped:
        label = str(part[LABEL][0])
        found.setdefault(label, {})[f"{number}/{plate}/{well}"] = part["field_no"].to_numpy()
    return found


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
