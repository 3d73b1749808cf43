"""What the units of a task consist of (fields, crops), told as it is done: on the task's bar, and now and then to its run.

A shard of a gigabyte takes minutes, and a run may have one for each task: `status` would see nothing until all are done.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from phenomhpc.progress import Meter, Stage
from phenomhpc.runs import PROGRESS, TaskContext, Unit

# A unit is first told of after so long, then ever more rarely: ten times in ten minutes, fifteen in an hour and a half.
FIRST_S = 10.0
FACTOR = 1.5


class Parts:
    """A stage that counts parts of one unit after another.  Events are written by `advance` and `end`, which may raise
    FencedError."""

    def __init__(self, ctx: TaskContext, stage: Stage) -> None:
        self._ctx, self._stage = ctx, stage
        self._unit: Unit | None = None
        self._count = self._bytes = 0
        self._began = self._next_s = 0.0
        self._meter = Meter(self)

    def begin(self, unit: Unit) -> None:
        """The parts that follow are this unit's."""
        self._unit, self._count, self._bytes = unit, 0, 0
        self._began, self._next_s = time.monotonic(), FIRST_S

    def part(self, num_bytes: int) -> None:
        """One more part, of so many raw bytes."""
        self._bytes += num_bytes
        self._meter.advance(num_bytes)

    def advance(self, n: int = 1, **figures: float) -> None:
        self._stage.advance(n, **figures)
        self._count += n
        seconds = time.monotonic() - self._began
        if self._unit is not None and seconds > self._next_s:
            self._next_s = FACTOR * seconds
            self._ctx.events.emit(PROGRESS, unit_id=self._unit.unit_id, count=self._count, bytes=self._bytes)

    def end(self, set_aside: int = 0) -> None:
        """The unit was committed."""
        assert self._unit is not None
        self._ctx.tell_unit(self._unit, time.monotonic() - self._began, set_aside, self._bytes or None)
        self._unit = None

    def note(self, text: str) -> None:
        self._stage.note(text)

    def __enter__(self) -> Self:
        self._stage.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stage.__exit__(kind, error, trace)
