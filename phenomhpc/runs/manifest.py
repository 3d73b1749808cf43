"""Units of work, and the manifest of an attempt: which task does which unit.  Immutable once written."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from phenomhpc.commit import commit


@dataclass(frozen=True, kw_only=True)
class Unit:
    """The smallest piece of work that is done or not done.

    `first` and `count` are a range of whatever the job counts (fields of a shard, wells of a plate); cost in seconds.
    """

    unit_id: str
    kind: str
    plate: str | None = None
    first: int = 0
    count: int = 1
    cost_s: float = 0.0
    digest: str = ""
    task: int = 0
    chunk: int = 0
    array_index: int = 0


def _schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        [
            ("unit_id", pa.string()),
            ("kind", pa.string()),
            ("plate", pa.string()),
            ("first", pa.uint64()),
            ("count", pa.uint32()),
            ("cost_s", pa.float32()),
            ("digest", pa.string()),
            ("task", pa.uint32()),
            ("chunk", pa.uint16()),
            ("array_index", pa.uint32()),
        ]
    )


def write_manifest(path: Path, units: Iterable[Unit], *, token: str = "") -> None:
    """Commit the manifest of an attempt (Parquet, one row per unit)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist([asdict(unit) for unit in units], schema=_schema())
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    commit(path, buffer.getvalue(), token=token)


def read_manifest(path: Path, *, task: int | None = None) -> list[Unit]:
    """The units of an attempt, in the order they were planned; of one task where `task` is given."""
    import pyarrow.parquet as pq

    filters = None if task is None else [("task", "=", task)]
    return [Unit(**row) for row in pq.read_table(path, filters=filters).to_pylist()]
