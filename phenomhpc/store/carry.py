"""What a copy takes over from its source beside the pixels: facts, annotations, rows of the fields tables, old snapshots.

Idempotent, and repeated at the end of every run: a copy follows its source, also where only metadata have changed.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import polars as pl

from phenomhpc.errors import WorkError
from phenomhpc.runs import canonical_json, commit, read_record, write_record
from phenomhpc.store.fields import METADATA_COLUMNS, PIXEL_COLUMNS, STRAY, read_annotations, read_fields
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.rechunk import PlateCopy, SourceRows
from phenomhpc.store.snapshot import DESCRIPTION, FIELDS, TABLE


def carry_plate(copy: PlateCopy, shards: list[int]) -> None:
    """Take over what the source says of a plate whose `shards` were copied.

    Annotations: what the source was told wins over what the copy was told itself.
    Raises WorkError when the source's pixels are others by now.
    """
    paths, plate = copy.paths, copy.plate
    _carry_rows(copy, shards)
    facts = _facts(copy.source.paths, plate)
    if facts is not None:
        _publish(paths, plate, facts)
    for function in sorted(copy.source.paths.light(plate).glob("*.npy")):
        there = paths.light(plate) / function.name  # named by its content
        if not there.is_file():
            commit(there, function.read_bytes())
    said = read_annotations(copy.source.paths, plate)
    own = read_annotations(paths, plate)
    if said:
        wells = {well: {**own.get(well, {}), **said.get(well, {})} for well in sorted({*own, *said})}
        if wells != own:
            commit(paths.annotations(plate), json.dumps(wells, sort_keys=True, indent=1) + "\n")


def carry_store(source: StorePaths, target: StorePaths) -> None:
    """Take over what does not belong to one plate: the list of unmatched wells, and every snapshot, which holds here too."""
    if source.unmatched.is_file() and not target.unmatched.is_file():
        commit(target.unmatched, source.unmatched.read_bytes())
    for folder in sorted(source.snapshots.iterdir()) if source.snapshots.is_dir() else ():
        there = target.snapshot(folder.name)
        if (folder / DESCRIPTION).is_file() and not (there / DESCRIPTION).is_file():
            for name in (TABLE, FIELDS, DESCRIPTION):
                commit(there / name, (folder / name).read_bytes())


def _carry_rows(copy: PlateCopy, shards: list[int]) -> None:
    """Bring the records' rows up to date: a source may have been measured anew without a change of its pixels."""
    rows = SourceRows(copy.source.paths, copy.plate, copy.have)
    for shard in shards:
        path = copy.paths.record(copy.plate, shard)
        record, wanted = read_record(path), rows.of(copy.want.fields_of(shard))
        if record is None or record.digest != copy.digest(shard, wanted):
            raise WorkError(
                f"store {copy.source.paths.root}: plate {copy.plate}: its pixels have changed while they were copied; run again"
            )
        if canonical_json(list(record.rows)) != canonical_json(wanted):
            write_record(path, replace(record, rows=tuple(wanted)))


def _publish(paths: StorePaths, plate: str, facts: bytes) -> None:
    if not paths.facts(plate).is_file() or paths.facts(plate).read_bytes() != facts:
        commit(paths.facts(plate), facts)


def _facts(source: StorePaths, plate: str) -> bytes | None:
    """plate.json as the source has it; of a store without .progress what its tables still know; None where nobody knows yet."""
    if source.facts(plate).is_file():
        return source.facts(plate).read_bytes()
    if source.records(plate).is_dir():
        return None
    fields = read_fields(source, plate)
    experiment = fields["experiment"].to_list()[0] if fields.height else None
    facts = {
        "key": plate,
        "experiment": experiment,
        "plate": plate.rpartition("__")[2],
        "root": None,  # where the raw plate was
        "strays": _strays(source, plate),
        "metadata": _metadata(fields, experiment),
    }
    return (json.dumps(facts, sort_keys=True) + "\n").encode()


def _metadata(fields: pl.DataFrame, experiment: str | None) -> dict[str, dict[str, str]]:
    """Well -> column -> text, from which fields.plate_fields makes the same table again."""
    names = [name for name in fields.columns if name not in PIXEL_COLUMNS]
    wells: dict[str, dict[str, str]] = {}
    for row in fields.unique("well", keep="first", maintain_order=True).select("well", *names).to_dicts():
        well = str(row.pop("well"))
        wells[well] = {name: _text(value) for name, value in row.items() if value is not None}
        if experiment is not None:  # which would stand in for them
            wells[well] |= {name: "" for name in ("experiment", "batch") if row[name] is None}
        # A column that nobody has a value for is still one.
        wells[well] |= {name: "" for name, value in row.items() if value is None and name not in METADATA_COLUMNS}
    return wells


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _strays(source: StorePaths, plate: str) -> list[list[str]]:
    """Images without a place, as set_aside.csv lists them."""
    if not source.set_aside.is_file():
        return []
    rows = pl.read_csv(source.set_aside.read_bytes(), infer_schema=False).to_dicts()
    texts = [str(row["reason"]) for row in rows if row["plate"] == plate and row["status"] == STRAY]
    return [list(text.partition(": ")[::2]) for text in texts]
