"""What Slurm itself wrote into a task's log when it ended the task, whose own processes had no time for a word.

Where memory is not limited by the kernel (JobAcctGatherParams=OverMemoryKill), slurmstepd looks at it now and then, and kills the
whole step, the guard with it; the job then counts as FAILED, and accounting says no more than that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from phenomhpc.slurm.decide import VANISHED, WITHOUT_A_WORD, FailureClass, TaskView

_OVER = re.compile(r"slurmstepd[^\n]*exceeded memory limit \((\d+) > (\d+)\), being killed")
# It is followed by a line or two of the step's end; what stands before belongs to an earlier start.
_TAIL_BYTES = 4096
_TAIL_LINES = 6


def with_last_lines(views: Sequence[TaskView], *, gang: bool) -> list[TaskView]:
    """The views; of those that ended without a word the class is `oom` where their log says so (of a gang: any of its logs)."""
    found = {view.task: words for view in views if _is_silent(view) and (words := _over_memory(view.log))}
    if not found:
        return list(views)
    if gang:
        first = next(iter(found.values()))
        found = {view.task: first for view in views if view.failure is not None}
    return [
        replace(view, failure=FailureClass.OOM, message=found[view.task]) if view.task in found else view
        for view in views
    ]


def _is_silent(view: TaskView) -> bool:
    return view.failure is not None and (VANISHED in view.message or WITHOUT_A_WORD in view.message)


def _over_memory(log: str) -> str:
    """What the last lines of a log say of it; empty where they say nothing, or there is no log."""
    try:
        with Path(log).open("rb") as file:
            file.seek(max(0, Path(log).stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    except OSError:
        return ""
    match = _OVER.search("\n".join(lines))
    if match is None:
        return ""
    used, limit = (int(number) / 2**20 for number in match.groups())
    return f"killed by Slurm: exceeded its memory limit ({used:.0f} of {limit:.0f} MiB)"
