"""A folder of annotations: what is known of genes, as files.

*.txt, *.csv             known relationships: two columns, comma or tab between them; a first line `entity1,entity2` is a header
gene_chromosome_map.tsv  optional: gene symbol, locus ("19q13.43"); another table of arms, or of positions: arms=FILE (arms.py)
unexpressed.txt          optional: genes that are not expressed, one a line
complexes.tsv            optional: complex, gene: one line per member
targets.tsv              optional: compound, gene: one line per known target
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.jobs.evaluation.arms import read_arms
from phenomhpc.maps import unique_pairs
from phenomhpc.maps.relate import Pair

ARMS_NAME = "gene_chromosome_map.tsv"
UNEXPRESSED_NAME = "unexpressed.txt"
COMPLEXES_NAME, COMPLEXES = "complexes.tsv", ("complex", "gene")
TARGETS_NAME, TARGETS = "targets.tsv", ("compound", "gene")
_HEADER = ["entity1", "entity2"]
_SUFFIXES = (".txt", ".csv")


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """What a folder says.

    relationships: undirected unique pairs by file stem, at least one file; arms: gene -> "19q"
    complexes: genes by complex; targets: (compound, gene)
    set_aside: (file, reason) of *.txt and *.csv that hold no relationships; files: all that were read
    """

    relationships: dict[str, list[Pair]]
    arms: dict[str, str]
    unexpressed: frozenset[str]
    complexes: dict[str, frozenset[str]]
    targets: list[Pair]
    set_aside: tuple[tuple[str, str], ...]
    files: tuple[Path, ...]


def read_annotations(
    folder: Path, unexpressed: Path | None = None, arms: Path | None = None, centromeres: Path | None = None
) -> Annotations:
    """Everything in `folder`; `unexpressed` names another file for those genes, `arms` one for the chromosome arms (arms.py).

    Raises UsageError for a folder that is missing or without relationships, and for a line that is no pair.
    """
    if not folder.is_dir():
        raise UsageError(
            f"annotations={folder}: no such folder; name one with two-column relationship files (*.txt, *.csv)"
        )
    silent = unexpressed or folder / UNEXPRESSED_NAME
    if unexpressed is not None and not unexpressed.is_file():
        raise UsageError(f"unexpressed={unexpressed}: no such file; it holds one gene a line")
    if centromeres is not None and arms is None:
        raise UsageError(f"centromeres={centromeres}: has no use without arms=FILE of positions; leave it out")
    named = folder / ARMS_NAME if arms is None and (folder / ARMS_NAME).is_file() else arms
    of_arms, arm_files = ({}, ()) if named is None else read_arms(named, centromeres)
    relationships: dict[str, list[Pair]] = {}
    set_aside = []
    others = (silent, folder / COMPLEXES_NAME, folder / TARGETS_NAME)
    files = [path for path in (*arm_files, *others) if path.is_file()]
    no_pairs = {path.resolve() for path in (silent, *arm_files)}
    for path in sorted(folder.iterdir()):
        if path.suffix not in _SUFFIXES or path.name == UNEXPRESSED_NAME or path.resolve() in no_pairs:
            continue
        pairs = _read_pairs(path)
        if pairs is None:
            set_aside.append((path.name, "no file of two columns"))
            continue
        if path.stem in relationships:
            raise UsageError(f"annotations={folder}: two files called {path.stem}; rename one")
        relationships[path.stem] = pairs
        files.append(path)
    if not relationships:
        raise UsageError(f"annotations={folder}: no file of two columns (*.txt, *.csv: entity1,entity2) in it")
    return Annotations(
        relationships=relationships,
        arms=of_arms,
        unexpressed=frozenset(_read_text(silent).split()) if silent.is_file() else frozenset(),
        complexes=_members(_read_columns(folder / COMPLEXES_NAME, COMPLEXES)),
        targets=_read_columns(folder / TARGETS_NAME, TARGETS),
        set_aside=tuple(set_aside),
        files=tuple(files),
    )


def _read_pairs(path: Path) -> list[Pair] | None:
    """Unique pairs of a file; None where its first line has not two columns."""
    text = _read_text(path)
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    if not rows or len(rows[0]) != 2:
        return None
    first = 1 if [cell.lower() for cell in rows[0]] == _HEADER else 0
    for number, row in enumerate(rows[first:], start=first + 1):
        if len(row) != 2 or not all(row):
            raise UsageError(
                f"annotations {path}: row {number} is {','.join(row)!r}, no pair of names; mend or remove it"
            )
    return unique_pairs(rows[first:])


def _read_columns(path: Path, columns: tuple[str, str]) -> list[Pair]:
    """Two named columns of a tab-separated file; nothing where there is no file."""
    if not path.is_file():
        return []
    table = csv.DictReader(io.StringIO(_read_text(path)), delimiter="\t")
    for column in columns:
        if column not in (table.fieldnames or ()):
            raise UsageError(
                f"annotations {path}: no column {column}; it needs {columns[0]} and {columns[1]}, tab-separated"
            )
    return [(row[columns[0]] or "", row[columns[1]] or "") for row in table]


def _members(rows: list[Pair]) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for name, gene in rows:
        found.setdefault(name, set()).add(gene)
    return {name: frozenset(genes) for name, genes in found.items()}


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"annotations {path}: not readable as text ({error})") from error
