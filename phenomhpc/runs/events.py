"""What happened in a run: one JSON line per event, one file per attempt and task, one writer each."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from phenomhpc.commit import make_folder
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
        self._seq = 0

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event; durable on return.  Raises FencedError, and writes nothing, when the writer was replaced."""
        if self._check is not None:
            self._check()
        make_folder(self._path.parent)
        line = canonical_json({"time": now(), "seq": self._seq, "event": event, **self._fixed, **fields}) + b"\n"
        self._seq += 1
        descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o640)
        try:
            # A line torn by an earlier kill must not swallow this one.
            end = os.fstat(descriptor).st_size
            if end and os.pread(descriptor, 1, end - 1) != b"\n":
                line = b"\n" + line
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lines(path: Path) -> Iterator[Event]:
    for line in path.read_bytes().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # torn by a kill
        if isinstance(event, dict) and "event" in event:
            yield event


def read_task_events(paths: RunPaths, attempt: int, task: int) -> list[Event]:
    """The events of one task of one attempt, in the order they were written."""
    path = paths.events_file(attempt, task)
    return list(_lines(path)) if path.is_file() else []


def read_events(paths: RunPaths, *, attempt: int | None = None) -> list[Event]:
    """All events of a run (of one attempt, where given), oldest first; torn lines are left out."""
    if not paths.events.is_dir():
        return []
    pattern = "*.jsonl" if attempt is None else f"{attempt:03d}-*.jsonl"
    events = [event for path in sorted(paths.events.glob(pattern)) for event in _lines(path)]
    return sorted(events, key=lambda event: (event["time"], event["attempt"], event["task"], event["seq"]))
