"""Perturbation tables: a CSV joined by experiment, plate and well, its columns brought to the store's names."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.plates.types import Well

Wells = dict[str, dict[str, str]]
CONTROL_TREATMENT = "EMPTY_control"

# Names that RxRx1, RxRx3 and profiling tools use, lower case; the first that a file has is taken.
_ALIASES: dict[str, tuple[str, ...]] = {
    "experiment": ("experiment_name", "experiment", "metadata_experiment"),
    "plate": ("plate", "metadata_plate", "plate_name", "barcode"),
    "well": ("address", "well", "metadata_well", "well_position"),
    "gene": ("gene", "gene_symbol", "metadata_gene"),
    "treatment": ("treatment", "sirna", "compound", "metadata_treatment"),
    "smiles": ("smiles",),
    "concentration_um": ("concentration", "concentration_um"),
    "perturbation_type": ("perturbation_type", "well_type"),
    "cell_type": ("cell_type",),
    "batch": ("batch",),
}
_NEEDED = ("plate", "well")
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
# Join keys and identifiers that say nothing about a well.
_DROPPED = {"experiment", "plate", "well"}


class MetadataTable:
    """A read CSV: look up a plate's wells."""

    def __init__(self, path: Path, plates: Mapping[tuple[str | None, str], Wells]) -> None:
        self.path, self._plates = path, plates

    def wells(self, experiment: str, plates: Iterable[str]) -> Wells:
        """Well name -> column -> text for a plate, known by any of several names; empty when the table has none."""
        for plate in plates:
            for key in ((experiment, plate), (None, plate)):
                if key in self._plates:
                    return self._plates[key]
        return {}


def read_metadata(path: Path) -> MetadataTable:
    """Read a CSV.  Raises UsageError naming the file, and the column or line that is wrong."""
    if not path.is_file():
        raise UsageError(f"metadata {path}: no such file")
    plates: dict[tuple[str | None, str], Wells] = defaultdict(dict)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            columns = _columns(path, rows.fieldnames or [])
            for row in rows:
                experiment = (row[columns["experiment"]] or "").strip() if "experiment" in columns else None
                well = Well.parse(row[columns["well"]] or "").name
                plates[experiment, _plate_number(row[columns["plate"]] or "")][well] = _normalised(row, columns)
    except ValueError as error:
        raise UsageError(f"metadata {path}: line {rows.line_num}: {error}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"metadata {path}: is no CSV in UTF-8 ({error})") from error
    return MetadataTable(path, plates)


def _columns(path: Path, names: Iterable[str]) -> dict[str, str]:
    by_lower = {name.strip().lower(): name for name in names if name}
    found = {}
    for column, aliases in _ALIASES.items():
        match = next((by_lower[alias] for alias in aliases if alias in by_lower), None)
        if match is not None:
            found[column] = match
    for column in _NEEDED:
        if column not in found:
            raise UsageError(
                f"metadata {path}: has no column for the {column}; one of {', '.join(_ALIASES[column])} is needed, "
                f"it has {', '.join(by_lower) or 'none'}"
            )
    return found


def _plate_number(text: str) -> str:
    """`Plate3`, `3` and `3.0` are one plate; other names stay what they are."""
    name = text.strip()
    number = name.removeprefix("Plate").removeprefix("plate").removesuffix(".0")
    return str(int(number)) if number.isdigit() and len(number) < 6 else name


def _normalised(row: Mapping[str, str | None], columns: Mapping[str, str]) -> dict[str, str]:
    """A row in the store's names: known columns, what follows from them, and the user's own as meta_*."""
    known = {name: (row[column] or "").strip() for name, column in columns.items() if name not in _DROPPED}
    taken = set(columns.values())
    own = {f"meta_{name.strip()}": text.strip() for name, text in row.items() if name and name not in taken and text}
    said = known.get("perturbation_type", "").lower()
    control = CONTROL_TREATMENT in (known.get("treatment"), known.get("gene")) or _TYPES.get(said) == "control"
    kind = "control" if control else _TYPES.get(said, said)
    perturbation = CONTROL_TREATMENT if control else ""
    if not control:
        by_gene = kind == "gene" and known.get("gene")
        perturbation = known["gene"] if by_gene else known.get("treatment", "") or known.get("gene", "")
    derived = {"perturbation_type": kind, "perturbation": perturbation, "is_control": "true" if control else "false"}
    return {name: text for name, text in {**known, **derived, **own}.items() if text != ""}
