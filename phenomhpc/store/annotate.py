"""Metadata that arrive after the pixels: joined to the wells of a store, which gets a new snapshot; no shard is touched.

What holds when killed: plates' annotations are committed one by one, the snapshot last; until then the one before is the newest.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates import Plate
from phenomhpc.plates.metadata import PlateWells, Unmatched, unmatched, wells_of_plate
from phenomhpc.progress import Progress
from phenomhpc.runs import commit
from phenomhpc.store.fields import read_annotations, read_fields
from phenomhpc.store.layout import StorePaths
from phenomhpc.store.spec import Store


@dataclass(frozen=True, kw_only=True)
class Annotated:
    """What annotate did, or would do.  gained, changed: (plate, well); snapshot: None in a dry run."""

    gained: tuple[tuple[str, str], ...]
    changed: tuple[tuple[str, str], ...]
    same: int
    left: Unmatched
    snapshot: str | None


def annotate(
    store: Store, table: Path, progress: Progress, *, columns: Mapping[str, str] | None = None, dry_run: bool = False
) -> Annotated:
    """Join a table to the wells of all plates and seal.  What it says of a well replaces what was said; the rest stays.

    Raises UsageError when it says nothing of any plate, or cannot be read; nothing is written then.
    """
    from phenomhpc.store.seal import seal

    gained: list[tuple[str, str]] = []
    changed: list[tuple[str, str]] = []
    same = 0
    plates: list[PlateWells] = []
    new: dict[str, dict[str, dict[str, str]]] = {}
    for key in store.paths.converted_plates():
        if not store.paths.fields(key).is_file():
            continue
        plate, said = _plate(store.paths, key)
        plates.append(plate)
        found = wells_of_plate(table, plate.experiment, plate.names, columns)
        later = read_annotations(store.paths, key)
        for well in sorted(plate.wells & found.keys()):
            before = {**said.get(well, {}), **later.get(well, {})}
            if {**before, **found[well]} == before:
                same += 1
                continue
            (changed if before else gained).append((key, well))
            new.setdefault(key, dict(later))[well] = {**later.get(well, {}), **found[well]}
    left = unmatched(table, plates, columns)
    if not (gained or changed or same):
        keys = ", ".join(plate.key for plate in plates[:3])
        raise UsageError(f"metadata {table}: says nothing of any plate of {store.paths.root} ({keys}); see its columns")
    if dry_run:
        return Annotated(gained=tuple(gained), changed=tuple(changed), same=same, left=left, snapshot=None)
    for key, wells in new.items():
        commit(store.paths.annotations(key), json.dumps(wells, sort_keys=True, indent=1) + "\n")
    write_unmatched(store.paths, left)
    digest = seal(store, progress).digest
    return Annotated(gained=tuple(gained), changed=tuple(changed), same=same, left=left, snapshot=digest)


def _plate(paths: StorePaths, key: str) -> tuple[PlateWells, dict[str, dict[str, str]]]:
    """A plate to be joined, and what its raw metadata say; of a store without .progress its fields table tells."""
    fields = read_fields(paths, key)
    wells = frozenset(fields["well"].to_list())
    if paths.facts(key).is_file():
        facts = json.loads(paths.facts(key).read_bytes())
        head = PlateWells(key=key, experiment=facts["experiment"], names=_names(key, facts["plate"]), wells=wells)
        return head, facts.get("metadata", {})
    experiment = fields["experiment"].to_list()[0] if fields.height else None
    known = fields.filter(fields["perturbation"].is_not_null())
    said = {well: {"perturbation": "known"} for well in known["well"].to_list()}
    return PlateWells(key=key, experiment=experiment, names=_names(key, key.rpartition("__")[2]), wells=wells), said


def _names(key: str, plate: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys((plate, f"Plate{plate}", key)))


def wells_of(plate: Plate, wells: frozenset[str]) -> PlateWells:
    """A raw plate as tables are joined to it."""
    experiment = None if plate.experiment == plate.plate else plate.experiment
    return PlateWells(key=plate.key, experiment=experiment, names=_names(plate.key, plate.plate), wells=wells)


def write_unmatched(paths: StorePaths, left: Unmatched) -> None:
    """Commit the list of what did not match, unless it is there already."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("what", "plate", "well"))
    writer.writerows(("images without a row", plate, well) for plate, well in left.without_row)
    writer.writerows(("row without images", plate, well) for plate, well in left.without_images)
    if not paths.unmatched.is_file() or paths.unmatched.read_text() != buffer.getvalue():
        commit(paths.unmatched, buffer.getvalue())


def words_of(left: Unmatched, table: Path, paths: StorePaths) -> str:
    """What did not match, in a few words; "" when all did."""
    words = []
    if left.without_row:
        words.append(f"{len(left.without_row)} well(s) have no row in {table} (first: {' '.join(left.without_row[0])})")
    if left.without_images:
        words.append(
            f"{len(left.without_images)} row(s) of it have no images (first: {' '.join(left.without_images[0])})"
        )
    return f"; {', '.join(words)}, see {paths.unmatched}" if words else ""
