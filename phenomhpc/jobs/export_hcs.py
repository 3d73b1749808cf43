"""`store export-hcs`: the plates of a store as OME-Zarr plates, here, by worker processes, plate by plate."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

from phenomhpc.errors import UsageError, WorkError
from phenomhpc.parent import die_with_parent
from phenomhpc.plates.types import Well
from phenomhpc.progress import Progress, Stage
from phenomhpc.runs import make_folder, new_token
from phenomhpc.store import ShardReader, Snapshot, Store, open_store
from phenomhpc.store.hcs import HcsPaths, Row
from phenomhpc.store.hcs_export import (
    PlateExport,
    begin_plate,
    export_well,
    find_windows,
    finish_plate,
    pending_wells,
    plan_plate,
    refuse_plates,
)

MEGABYTE = 1e6


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export has done.

    fields, plates: in the folder now.  written: fields of this run.  left_out: (thing, reason) of fields that the store has set
    aside.  split: sites whose planes are images of their own, since not all that were declared of them are usable.  empty:
    plates without a usable field.
    """

    fields: int
    plates: tuple[str, ...]
    written: int
    left_out: tuple[tuple[str, str], ...]
    split: tuple[str, ...]
    empty: tuple[str, ...]


def export_hcs(
    store: Store,
    to: Path,
    progress: Progress,
    *,
    plates: Sequence[str] = (),
    levels: int | None = None,
    workers: int | None = None,
) -> Exported:
    """Write plates (default: all) of the newest snapshot below `to`; killed at any moment, a second call goes on.

    levels: of the pyramids; None for as many as bring a field down to one chunk.  workers: processes, by default one per
    core.  Raises UsageError for what cannot be exported, WorkError in one line when a field is damaged or `to` cannot be
    written.
    """
    snapshot = Snapshot.open(store)
    out = HcsPaths(to.absolute())
    wanted = list(dict.fromkeys(plates)) or list(snapshot.plates)
    refuse_plates(snapshot, out, wanted, levels)
    workers = workers or len(os.sched_getaffinity(0))
    try:
        with _locked(out), ShardReader(store, snapshot) as reader:
            left = {plate: _fields_left(snapshot, out, plan_plate(snapshot, out, plate, levels)) for plate in wanted}
            with progress.stage("export", sum(left.values()), "fields") as stage:
                done = [
                    _export_plate(snapshot, reader, out, plan_plate(snapshot, out, plate, levels), workers, stage)
                    for plate in wanted
                ]
    except OSError as error:
        hint = "; make room and run again to go on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        what = error.strerror or str(error)
        raise WorkError(f"--to {to}: cannot be written ({what}); what was committed stays{hint}") from error
    return Exported(
        fields=sum(_num_fields(export.wells) for export in done),
        plates=tuple(export.plate for export in done if export.wells),
        written=sum(left.values()),
        left_out=tuple(
            (f"{export.plate} {row['well']} site {row['site']}", row["reason"])
            for export in done
            for row in export.left_out
        ),
        split=tuple(f"{export.plate} {well.name} site {site}" for export in done for well, site in export.split_sites),
        empty=tuple(export.plate for export in done if not export.wells),
    )


@contextlib.contextmanager
def _locked(out: HcsPaths) -> Iterator[None]:
    """Hold the folder; the lock dies with its holder."""
    make_folder(out.progress)
    with out.lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"--to {out.root}: another export is writing there; wait for it") from None
        yield


def _num_fields(wells: Mapping[Well, Sequence[Row]]) -> int:
    return sum(row["field_no"] is not None for rows in wells.values() for row in rows)


def _fields_left(snapshot: Snapshot, out: HcsPaths, export: PlateExport) -> int:
    pending = set(pending_wells(snapshot, out, export))
    return _num_fields({well: rows for well, rows in export.wells.items() if well in pending})


def _export_plate(
    snapshot: Snapshot, reader: ShardReader, out: HcsPaths, export: PlateExport, workers: int, stage: Stage
) -> PlateExport:
    """Write what is missing of a plate.  A plate without usable fields is taken out."""
    if not export.wells:
        finish_plate(out, export)
        return export
    export = find_windows(snapshot, reader, out, export)
    pending = pending_wells(snapshot, out, export)
    if pending:
        begin_plate(out, export)
        token, meter = new_token(), _Meter(stage)
        parts = [(well, replace(export, wells={well: export.wells[well]}, left_out=())) for well in pending]
        if min(workers, len(parts)) == 1:
            for well, part in parts:
                export_well(snapshot, reader, out, part, well, token, lambda num_bytes: meter.advance(1, num_bytes))
        else:
            _in_processes(snapshot, out, parts, token, min(workers, len(parts)), meter)
    finish_plate(out, export)
    return export


class _Meter:
    """Advances a stage by fields, and shows the raw bytes per second."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._began, self._bytes = stage, time.monotonic(), 0

    def advance(self, fields: int, num_bytes: int) -> None:
        self._bytes += num_bytes
        seconds = max(time.monotonic() - self._began, 1e-9)
        self._stage.advance(fields, raw_MB_per_s=self._bytes / MEGABYTE / seconds)


_worker: tuple[Snapshot, ShardReader] | None = None


def _begin_worker(root: str, digest: str) -> None:
    global _worker
    die_with_parent()
    store = open_store(root)
    snapshot = Snapshot.open(store, digest)
    _worker = snapshot, ShardReader(store, snapshot)


def _work(out: HcsPaths, part: PlateExport, well: Well, token: str) -> tuple[int, int]:
    """Fields and raw bytes of a well that was written."""
    assert _worker is not None
    sizes: list[int] = []
    export_well(*_worker, out, part, well, token, sizes.append)
    return len(sizes), sum(sizes)


def _in_processes(
    snapshot: Snapshot,
    out: HcsPaths,
    parts: Sequence[tuple[Well, PlateExport]],
    token: str,
    workers: int,
    meter: _Meter,
) -> None:
    context = multiprocessing.get_context("spawn")
    root = str(snapshot.store.paths.root)
    with ProcessPoolExecutor(workers, context, _begin_worker, (root, snapshot.digest)) as pool:
        futures = [pool.submit(_work, out, part, well, token) for well, part in parts]
        try:
            for future in as_completed(futures):
                meter.advance(*future.result())
        except BrokenProcessPool as error:
            raise WorkError(
                f"--to {out.root}: a worker process was killed (out of memory?); run again to go on"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
