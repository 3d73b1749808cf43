"""Which task does which unit: units in their planned order, cut into runs of neighbours by their estimated cost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from phenomhpc.runs import Event, Unit, Units

# Into so many tasks a run is spread whose tasks are then short enough; only what is larger needs more.
SPREAD = 256
# More elements than this are nobody's wish: the tasks become longer instead.
MOST_TASKS = 100_000
# A unit whose cost nobody knows still counts.
LEAST_COST_S = 1e-9
# Of how many finished units the pace is taken at most.
PACE_UNITS = 10_000


def pack(units: Sequence[Unit], max_tasks: int | None = None, *, target_s: float = 600.0, pace: float = 1.0) -> Units:
    """The units with their `task` set: numbered 0.. without gaps, neighbours together, their order kept.

    max_tasks: so many tasks of about equal cost (fewer where there are fewer units).  Without it: SPREAD tasks of about equal
    cost if none takes longer than `target_s`; else tasks filled up to that, of which only one with a single unit may take
    longer; MOST_TASKS of about equal cost where that would be more.
    pace: real seconds per second of estimated cost.
    """
    import numpy as np

    columns = Units.of(units)
    num_units = len(columns)
    if not num_units:
        return columns
    ends = np.cumsum(np.maximum(columns.numpy("cost_s"), np.float32(LEAST_COST_S)), dtype=np.float64)
    if max_tasks is not None:
        starts = _equal(ends, min(max_tasks, num_units))
    else:
        target = target_s / pace
        starts = _equal(ends, min(SPREAD, num_units))
        if not _fits(ends, starts, target):
            filled = _filled(ends, target, MOST_TASKS)
            starts = _equal(ends, MOST_TASKS) if filled is None else filled
    lengths = np.diff(np.append(starts, num_units))
    return columns.with_tasks(np.repeat(np.arange(len(starts), dtype=np.uint32), lengths))


def _equal(ends: Any, num_tasks: int) -> Any:
    """First unit of each of `num_tasks` tasks.  ends: the cost of every unit together with all before it.

    A task begins with the first unit that lies past the shares before it, or when the tasks behind need every unit left; and
    never before the one ahead has a unit.
    """
    import numpy as np

    tasks = np.arange(num_tasks)
    shares = ends[-1] * tasks / num_tasks
    # Unit i begins at ends[i - 1], unit 0 at 0.
    past = np.where(shares > 0, np.searchsorted(ends, shares, side="left") + 1, 0)
    wanted = np.minimum(past, len(ends) - num_tasks + tasks)
    return tasks + np.maximum.accumulate(wanted - tasks)


def _fits(ends: Any, starts: Any, target: float) -> bool:
    """Takes none of the tasks longer than `target`, unless it has only one unit?"""
    import numpy as np

    last = np.append(starts[1:], len(ends)) - 1
    costs = ends[last] - np.where(starts > 0, ends[starts - 1], 0.0)
    return bool(((costs <= target) | (last == starts)).all())


def _filled(ends: Any, target: float, most: int) -> Any:
    """First unit of each task when each takes what fits into `target`; None when they are more than `most`."""
    import numpy as np

    starts = [0]
    while True:
        start = starts[-1]
        before = ends[start - 1] if start else 0.0
        behind = max(start + 1, bisect_right(ends, before + target, lo=start))
        if behind >= len(ends):
            return np.array(starts)
        if len(starts) == most:
            return None
        starts.append(behind)


def pace_of(events: Iterable[Event]) -> float:
    """Real seconds per estimated second of units that were done; 1 where no event tells.

    From `unit` events, which tell both; units that were found done and took no time are left out.
    """
    real = estimated = 0.0
    left = PACE_UNITS
    for event in events:
        if event["event"] == "unit" and event.get("seconds") and event.get("cost_s"):
            real += float(event["seconds"])
            estimated += float(event["cost_s"])
            left -= 1
            if not left:
                break
    return real / estimated if estimated else 1.0
