"""Which chromosome arm each gene is on, from a table: by its locus, by the arm itself, or by its position and the centromeres.

    Approved_symbol  Locus        A1BG  19q13.43          HGNC's names
    gene  arm                     A1BG  19q
    gene  chromosome  end         A1BG  19    58353492    base pairs; with a table of centromeres: chromosome, start, end

Tab or comma between columns; others may stand beside these, and rows where one of these is empty tell nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from phenomhpc.errors import UsageError
from phenomhpc.maps import arms_by_position, arms_of

LOCI, ARMS, POSITIONS = ("Approved_symbol", "Locus"), ("gene", "arm"), ("gene", "chromosome", "end")
CENTROMERES = ("chromosome", "start", "end")
CENTROMERES_NAME = "centromeres.tsv"


def read_arms(path: Path, centromeres: Path | None = None) -> tuple[dict[str, str], tuple[Path, ...]]:
    """Arm ("19q") by gene, and the files that were read.  centromeres: default centromeres.tsv beside `path`, of positions.

    Raises UsageError naming the file, the row or the column, and where no gene has an arm.
    """
    columns, rows = _read(path, (LOCI, ARMS, POSITIONS))
    files: tuple[Path, ...] = (path,)
    if columns == POSITIONS:
        beside = centromeres or path.with_name(CENTROMERES_NAME)
        files = (path, beside)
        ends = [(gene, chromosome, _number(end, path)) for gene, chromosome, end in rows]
        rows = list(arms_by_position(ends, read_centromeres(beside)).items())
    elif centromeres is not None:
        raise UsageError(
            f"centromeres={centromeres}: has no use, since {path} has no positions ({', '.join(POSITIONS)}); leave it out"
        )
    arms = arms_of((gene, place) for gene, place in rows)
    if not arms:
        raise UsageError(f"arms={path}: none of its genes is on an arm such as 19q; look at its column {columns[-1]}")
    return arms, files


def read_centromeres(path: Path) -> Mapping[str, tuple[int, int]]:
    """(start, end) by chromosome, base pairs; several bands of one chromosome count from the first to the last."""
    _, rows = _read(path, (CENTROMERES,))
    found: dict[str, tuple[int, int]] = {}
    for name, start, end in rows:
        first, last = _number(start, path), _number(end, path)
        before = found.get(name, (first, last))
        found[name] = (min(before[0], first), max(before[1], last))
    return found


def _read(path: Path, kinds: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The first of these sets of columns that the file has, and its rows where all of them have a value."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise UsageError(f"{path}: not readable as text ({error}); give a table with {_words(kinds)}") from error
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    table = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    there = list(table.fieldnames or ())
    columns = next((kind for kind in kinds if set(kind) <= set(there)), None)
    if columns is None:
        raise UsageError(f"{path}: has the columns {', '.join(there[:8]) or 'none'}; it needs {_words(kinds)}")
    rows = [tuple((row[name] or "").strip() for name in columns) for row in table]
    return columns, [row for row in rows if all(row)]


def _words(kinds: Sequence[tuple[str, ...]]) -> str:
    return ", or ".join(" and ".join(kind) for kind in kinds)


def _number(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"{path}: {text!r} is no position in base pairs; mend or remove its row") from error
