"""The figures of every step, as Parquet: METRICS/ATTEMPT-STEP.parquet, STEP the last one in the file.

Rank 0 writes.  A file is whole or absent; of a step that two attempts computed, the later attempt's row counts.  What is
not written when killed are the steps since the last checkpoint or flush, all of which are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from phenomhpc.runs import TaskContext, committing


@dataclass(frozen=True, kw_only=True)
class StepRow:
    """One step.  None: not known (yet)."""

    step: int  # 0-based
    time: datetime  # UTC, at its end
    first_index: int  # of the samples of the step
    index_digest: str  # of the crops of the whole global batch
    loss: float
    loss_mse: float
    loss_fourier: float
    lr: float
    grad_norm: float
    crops_per_s: float  # all ranks together
    data_wait: float  # seconds rank 0 waited for its crops
    tflops: float | None = None
    mfu: float | None = None
    mem_bytes: int | None = None  # peak of rank 0: resident on a CPU, allocated on a GPU
    goodput: float | None = None
    skipped: bool = False


_TYPES = {
    "step": pa.int64(),
    "time": pa.timestamp("us", tz="UTC"),
    "first_index": pa.int64(),
    "index_digest": pa.string(),
    "mem_bytes": pa.int64(),
    "skipped": pa.bool_(),
}
SCHEMA = pa.schema([(field.name, _TYPES.get(field.name, pa.float64())) for field in fields(StepRow)])


class MetricsLog:
    """Collects rows and commits them now and then."""

    def __init__(self, ctx: TaskContext) -> None:
        self._ctx = ctx
        self._rows: list[StepRow] = []

    def add(self, rows: Sequence[StepRow]) -> None:
        self._rows.extend(rows)

    def flush(self) -> None:
        """Commit what was added since the last flush; nothing where nothing was.  Raises FencedError before writing."""
        if not self._rows:
            return
        self._ctx.check_fence()
        path = self._ctx.paths.metrics_file(self._ctx.attempt, self._rows[-1].step)
        table = pa.Table.from_pylist([asdict(row) for row in self._rows], schema=SCHEMA)
        with committing(path, token=self._ctx.token) as file:
            pq.write_table(table, file)
        self._rows.clear()


def read_metrics(folder: Path) -> pa.Table:
    """All steps of a run in order, one row per step: of a repeated step the latest attempt's."""
    rows: dict[int, dict[str, object]] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        for row in pq.read_table(path).to_pylist():
            rows[row["step"]] = row
    return pa.Table.from_pylist([rows[step] for step in sorted(rows)], schema=SCHEMA)
