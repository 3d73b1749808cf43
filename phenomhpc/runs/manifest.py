"""The manifest of an attempt: which task does which unit.  Immutable once written.

Parquet, rows in the order of their tasks, in row groups that know their least and largest task: a task opens the index and
reads the one group or two that hold its units, however many there are.  Every page carries a checksum, which is verified.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from phenomhpc.commit import committing
from phenomhpc.errors import WorkError
from phenomhpc.runs.units import Unit, Units, unit_schema

# Small enough to be read in milliseconds, large enough that the index of ten million units stays below a megabyte.
ROWS_PER_GROUP = 32_768


def write_manifest(path: Path, units: Sequence[Unit], *, token: str = "") -> None:
    """Commit the manifest of an attempt, one row per unit, ordered by task; the order within a task is kept."""
    import pyarrow.parquet as pq

    table = _by_task(Units.of(units).table)
    with (
        committing(path, token=token) as file,
        pq.ParquetWriter(
            file,
            _plain_schema(),
            compression="zstd",
            # Names differ from unit to unit; the other columns repeat.
            use_dictionary=["kind", "plate", "digest", "count", "cost_s", "task"],
            write_statistics=["task"],
            write_page_checksum=True,
        ) as writer,
    ):
        for start in range(0, table.num_rows, ROWS_PER_GROUP):
            writer.write_table(table.slice(start, ROWS_PER_GROUP).cast(_plain_schema()), row_group_size=ROWS_PER_GROUP)


def _plain_schema() -> Any:
    """In the file each group has its own dictionaries: in memory there is one of all units, too large to be repeated."""
    import pyarrow as pa

    plain = [(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type) for field in unit_schema()]
    return pa.schema(plain)


def _by_task(table: Any) -> Any:
    """Ordered by task; what is in order already is not copied."""
    import numpy as np

    tasks = table["task"].to_numpy()
    if len(tasks) < 2 or bool((tasks[1:] >= tasks[:-1]).all()):
        return table
    return table.take(np.argsort(tasks, kind="stable"))


def read_manifest(path: Path, *, task: int | None = None, columns: Sequence[str] | None = None) -> Units:
    """The units of an attempt by task, in the order they were planned; of one task where `task` is given.

    columns: only these are read (`task` among them where one is asked for); the units are then no whole ones.

    Raises WorkError when the file is damaged, FileNotFoundError when there is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True, read_dictionary=["kind", "plate", "digest"]) as file:
            every = range(file.metadata.num_row_groups)
            groups = every if task is None else [group for group in every if _may_hold(file.metadata, group, task)]
            names = unit_schema().names if columns is None else list(columns)
            wanted = pa.schema([unit_schema().field(name) for name in names])
            units = Units(file.read_row_groups(groups, columns=names).cast(wanted))
    except (OSError, pa.ArrowInvalid) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise WorkError(f"manifest {path}: cannot be read ({error}); phenomhpc retry plans the run anew") from error
    return units if task is None else units.of_task(task)


def first_kind(path: Path) -> str | None:
    """The kind of the units of a manifest; None where it has none.  Raises as read_manifest does."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1, columns=["kind"]):
            return str(batch.column(0)[0].as_py())
    return None


def count_units(path: Path) -> int:
    """How many units a manifest has, from its index alone.  Raises FileNotFoundError when there is none."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _may_hold(metadata: Any, group: int, task: int) -> bool:
    statistics = metadata.row_group(group).column(unit_schema().get_field_index("task")).statistics
    return statistics is None or not statistics.has_min_max or statistics.min <= task <= statistics.max
