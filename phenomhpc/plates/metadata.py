"""Perturbation tables: a CSV joined by experiment, plate and well, its columns brought to the store's names."""

from __future__ import annotations

import csv
import difflib
import functools
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.types import ReadOptions, Well

Wells = dict[str, dict[str, str]]
CONTROL_TREATMENT = "EMPTY_control"

# Names that RxRx1, RxRx3 and profiling tools use, lower case; the first that a file has is taken.
_ALIASES: dict[str, tuple[str, ...]] = {
    "experiment": ("experiment_name", "experiment", "metadata_experiment"),
    "plate": ("plate", "metadata_plate", "plate_name", "barcode"),
    "well": ("address", "well", "metadata_well", "well_position"),
    "gene": ("gene", "gene_symbol", "metadata_gene"),
    "treatment": ("treatment", "sirna", "compound", "perturbation", "metadata_treatment"),
    "smiles": ("smiles",),
    "concentration_um": ("concentration", "concentration_um"),
    "perturbation_type": ("perturbation_type", "well_type"),
    "cell_type": ("cell_type",),
    "batch": ("batch",),
}
# One column of each line is needed.
_NEEDED = (("plate",), ("well",), ("treatment", "gene"))
_TYPES = {
    "crispr": "gene",
    "gene": "gene",
    "sirna": "gene",
    "compound": "compound",
    "treatment": "gene",
    "negative_control": "control",
    "positive_control": "gene",
    "control": "control",
    "empty": "empty",
}
# Join keys say nothing about a well that its plate does not.
_DROPPED = {"experiment", "plate", "well"}
# Tables of the experiments read last, per process: an experiment's plates are read one after the other.
_TABLES_KEPT = 4


def wells_of_plate(
    path: Path, experiment: str | None, plates: Iterable[str], columns: Mapping[str, str] | None = None
) -> Wells:
    """Well name -> column -> text for a plate, known by any of several names; empty when the CSV has no row for it.

    columns: the store's name of a column -> the CSV's, where that is none of the known ones.  experiment: None where the
    layout does not say it; the plate's name alone then decides.  A column of the user's own comes as meta_NAME, as far as all
    rows of a well agree on it (a table may have one row per site).
    Raises UsageError naming the file, and the column or line that is wrong.
    """
    table = _table(path, experiment, columns or {})
    for name in plates:
        rows = table.plates.get(_plate_number(name))
        if rows:
            return _joined(path, table, name, rows)
    return {}


def joined(options: ReadOptions, experiment: str | None, plates: Iterable[str], beside: Path | None = None) -> Wells:
    """What a person's table, or the one that lies beside the plate, says of its wells; nothing where there is none."""
    if options.metadata is not None:
        return wells_of_plate(options.metadata, experiment, plates, options.columns)
    return wells_of_plate(beside, experiment, plates) if beside is not None else {}


def _table(path: Path, experiment: str | None, columns: Mapping[str, str]) -> _Table:
    try:
        status = path.stat()
        return _read(path, status.st_mtime_ns, status.st_size, experiment, tuple(sorted(columns.items())))
    except FileNotFoundError as error:
        raise UsageError(f"metadata {path}: no such file") from error
    except OSError as error:
        raise UsageError(f"metadata {path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True, kw_only=True)
class PlateWells:
    """A plate as a table is joined to it: its key in the store, its names, and the wells that have images."""

    key: str
    experiment: str | None
    names: tuple[str, ...]
    wells: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Unmatched:
    """What a join left over.  without_row: (plate's key, well) with images; without_images: (plate, well) as in the table."""

    without_row: tuple[tuple[str, str], ...]
    without_images: tuple[tuple[str, str], ...]


def unmatched(path: Path, plates: Sequence[PlateWells], columns: Mapping[str, str] | None = None) -> Unmatched:
    """What does not match between a table and plates, both ways.  Raises UsageError as wells_of_plate() does."""
    table = _table(path, None, columns or {})
    by_number: dict[str, list[PlateWells]] = defaultdict(list)
    for plate in plates:
        for name in dict.fromkeys(map(_plate_number, plate.names)):
            by_number[name].append(plate)
    met: dict[str, set[str]] = defaultdict(set)
    left: list[tuple[str, str]] = []
    for number, rows in table.plates.items():
        for line, experiment, cells in rows:
            try:
                well = Well.parse(cells[table.columns["well"]]).name
            except ValueError as error:
                raise UsageError(f"metadata {path}: line {line}: {error}") from error
            ours = [
                plate for plate in by_number.get(number, ())
                if well in plate.wells and (not experiment or plate.experiment in (None, experiment))
            ]  # fmt: skip
            for plate in ours:
                met[plate.key].add(well)
            if not ours:
                left.append((f"{experiment} {number}".strip(), well))
    without_row = [(plate.key, well) for plate in plates for well in sorted(plate.wells - met[plate.key])]
    return Unmatched(without_row=tuple(without_row), without_images=tuple(dict.fromkeys(left)))


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Rows of one experiment (of all, where it is not known or not told): plate -> (line, experiment, cells)."""

    header: Sequence[str]
    columns: Mapping[str, int]
    plates: Mapping[str, Sequence[tuple[int, str, tuple[str, ...]]]]


@functools.lru_cache(maxsize=_TABLES_KEPT)
def _read(
    path: Path, _mtime_ns: int, _size: int, experiment: str | None, mapped: tuple[tuple[str, str], ...]
) -> _Table:
    """One pass over the CSV, keeping one experiment's rows: a screen's table has millions."""
    plates: dict[str, list[tuple[int, str, tuple[str, ...]]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file, strict=True)
            header = [name.strip() for name in next(rows, [])]
            columns = _columns(path, header, dict(mapped))
            at_experiment, at_plate = columns.get("experiment"), columns["plate"]
            for row in rows:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UsageError(
                        f"metadata {path}: line {rows.line_num} has {len(row)} cells, the header {len(header)}; "
                        "put quotes around text that holds commas"
                    )
                of = "" if at_experiment is None else row[at_experiment].strip()
                if at_experiment is None or experiment is None or of == experiment:
                    cells = tuple(sys.intern(cell.strip()) for cell in row)
                    plates[_plate_number(cells[at_plate])].append((rows.line_num, of, cells))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"metadata {path}: is no CSV in UTF-8 ({error})") from error
    return _Table(header=header, columns=columns, plates=plates)


def _columns(path: Path, header: Sequence[str], mapped: Mapping[str, str]) -> dict[str, int]:
    position = {name.lower(): place for place, name in enumerate(header) if name}
    found = {}
    for column, name in mapped.items():
        if column not in _ALIASES:
            near = difflib.get_close_matches(column, _ALIASES, 3, 0.4) or list(_ALIASES)
            raise UsageError(f"metadata_columns.{column}: the store has no such column; there are {', '.join(near)}")
        if name.lower() not in position:
            near = difflib.get_close_matches(name, header, 3, 0.4) or [text for text in header if text]
            raise UsageError(f"metadata_columns.{column}={name}: {path} has no such column; it has {', '.join(near)}")
        found[column] = position[name.lower()]
    for column, aliases in _ALIASES.items():
        if column in mapped:
            continue
        match = next((position[alias] for alias in aliases if alias in position), None)
        if match is not None:
            found[column] = match
    for columns in _NEEDED:
        if not any(column in found for column in columns):
            names = ", ".join(alias for column in columns for alias in _ALIASES[column])
            raise UsageError(
                f"metadata {path}: has no column for the {' or '.join(columns)}; one of {names} is needed, "
                f"it has {', '.join(name for name in header if name) or 'none'}; rename one, or map it: metadata_columns."
                f"{columns[0]}=NAME (store annotate: --column {columns[0]}=NAME)"
            )
    return found


def _plate_number(text: str) -> str:
    """`Plate3`, `3` and `3.0` are one plate; other names stay what they are."""
    name = text.strip()
    number = name.removeprefix("Plate").removeprefix("plate").removesuffix(".0")
    return str(int(number)) if number.isascii() and number.isdigit() and len(number) < 6 else name


def _joined(path: Path, table: _Table, plate: str, rows: Sequence[tuple[int, str, tuple[str, ...]]]) -> Wells:
    wells: Wells = {}
    first: dict[str, tuple[int, str]] = {}
    for line, experiment, cells in rows:
        try:
            name = Well.parse(cells[table.columns["well"]]).name
        except ValueError as error:
            raise UsageError(f"metadata {path}: line {line}: {error}") from error
        values = _normalised(table, cells)
        if name not in wells:
            wells[name], first[name] = values, (line, experiment)
            continue
        if experiment != first[name][1] or _known(wells[name]) != _known(values):
            way = "correct one" if "experiment" in table.columns else "or add a column experiment_name"
            raise UsageError(
                f"metadata {path}: plate {plate} well {name}: lines {first[name][0]} and {line} differ; {way}"
            )
        wells[name] = {column: text for column, text in wells[name].items() if values.get(column) == text}
    return wells


def _known(values: Mapping[str, str]) -> dict[str, str]:
    return {column: text for column, text in values.items() if not column.startswith("meta_")}


def _normalised(table: _Table, cells: Sequence[str]) -> dict[str, str]:
    """A row in the store's names: known columns, what follows from them, and the user's own as meta_*."""
    known = {name: cells[place] for name, place in table.columns.items() if name not in _DROPPED}
    taken = set(table.columns.values())
    own = {f"meta_{name}": cells[place] for place, name in enumerate(table.header) if name and place not in taken}
    said = known.get("perturbation_type", "").lower()
    control = CONTROL_TREATMENT in (known.get("treatment"), known.get("gene")) or _TYPES.get(said) == "control"
    kind = "control" if control else _TYPES.get(said, said)
    perturbation = CONTROL_TREATMENT if control else ""
    if not control:
        by_gene = kind == "gene" and known.get("gene")
        perturbation = known["gene"] if by_gene else known.get("treatment", "") or known.get("gene", "")
    derived = {"perturbation_type": kind, "perturbation": perturbation, "is_control": "true" if control else "false"}
    return {name: text for name, text in {**known, **derived, **own}.items() if text != ""}
