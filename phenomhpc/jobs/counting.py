"""How far a run is, and how fast: counted from its run directory alone.

Units are what is done or not done; of a conversion and of embedding a person wants to know their fields and crops, which is
what the progress bar of a run here counts, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from phenomhpc.config import AnyConfig, PipelineConfig, RunConfig
from phenomhpc.jobs.attempts import is_gang, stage_paths
from phenomhpc.jobs.base import COUNTED
from phenomhpc.runs import (
    PROGRESS,
    UNITS,
    Event,
    RunPaths,
    count_units,
    first_kind,
    read_manifest,
    read_outcome,
    unit_ids,
)

MEGABYTE = 1e6
_UNIT_EVENTS = frozenset({"unit", UNITS})
# Behind these, what was told of a unit in progress is done, or lost.
_SETTLED = _UNIT_EVENTS | {"started", "preempted", "failed", "finished", "ended"}


@dataclass(frozen=True, kw_only=True)
class Count:
    """How much is done, over all attempts; `loss`, `mfu` and `goodput` of the newest step that was written down and has
    them, of a training run.

    parts: what the units consist of (fields, crops), and how many of them are done; "" where that is not told.
    """

    done: int = 0
    total: int | None = None
    noun: str = "units"
    loss: float | None = None
    mfu: float | None = None
    goodput: float | None = None
    parts: str = ""
    parts_done: int = 0
    parts_total: int = 0


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Units (or steps), their parts and raw megabytes (10^6 bytes) per second; seconds left at that rate.  None: not known."""

    per_s: float | None = None
    parts_per_s: float | None = None
    raw_mb_per_s: float | None = None
    left_s: float | None = None


def count_done(paths: RunPaths, config: AnyConfig, events: Sequence[Event]) -> Count:
    """From the run directory alone."""
    if isinstance(config, PipelineConfig):
        runs = [stage_paths(paths, config, stage) for stage in config.stages]
        ended = [read_outcome(run) for run in runs if run.root.is_dir()]
        done = sum(outcome is not None and outcome["state"] == "finished" for outcome in ended)
        return Count(done=done, total=len(runs), noun="stages")
    if isinstance(config, RunConfig):
        done = any(event["event"] == "finished" for event in events)
        return Count(done=int(done), total=1, noun="commands")
    if is_gang(config):
        return replace(_newest_step(paths), total=config.optim.steps, noun="steps")  # type: ignore[union-attr]
    return _count_units(paths, events)


def _count_units(paths: RunPaths, events: Sequence[Event]) -> Count:
    """Units that were committed, or whose task has finished (it found some done already), of those that were ever planned."""
    newest = paths.last_attempt()
    manifest = paths.attempt(newest).manifest
    if not manifest.is_file():
        done = unit_ids(events)
        return Count(done=len(done), total=len(done) or None)
    own = [event for event in events if event["attempt"] == newest]
    finished: dict[int, int | None] = {
        event["task"]: event.get("units_done") for event in own if event["event"] == "finished"
    }
    now = _told(event for event in own if event["task"] not in finished)
    before = _first_of_stage(paths, newest)
    earlier = _told(event for event in events if before <= event["attempt"] < newest)
    if not earlier and None not in finished.values():  # how many there are is known without the names of all
        planned = [event["num_units"] for event in own if event["event"] == "submitted" and "num_units" in event]
        total = planned[-1] if planned else count_units(manifest)
        count = Count(done=sum(num or 0 for num in finished.values()) + len(now), total=total or None)
        return _with_parts(count, manifest, set(finished), sum(now.values()) + _begun(own, "count"))
    table = read_manifest(manifest, columns=("unit_id", "task")).table
    names, tasks = table["unit_id"].to_pylist(), table["task"].to_pylist()
    done = earlier.keys() | now.keys() | {name for name, task in zip(names, tasks, strict=True) if task in finished}
    count = Count(done=len(done), total=len(done.union(names)) or None)
    planned_anew = set(names)
    past = sum(num for name, num in earlier.items() if name not in planned_anew)
    again = [
        (name, earlier[name])
        for name, task in zip(names, tasks, strict=True)
        if task not in finished and name in earlier
    ]
    current = {**dict(again), **now}
    return _with_parts(count, manifest, set(finished), sum(current.values()) + _begun(own, "count") + past, past)


def _with_parts(count: Count, manifest: Path, finished: set[int], told: int, past: int = 0) -> Count:
    """The count with that of what the units consist of.  told: parts of units whose tasks have not finished, or are of earlier
    attempts; past: those of them that the manifest does not name any more."""
    import numpy as np

    parts = COUNTED.get(first_kind(manifest) or "", "")
    if not parts:
        return count
    units = read_manifest(manifest, columns=("count", "task"))
    counts = units.numpy("count")
    done = counts[np.isin(units.numpy("task"), list(finished))].sum() if finished else 0
    return replace(count, parts=parts, parts_done=int(done) + told, parts_total=int(counts.sum()) + past)


def _told(events: Iterable[Event]) -> dict[str, int]:
    """How many fields or crops each unit has that events (of read_events or read_log) tell as committed; a unit that was done
    twice counts once."""
    found: dict[str, int] = {}
    for event in events:
        if event["event"] in _UNIT_EVENTS:
            names = event["unit_ids"] if event["event"] == UNITS else [str(event["unit_id"])]
            found.update({name: num or 1 for name, num in zip(names, _each(event, "count", "counts"), strict=True)})
    return found


def _first_of_stage(paths: RunPaths, newest: int) -> int:
    """The first attempt of the stage that the newest one belongs to: units of other stages are another kind."""
    kind = first_kind(paths.attempt(newest).manifest)
    first = newest
    while first > 1:
        manifest = paths.attempt(first - 1).manifest
        if manifest.is_file() and first_kind(manifest) not in (kind, None):
            break
        first -= 1
    return first


def _newest_step(paths: RunPaths) -> Count:
    """What the newest metrics file says of its last step; they are written at checkpoints and every few logged steps."""
    import pyarrow.parquet as pq

    files = paths.metrics.glob("*.parquet") if paths.metrics.is_dir() else ()
    newest = max(files, key=lambda path: path.stem.split("-")[::-1], default=None)
    if newest is None:
        return Count()
    table = pq.read_table(newest, columns=["step", "loss", "mfu", "goodput"])
    last = {name: table[name][-1].as_py() for name in table.column_names}
    # A step that was left out has none.
    known = [loss for loss in table["loss"].to_pylist() if math.isfinite(loss)]
    return Count(done=last.pop("step") + 1, **{**last, "loss": known[-1] if known else None})


def rate_of(events: Sequence[Event], count: Count) -> Rate:
    """Of the newest attempt: units from its first start to the newest of them, or steps between its checkpoints."""
    newest = max((event["attempt"] for event in events if event["event"] == "started"), default=0)
    recent = [event for event in events if event["attempt"] == newest]
    saved = [event for event in recent if event["event"] == "checkpoint"]
    left = count.total - count.done if count.total is not None else None
    if len(saved) > 1:
        per_s = (saved[-1]["step"] - saved[0]["step"]) / _seconds(saved[0], saved[-1])
        return Rate(per_s=per_s, left_s=left / per_s if left is not None and per_s > 0 else None)
    units = [event for event in recent if event["event"] in _UNIT_EVENTS]
    signs = [event for event in recent if event["event"] in _UNIT_EVENTS | {PROGRESS}]
    if not signs:
        return Rate()
    seconds = _seconds(next(event for event in recent if event["event"] == "started"), signs[-1])
    per_s = len(unit_ids(units)) / seconds or None
    read = sum(num or 0 for event in units for num in _each(event, "bytes", "bytes")) + _begun(recent, "bytes")
    raw_mb_per_s = read / MEGABYTE / seconds if read else None
    if not count.parts:
        return Rate(per_s=per_s, raw_mb_per_s=raw_mb_per_s, left_s=left / per_s if left is not None and per_s else None)
    parts_per_s = (sum(_told(units).values()) + _begun(recent, "count")) / seconds or None
    left_s = (count.parts_total - count.parts_done) / parts_per_s if parts_per_s else None
    return Rate(per_s=per_s, parts_per_s=parts_per_s, raw_mb_per_s=raw_mb_per_s, left_s=left_s)


def _begun(events: Iterable[Event], name: str) -> int:
    """What of the units that are being done is done already: `count` or `bytes`.  Of a start that ended nothing is left."""
    found: dict[int, int] = {}
    for event in events:
        if event["event"] == PROGRESS:
            found[event["task"]] = int(event[name])
        elif event["event"] in _SETTLED:
            found.pop(event["task"], None)
    return sum(found.values())


def _seconds(began: Event, ended: Event) -> float:
    return max((datetime.fromisoformat(ended["time"]) - datetime.fromisoformat(began["time"])).total_seconds(), 1e-3)


def _each(event: Event, name: str, names: str) -> Sequence[int | None]:
    """A field of every unit that an event, of one or of several together, tells of."""
    return event[names] if event["event"] == UNITS else [event.get(name)]
