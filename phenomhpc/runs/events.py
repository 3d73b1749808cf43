"""What happened in a run: one JSON line per event, one file per attempt and task, one writer each."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from phenomhpc.commit import make_folder, naming
from phenomhpc.runs.paths import RunPaths
from phenomhpc.runs.records import canonical_json, now

Event = dict[str, Any]


class EventWriter:
    """Appends events of one task of one attempt.  A line is one write: a kill leaves at most one torn last line."""

    def __init__(
        self,
        paths: RunPaths,
        attempt: int,
        task: int,
        token: str,
        job_id: str | None = None,
        check: Callable[[], None] | None = None,
    ) -> None:
        """check: called before every event; raises FencedError when the writer was replaced."""
        self._check = check
        self._path = paths.events_file(attempt, task)
        self._fixed = {"attempt": attempt, "task": task, "token": token, "host": socket.gethostname(), "job_id": job_id}
        self._seq = itertools.count()  # the thread that saves checkpoints emits too

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event; durable on return.  Raises FencedError, and writes nothing, when the writer was replaced."""
        if self._check is not None:
            self._check()
        make_folder(self._path.parent)
        line = canonical_json({"time": now(), "seq": next(self._seq), "event": event, **self._fixed, **fields}) + b"\n"
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            # A line torn by an earlier kill must not swallow this one.
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                line = b"\n" + line
            with naming(self._path):
                os.write(descriptor, line)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _event(line: bytes) -> Event | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # torn by a kill
    return event if isinstance(event, dict) and "event" in event else None


def _lines(path: Path) -> Iterator[Event]:
    for line in path.read_bytes().splitlines():
        event = _event(line)
        if event is not None:
            yield event


def read_task_events(paths: RunPaths, attempt: int, task: int) -> list[Event]:
    """The events of one task of one attempt, in the order they were written."""
    path = paths.events_file(attempt, task)
    return list(_lines(path)) if path.is_file() else []


def read_events(paths: RunPaths, *, attempt: int | None = None) -> list[Event]:
    """All events of a run (of one attempt, where given), oldest first; torn lines are left out."""
    return _in_order(event for path in _files(paths, attempt) for event in _lines(path))


def walk_events(paths: RunPaths) -> Iterator[Event]:
    """All events of a run, newest attempt first, file after file, for those who stop early."""
    return (event for path in reversed(_files(paths, None)) for event in _lines(path))


def _files(paths: RunPaths, attempt: int | None) -> list[Path]:
    if not paths.events.is_dir():
        return []
    return sorted(paths.events.glob("*.jsonl" if attempt is None else f"{attempt:03d}-*.jsonl"))


def _in_order(events: Iterable[Event]) -> list[Event]:
    return sorted(events, key=lambda event: (event["time"], event["attempt"], event["task"], event["seq"]))


# -- many units -------------------------------------------------------------------------------------------------------

# A run of a hundred thousand units has as many `unit` events, and a dozen of each other kind per task.  Their lines are told
# apart, and the few fields that anybody wants are taken from them, without reading them as JSON.
_UNIT_MARK = b'"event":"unit"'
_UNIT = re.compile(
    rb'\{"attempt":\d+,(?:"bytes":(\d+),)?(?:"cost_s":[^,]+,)?(?:"count":(\d+),)?"event":"unit",.*?'
    rb'(?:"seconds":([^,]+),)?"seq":(\d+),"set_aside":\d+,'
    rb'"task":\d+,"time":"([^"]+)","token":"[^"\\]*","unit_id":"([^"\\]*)"\}'
)
UNITS = "units"
# How far within a unit a task has come.
PROGRESS = "progress"


def read_log(paths: RunPaths, *, attempt: int | None = None) -> list[Event]:
    """As read_events, but the `unit` events between two others of a task are told together, as one event `units`.

    It stands at the time of the last of them, and has of each its unit_ids, times and, as far as they were told, seconds,
    counts and bytes (else None).
    """
    return _in_order(event for path in _files(paths, attempt) for event in _gathered(path))


def read_events_but_units(
    paths: RunPaths, *, attempt: int | None = None, tasks: Iterable[int] | None = None
) -> list[Event]:
    """As read_events without the `unit` events, which are not even read as JSON; tasks: only of these, of `attempt`."""
    if attempt is None or tasks is None:
        files = _files(paths, attempt)
    else:
        files = [path for task in tasks if (path := paths.events_file(attempt, task)).is_file()]
    found = []
    for path in files:
        lines = (line for line in path.read_bytes().splitlines() if _UNIT_MARK not in line)
        found += [event for event in map(_event, lines) if event is not None]
    return _in_order(found)


def unit_ids(events: Iterable[Event]) -> set[str]:
    """The units that events (of read_events or read_log) tell as committed."""
    found: set[str] = set()
    for event in events:
        if event["event"] == "unit":
            found.add(str(event["unit_id"]))
        elif event["event"] == UNITS:
            found.update(event["unit_ids"])
    return found


def _gathered(path: Path) -> Iterator[Event]:
    attempt, _, task = path.stem.partition("-")
    units: list[tuple[int, str, str, float | None, int | None, int | None]] = []

    def told() -> Iterator[Event]:
        if not units:
            return
        yield {
            "event": UNITS, "attempt": int(attempt), "task": int(task), "seq": units[-1][0], "time": units[-1][1],
            "times": [unit[1] for unit in units], "unit_ids": [unit[2] for unit in units],
            "seconds": [unit[3] for unit in units], "counts": [unit[4] for unit in units], "bytes": [unit[5] for unit in units],
        }  # fmt: skip
        units.clear()

    for line in path.read_bytes().splitlines():
        match = _UNIT.fullmatch(line) if _UNIT_MARK in line else None
        if match is not None:
            num_bytes, count, seconds, seq, time, unit = match.groups()
            told_of = (
                float(seconds) if seconds else None,
                int(count) if count else None,
                int(num_bytes) if num_bytes else None,
            )
            units.append((int(seq), time.decode(), unit.decode(), *told_of))
            continue
        event = _event(line)
        if event is None:
            continue
        if event["event"] == "unit":  # with a name that JSON spells otherwise
            more = (event.get("seconds"), event.get("count"), event.get("bytes"))
            units.append((event["seq"], event["time"], str(event["unit_id"]), *more))
            continue
        yield from told()
        yield event
    yield from told()
