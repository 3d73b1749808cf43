"""Which task does which unit: units in their planned order, cut into runs of about equal cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from phenomhpc.runs import Unit


def pack(units: Sequence[Unit], max_tasks: int) -> list[Unit]:
    """The units with their `task` set: at most `max_tasks` tasks, numbered 0.. without gaps, neighbours together."""
    num_tasks = min(max_tasks, len(units))
    costs = [max(unit.cost_s, 1e-9) for unit in units]
    total = sum(costs)
    packed: list[Unit] = []
    task, left = 0, len(units)
    for unit, before in zip(units, accumulate([0.0, *costs]), strict=False):
        behind = num_tasks - 1 - task
        # Step on when this unit lies past the task's share, or when the tasks behind need every unit left.
        if (
            packed
            and packed[-1].task == task
            and behind
            and (before >= total * (task + 1) / num_tasks or left <= behind)
        ):
            task += 1
        packed.append(replace(unit, task=task, array_index=task))
        left -= 1
    return packed
