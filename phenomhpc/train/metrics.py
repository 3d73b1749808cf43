"""The figures of every step, as Parquet: METRICS/ATTEMPT-STEP.parquet, STEP the last one in the file.

Rank 0 writes.  A file is whole or absent; of a step that two attempts computed, the later attempt's row counts.  What is
not written when killed are the steps since the last checkpoint or flush, all of which are computed again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pyarrow.parquet as pq

from phenomhpc.commit import is_full
from phenomhpc.runs import TaskContext, committing
from phenomhpc.store.shardfiles import Traffic


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
    # What reading the step's crops asked, all ranks together, over the step's seconds; read ahead or not.
    data_mb_s: float | None = None  # MB/s of pixels in crops
    read_mb_s: float | None = None  # MB/s asked of the store's file system, as they are compressed
    read_amplification: float | None = None  # bytes so asked over the pixels' bytes of the crops they were asked for
    cache_hit_share: float | None = None  # of the crops, those that came from a node's cache
    reads_s: float | None = None  # requests per second to the store's file system
    opens_s: float | None = None  # files of the store opened per second
    tflops: float | None = None  # of one rank's device
    mfu: float | None = None  # of its published peak
    mem_bytes: int | None = None  # peak of rank 0: resident on a CPU, allocated on a GPU
    goodput: float | None = None  # since the run's first start
    straggler_share: float | None = None  # of the step, that the slowest rank's own time exceeds the usual one's
    slowest_rank: int | None = None
    skipped: bool = False  # the gradient was not finite, and nothing was changed


# Columns that are no figures to be drawn.
NO_FIGURES = ("step", "time", "index_digest", "skipped", "first_index")
_TYPES = {
    "step": pa.int64(),
    "time": pa.timestamp("us", tz="UTC"),
    "first_index": pa.int64(),
    "index_digest": pa.string(),
    "mem_bytes": pa.int64(),
    "slowest_rank": pa.int64(),
    "skipped": pa.bool_(),
}
MEGABYTE = 1e6
SCHEMA = pa.schema([(field.name, _TYPES.get(field.name, pa.float64())) for field in fields(StepRow)])


class DataRates(TypedDict):
    """Columns of a StepRow."""

    data_mb_s: float
    read_mb_s: float | None
    read_amplification: float | None
    cache_hit_share: float | None
    reads_s: float | None
    opens_s: float | None


def rates_of(traffic: Traffic, crop_bytes: int, seconds: float) -> DataRates:
    """The columns of a StepRow that tell what `traffic` of all ranks in so many seconds means.

    crop_bytes: of one crop's pixels.  A share of nothing is None, and so is what a reader does not tell (tensorstore).
    """
    from_store = traffic.crops - traffic.from_cache
    told = bool(traffic.reads) or not from_store
    return {
        "data_mb_s": traffic.crops * crop_bytes / seconds / MEGABYTE,
        "read_mb_s": traffic.bytes / seconds / MEGABYTE if told else None,
        "read_amplification": traffic.bytes / (from_store * crop_bytes) if told and from_store else None,
        "cache_hit_share": traffic.from_cache / traffic.crops if traffic.crops else None,
        "reads_s": traffic.reads / seconds if told else None,
        "opens_s": traffic.opens / seconds if told else None,
    }


class MetricsLog:
    """Collects rows and commits them now and then."""

    def __init__(self, ctx: TaskContext) -> None:
        self._ctx = ctx
        self._rows: list[StepRow] = []

    def add(self, rows: Sequence[StepRow]) -> None:
        self._rows.extend(rows)

    def flush(self) -> None:
        """Commit what was added since the last flush; nothing where nothing was.  Raises FencedError before writing.

        A disk without room does not end the run: the rows are kept for the next flush.
        """
        if not self._rows:
            return
        self._ctx.check_fence()
        path = self._ctx.paths.metrics_file(self._ctx.attempt, self._rows[-1].step)
        table = pa.Table.from_pylist([asdict(row) for row in self._rows], schema=SCHEMA)
        try:
            with committing(path, token=self._ctx.token) as file:
                pq.write_table(table, file)
        except OSError as error:
            if not is_full(error):
                raise
            return
        self._rows.clear()


def read_metrics(folder: Path) -> pa.Table:
    """All steps of a run in order, one row per step: of a repeated step the latest attempt's, and of those the latest.

    What a file of an older version does not have is null.
    """
    rows: dict[int, dict[str, Any]] = {}
    attempts: dict[int, str] = {}
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else []:
        attempt = path.name.split("-")[0]
        for row in pq.read_table(path).to_pylist():
            step = row["step"]
            if attempts.get(step) != attempt or row["time"] >= rows[step]["time"]:
                rows[step], attempts[step] = row, attempt
    return pa.Table.from_pylist([rows[step] for step in sorted(rows)], schema=SCHEMA)
