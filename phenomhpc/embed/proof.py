"""The proof that a folder holds every well of a snapshot exactly once, embedded or named with its reason.

A plate is proved from its record and its tables against the wells of the snapshot.  `complete.json` says that it was done, for
which checkpoint and which snapshot, and what is missing; it is written last, and it is worth what embeddings.json says too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import polars as pl
from google_crc32c import value as crc32c

from phenomhpc.embed.folder import Binding, EmbeddingsPaths
from phenomhpc.embed.table import OK, feature_columns, feature_name
from phenomhpc.embed.wells import PlateWells
from phenomhpc.errors import WorkError
from phenomhpc.runs import canonical_json, commit, read_record

SCHEMA = 1
WAY_OUT = "run the same command again to embed it anew"


@dataclass(frozen=True, kw_only=True)
class Proof:
    """complete.json.  missing: (PLATE/WELL, reason) of every well without an embedding, in order."""

    checkpoint_digest: str
    snapshot_digest: str
    num_plates: int
    num_tables: int
    num_wells: int
    num_embedded: int
    missing: tuple[tuple[str, str], ...]
    schema: int = SCHEMA


def prove(
    paths: EmbeddingsPaths,
    binding: Binding,
    plates: Sequence[str],
    wells_of: Callable[[str], PlateWells],
    *,
    baselines: Sequence[str],
    whole: bool,
    advance: Callable[[], object] = lambda: None,
) -> Proof:
    """Hold the folder against the wells of the snapshot.

    plates: of the snapshot, in order; wells_of: the wells of one, held while it is looked at; baselines: names of those that must
    be there; advance: called behind each plate
    whole: also read every byte back: checksums, and that features are finite where a well is ok and null where it is not
    Raises WorkError naming the plate, table or well that is not as it must be, or a plate of none of the snapshot's.
    """
    folders = [paths, *(paths.block(number) for number in binding.blocks), *map(paths.baseline, baselines)]
    crops = [paths.crops] if binding.level == "crop" else []
    missing: list[tuple[str, str]] = []
    for folder in (*folders, *crops):
        stray = sorted({path.stem for path in folder.tables()} - set(plates))
        if stray:
            raise WorkError(
                f"embed: {folder.table(stray[0])}: plate {stray[0]} is not in snapshot {binding.snapshot_digest[:12]}; "
                "move the table away, or name the snapshot that has it"
            )
    num_wells = 0
    for plate in plates:
        wells = wells_of(plate)
        num_wells += wells.num_wells
        _require_outputs(paths, plate, [folder.table(plate) for folder in (*folders, *crops)], whole=whole)
        for folder in folders:
            _require_wells(folder.table(plate), wells, whole=whole)
        for folder in crops:
            _require_crops(folder.table(plate), wells, whole=whole)
        names = wells.metadata["well"]
        missing += [(f"{plate}/{name}", why) for name, why in zip(names, wells.status, strict=True) if why != OK]
        advance()
    return Proof(
        checkpoint_digest=binding.checkpoint_digest,
        snapshot_digest=binding.snapshot_digest,
        num_plates=len(plates),
        num_tables=len(plates) * len((*folders, *crops)),
        num_wells=num_wells,
        num_embedded=num_wells - len(missing),
        missing=tuple(missing),
    )


def publish(paths: EmbeddingsPaths, proof: Proof) -> None:
    """Commit complete.json."""
    commit(paths.proof, canonical_json(asdict(proof)) + b"\n")


def _require_outputs(paths: EmbeddingsPaths, plate: str, tables: Sequence[Path], *, whole: bool) -> None:
    """The record vouches for exactly these tables, of these sizes (whole: and bytes)."""
    record = read_record(paths.record(plate))
    if record is None:
        raise WorkError(f"embed: plate {plate}: no whole record in {paths.record(plate).parent}; {WAY_OUT}")
    vouched = {paths.root / name: (size, crc) for name, size, crc in record.outputs}
    for table in tables:
        if table not in vouched or not table.is_file():
            raise WorkError(f"embed: {table} is {'absent' if table in vouched else 'not in its record'}; {WAY_OUT}")
        size, crc = vouched[table]
        if table.stat().st_size != size or (whole and crc32c(table.read_bytes()) != crc):
            raise WorkError(f"embed: {table} has other bytes than were written; {_removed(table)}")


def _require_wells(table: Path, wells: PlateWells, *, whole: bool) -> None:
    frame = _read(table, None if whole else ["well", "status", "num_crops"])
    expected = pl.DataFrame(
        {
            "well": wells.metadata["well"],
            "status": pl.Series(wells.status, dtype=pl.String),
            "num_crops": pl.Series(wells.num_crops, dtype=pl.UInt16),
        }
    )
    if not frame.select("well", "status", "num_crops").equals(expected):
        odd = _first_odd(frame, expected)
        raise WorkError(
            f"embed: {table} does not hold each well of the plate once as planned ({odd}); {_removed(table)}"
        )
    if whole:
        present = np.array(wells.status) == OK
        _require_features(table, frame, present)


def _require_crops(table: Path, wells: PlateWells, *, whole: bool) -> None:
    keys = ["well", "field_index", "crop_y", "crop_x"]
    frame = _read(table, None if whole else keys)
    found = [np.column_stack((np.full(len(f.corners), f.field_index), f.corners)) for fs in wells.fields for f in fs]
    placed = np.concatenate(found) if found else np.empty((0, 3), np.int64)
    expected = pl.DataFrame({name: pl.Series(placed[:, i], dtype=pl.UInt32) for i, name in enumerate(keys[1:])})
    owner = wells.metadata["well"][np.repeat(np.arange(wells.num_wells), wells.num_crops)]
    if not (frame.select(keys[1:]).equals(expected) and frame["well"].equals(owner)):
        raise WorkError(f"embed: {table} does not hold each crop of the plate once; {_removed(table)}")
    if whole:
        _require_features(table, frame, np.ones(frame.height, dtype=np.bool_))


def _require_features(table: Path, frame: pl.DataFrame, present: np.ndarray) -> None:
    names = feature_columns(frame)
    if names != [feature_name(i) for i in range(len(names))]:
        raise WorkError(f"embed: {table}: its features are not {feature_name(0)} and on; {_removed(table)}")
    nulls = frame.select(pl.sum_horizontal(pl.col(names).is_null())).to_series().to_numpy()
    finite = np.isfinite(frame.select(names).filter(pl.Series(present)).to_numpy()).all(axis=1)
    if (nulls != np.where(present, 0, len(names))).any() or not finite.all():
        bad = np.flatnonzero(nulls != np.where(present, 0, len(names)))
        row = int(bad[0]) if len(bad) else int(np.flatnonzero(present)[np.flatnonzero(~finite)[0]])
        raise WorkError(
            f"embed: {table}: well {frame['well'][row]} has {'no' if present[row] else 'an'} embedding or one that is no "
            f"number; {_removed(table)}"
        )


def _first_odd(frame: pl.DataFrame, expected: pl.DataFrame) -> str:
    odd = sorted(set(expected["well"]) ^ set(frame["well"]))
    if odd:
        return f"well {odd[0]}"
    if frame.height != expected.height:
        return f"{frame.height} rows for {expected.height} wells"
    here = frame.select(expected.columns)
    row = next(i for i in range(frame.height) if here.row(i) != expected.row(i))
    return f"row {row}: {here.row(row)} for {expected.row(row)}"


def _removed(table: Path) -> str:
    return f"remove {table.name} and run the same command again"


def _read(table: Path, columns: list[str] | None) -> pl.DataFrame:
    try:
        return pl.read_parquet(table, columns=columns)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise WorkError(f"embed: {table}: no readable Parquet file ({error}); {_removed(table)}") from error
